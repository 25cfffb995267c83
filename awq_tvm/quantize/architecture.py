"""What AWQ must know of a block: which linears share an input, and what feeds them. Traced, see `trace`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from awq_tvm.quantize.block_calls import catch_block_arguments
from awq_tvm.quantize.families import Family, family_of
from awq_tvm.quantize.plain_linears import experts_in
from awq_tvm.quantize.torch_model import build_skeleton
from awq_tvm.quantize.trace import (
    FEW_TOKENS,
    OUTPUT,
    Probe,
    TracedBlock,
    holds_queries_or_keys,
    mixes_tokens,
    norm_readers,
    rows_that_feed,
)


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears of a block that read the same input, and so share one scale per input channel.

    All names are paths below the block, for example "self_attn.q_proj".

    Attributes:
        name: short name for reports and messages.
        linears: the linears.
        feeder: the norm or linear whose output channels can be divided by the scales, with nothing between
            it and the linears but operations that commute with a scale per channel; None where there is none.
        feeder_is_linear: True where the feeder is a linear (its rows and bias are divided), False for a
            norm's weight.
        judged_by: the smallest module that contains the linears; scales are chosen by the error of its
            output. "" is the block.
        mixes_tokens: True where the output of `judged_by` at one token depends on other tokens.
        clip_in_paper: the linears that the paper's clip search touches. It leaves queries and keys alone.
        rows: for each input channel, the row of a linear feeder that makes it; empty for a norm.
        norm_offset: what a norm adds to its weight before it multiplies: 1 in Gemma, else 0.
        followers: modules that read the same input and stay in full precision, such as the router of a mixture
            of experts; their weights take the scales too.
        measured_at: the module whose input is that of the group, on all tokens.
        expert_of: path of the experts one of which has the linears, and gets only the tokens that are routed to
            it; "" where the linears get all tokens.
    """

    name: str
    linears: tuple[str, ...]
    feeder: str | None
    feeder_is_linear: bool
    judged_by: str
    mixes_tokens: bool
    clip_in_paper: tuple[str, ...]
    rows: tuple[int, ...] = ()
    norm_offset: float = 0.0
    followers: tuple[str, ...] = ()
    measured_at: str = ""
    expert_of: str = ""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a family keeps its blocks, and the groups of linears in one of them, in the order of the data flow.

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


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Trace the first block of a model.

    Args:
        config: the model's config.json.

    Returns:
        Its architecture.

    Raises:
        UnsupportedError: a family that is not known.
        CheckpointError: a config from which no network can be made.
    """
    family_of(config)
    return _of_first_block(json.dumps(config, sort_keys=True, default=str))


def linears_of(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Trace all blocks of a model.

    Args:
        config: the model's config.json.

    Returns:
        (N, K) of every linear that can be quantized, by full name.

    Raises:
        UnsupportedError: a family that is not known.
        CheckpointError: a config from which no network can be made.
    """
    family = family_of(config)
    model = build_skeleton(config)
    blocks = model.get_submodule(family.blocks).children()
    found = {}
    for index, (block, architecture) in enumerate(zip(blocks, architectures_of(model, family), strict=True)):
        for name in architecture.linears:
            rows, inputs = block.get_submodule(name).weight.shape
            found[f"{family.blocks}.{index}.{name}"] = (rows, inputs)
    return found


@lru_cache(maxsize=8)
def _of_first_block(config: str) -> Architecture:
    parsed = json.loads(config)
    return architectures_of(build_skeleton(parsed), family_of(parsed))[0]


def architectures_of(model: PreTrainedModel, family: Family) -> list[Architecture]:
    """Trace the blocks of a model; those that look alike are traced once.

    Args:
        model: a skeleton, its buffers on the CPU; no weights are needed, and none are touched.
        family: where its blocks are.

    Returns:
        The architecture of each block.
    """
    traced: dict[tuple[Any, ...], Architecture] = {}
    found = []
    with torch.no_grad(), torch.device("cpu"):
        arguments = {tokens: catch_block_arguments(model, family, tokens) for tokens in (1, FEW_TOKENS)}
        for index, block in enumerate(model.get_submodule(family.blocks).children()):
            kind = tuple((name, parameter.shape) for name, parameter in block.named_parameters())
            if kind not in traced:
                of_block = {tokens: each[index] for tokens, each in arguments.items()}
                groups = _groups(TracedBlock(block, of_block, model.config.hidden_size))
                for path, experts in experts_in(block).items():
                    groups = _for_all_experts(groups, path, len(experts))
                traced[kind] = Architecture(family.base, family.blocks, groups)
            found.append(traced[kind])
    return found


