"""What AWQ must know of an architecture, as data: which linears share an input, and what feeds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from awq_tvm.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears of a block that read the same input, and so share one scale per input channel.

    All names are paths below the block, for example "self_attn.q_proj".

    Attributes:
        name: short name for reports and messages.
        linears: the linears.
        feeder: the norm or linear whose output channels can be divided by the scales, with nothing between
            it and the linears but operations that commute with a scale per channel.
        feeder_is_linear: True where the feeder is a linear (its rows and bias are divided), False for a
            norm's weight.
        judged_by: the smallest module that contains the linears; scales are chosen by the error of its
            output.
        mixes_tokens: True where the output of `judged_by` at one token depends on other tokens.
        clip_in_paper: the linears that the paper's clip search touches. It leaves queries and keys alone.
    """

    name: str
    linears: tuple[str, ...]
    feeder: str
    feeder_is_linear: bool
    judged_by: str
    mixes_tokens: bool
    clip_in_paper: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a family keeps its blocks, and the groups of linears in each, in the order of the data flow.

    Attributes:
        base: path of the module that maps token ids to hidden states.
        blocks: path of the list of blocks below the causal language model.
        groups: every quantized linear of a block is in exactly one group.
    """

    base: str
    blocks: str
    groups: tuple[LinearGroup, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of all quantized linears below a block."""
        return tuple(name for group in self.groups for name in group.linears)


_LLAMA = Architecture(
    base="model",
    blocks="model.layers",
    groups=(
        LinearGroup(
            name="attention input",
            linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            feeder="input_layernorm",
            feeder_is_linear=False,
            judged_by="self_attn",
            mixes_tokens=True,
            clip_in_paper=("self_attn.v_proj",),
        ),
        LinearGroup(
            name="attention output",
            linears=("self_attn.o_proj",),
            feeder="self_attn.v_proj",
            feeder_is_linear=True,
            judged_by="self_attn.o_proj",
            mixes_tokens=False,
            clip_in_paper=("self_attn.o_proj",),
        ),
        LinearGroup(
            name="mlp input",
            linears=("mlp.gate_proj", "mlp.up_proj"),
            feeder="post_attention_layernorm",
            feeder_is_linear=False,
            judged_by="mlp",
            mixes_tokens=False,
            clip_in_paper=("mlp.gate_proj", "mlp.up_proj"),
        ),
        LinearGroup(
            name="mlp output",
            linears=("mlp.down_proj",),
            feeder="mlp.up_proj",
            feeder_is_linear=True,
            judged_by="mlp.down_proj",
            mixes_tokens=False,
            clip_in_paper=("mlp.down_proj",),
        ),
    ),
)

# The four families differ in biases, norms of queries and keys, and sliding windows; none of these stands
# between a feeder and what it feeds.
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Look the model's family up.

    Args:
        config: the model's config.json.

    Returns:
        Its architecture.

    Raises:
        UnsupportedError: a family that is not in the table.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise UnsupportedError(
            f"Models of type {model_type!r} cannot be quantized yet",
            where="config.json: model_type",
            why=f"known are {', '.join(sorted(ARCHITECTURES))}",
            fix="see docs/adding-a-model.md for how a family is added",
        )
    return ARCHITECTURES[model_type]
