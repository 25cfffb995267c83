"""What a bundle for a GPU can be made of, combined: most pairs of choices meet in one of these models."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from awq_tvm.checkpoint import PER_CHANNEL
from tests.emulate.test_bundles import (
    GREEDY,
    PARTS,
    compile_without_nvcc,
    expect_pytorchs,
    needs_this_machine,
)
from tests.support import tiny_decoder as tiny
from tests.support.emulated_bundle import run_in_emulator

pytestmark = [*needs_this_machine, pytest.mark.slow]


class Made(NamedTuple):
    """One bundle.

    Attributes:
        kind: of GPU.
        bits: of the linears.
        group_size: of theirs.
        rounding: "order" is asymmetric too, with the channels of a group scattered.
        hidden_act: f of the MLPs' gates.
        opt: level of ``compile``.
    """

    kind: str
    bits: int
    group_size: int
    rounding: Literal["asymmetric", "symmetric", "order"]
    hidden_act: str
    opt: int


MADE = [
    Made("cuda", 4, 32, "asymmetric", "gelu_pytorch_tanh", 2),
    Made("cuda", 4, PER_CHANNEL, "asymmetric", "silu", 2),
    Made("cuda", 3, 16, "symmetric", "gelu", 0),
    Made("h100", 3, 16, "symmetric", "silu", 2),
    Made("h100", 8, PER_CHANNEL, "symmetric", "gelu_pytorch_tanh", 0),
    Made("h100", 4, 32, "symmetric", "gelu", 1),
    Made("h100", 3, 128, "asymmetric", "gelu_pytorch_tanh", 0),
    Made("h100", 4, 128, "order", "gelu_pytorch_tanh", 2),
    Made("h100", 8, 32, "asymmetric", "silu", 1),
    Made("metal", 3, PER_CHANNEL, "asymmetric", "gelu", 1),
    Made("metal", 4, 16, "order", "gelu", 0),
    Made("metal", 8, 128, "symmetric", "gelu", 2),
    Made("metal", 3, 32, "order", "silu", 0),
    Made("metal", 8, 16, "asymmetric", "gelu_pytorch_tanh", 1),
]


@pytest.mark.parametrize("made", MADE, ids=lambda made: "-".join(map(str, made)))
def test_any_two_choices_together(made: Made, tmp_path: Path) -> None:
    """The head stays in float16: on CUDA it is multiplied by TVM's own schedule, with nvcuda::wmma."""
    family, tied = ("mistral", "qwen2", "qwen3", "llama")[MADE.index(made) % 4], made.bits == 8
    model = tiny.make_model(
        family,
        hidden_size=128,
        intermediate_size=256,
        head_dim=32,
        hidden_act=made.hidden_act,
        tie_word_embeddings=tied,
    )
    compiled = compile_without_nvcc(
        model,
        tmp_path,
        made.kind,
        bits=made.bits,
        group_size=made.group_size,
        symmetric=made.rounding == "symmetric",
        act_order=made.rounding == "order",
        opt=made.opt,
    )
    found = run_in_emulator(compiled.bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)
    expect_pytorchs(found, model)