@dataclass
class _SameInput:
    """Linears and routers that were asked the same, and who made what they were asked."""

    linears: list[str]
    followers: list[str]
    feeder: str | None = None
    rows: tuple[int, ...] = ()


def _groups(block: TracedBlock) -> tuple[LinearGroup, ...]:
    """Put a traced block's linears into groups, in the order in which they are asked."""
    found = _same_inputs(block)
    for norm in block.norms:
        readers = norm_readers(block, norm)
        for one in found:
            if readers is not None and readers == {*one.linears, *one.followers}:
                one.feeder = norm
    for linear in block.linears:
        unfed = {one.linears[0]: one for one in found if one.feeder is None}
        feeds = rows_that_feed(block, linear, unfed) if unfed else None
        if feeds is not None:
            unfed[feeds[0]].feeder, unfed[feeds[0]].rows = linear, feeds[1]
    names = _names(found)
    return tuple(_group(block, one, found, name) for one, name in zip(found, names, strict=True))


def _same_inputs(block: TracedBlock) -> list[_SameInput]:
    asked = block.run(Probe())
    del asked[OUTPUT]
    found: list[tuple[Tensor, _SameInput]] = []
    for path, inputs in asked.items():
        one = next((one for other, one in found if torch.equal(other, inputs)), None)
        if one is None:
            one = _SameInput([], [])
            found.append((inputs, one))
        (one.linears if path in block.linears else one.followers).append(path)
    return [one for _, one in found if one.linears]


def _group(block: TracedBlock, one: _SameInput, found: list[_SameInput], name: str) -> LinearGroup:
    judged_by = _common_module(one.linears + one.followers)
    feeding = {other.feeder: other.rows for other in found if other.rows}
    norm_fed = one.feeder is not None and not one.rows
    return LinearGroup(
        name=name,
        linears=tuple(one.linears),
        feeder=one.feeder,
        feeder_is_linear=bool(one.rows),
        judged_by=judged_by,
        mixes_tokens=len(one.linears) > 1 and mixes_tokens(block, judged_by, one.linears),
        clip_in_paper=tuple(
            linear
            for linear in one.linears
            if not holds_queries_or_keys(block, linear, feeding.get(linear, ()))
        ),
        rows=one.rows,
        norm_offset=block.norm_offset(one.feeder) if norm_fed and one.feeder else 0.0,
        followers=tuple(one.followers),
        measured_at=(one.followers or one.linears)[0],
    )


def _for_all_experts(groups: tuple[LinearGroup, ...], path: str, count: int) -> tuple[LinearGroup, ...]:
    """What was found with the first expert alone, for all of them: they read the same, each feeds its own."""
    first = f"{path}.0."

    def of(number: int, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(
            f"{path}.{number}.{name.removeprefix(first)}" if name.startswith(first) else name
            for name in names
        )

    def of_all(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for number in range(count) for name in of(number, names)))

    found = []
    for group in groups:
        if not group.judged_by.startswith(first):
            shared = of_all(group.linears), of_all(group.clip_in_paper)
            found.append(replace(group, linears=shared[0], clip_in_paper=shared[1]))
            continue
        for number in range(count):
            linears = of(number, group.linears)
            judged_by, measured_at = of(number, (group.judged_by, group.measured_at))
            one = replace(
                group,
                name=f"{group.name.partition(' of ')[0]} of {linears[0]}",
                linears=linears,
                feeder=None if group.feeder is None else of(number, (group.feeder,))[0],
                judged_by=judged_by,
                clip_in_paper=of(number, group.clip_in_paper),
                measured_at=measured_at,
                expert_of=path,
            )
            found.append(one)
    return tuple(found)


def _common_module(linears: list[str]) -> str:
    """Path of the smallest module that contains all of them; a linear itself if it is the only one."""
    parts = [linear.split(".") for linear in linears]
    common = []
    for step in zip(*parts, strict=False):
        if len(set(step)) > 1:
            break
        common.append(step[0])
    return ".".join(common)


def _names(found: list[_SameInput]) -> list[str]:
    """A short name for each group, none twice."""
    names: list[str] = []
    for one in found:
        path = one.linears[0]
        part = "attention" if "att" in path.split(".")[0] else "mlp"
        name = f"{part} {'output' if one.rows or f'{part} input' in names else 'input'}"
        names.append(name if name not in names else f"{name} of {path}")
    return names
