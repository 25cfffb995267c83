"""What a model calls its blocks with, found by running it with blocks that only listen."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Paths(Protocol):
    """Where a model keeps what maps token ids to hidden states, and its blocks."""

    @property
    def base(self) -> str: ...  # noqa: D102

    @property
    def blocks(self) -> str: ...  # noqa: D102


class _LastBlockReached(Exception):  # noqa: N818 - it is no error
    """Ends a run of the model, which has nothing more to tell."""


def catch_block_inputs(
    model: PreTrainedModel, paths: Paths, token_ids: Tensor
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Run the model up to its first block, and learn what else every block is called with.

    Args:
        model: causal language model; only what stands before the blocks must be filled.
        paths: where its blocks are.
        token_ids: int64 [B, L].

    Returns:
        Hidden states float32 [B, L, H] that enter the first block, and the arguments of each block, by keyword.
    """
    blocks = list(model.get_submodule(paths.blocks).children())
    first: list[Tensor] = []
    arguments: list[dict[str, Any]] = []

    def listen(hidden: Any, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        block = blocks[len(arguments)]
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        first.append(hidden)
        arguments.append(_by_keyword(block, (hidden, *args), kwargs))
        if len(arguments) == len(blocks):
            raise _LastBlockReached
        # Some models unpack what a block returns and some do not: whatever reaches the next one is unpacked here.
        return (hidden,)

    with ExitStack() as restore:
        for block in blocks:
            restore.enter_context(_forward_replaced(block, listen))
        with suppress(_LastBlockReached):
            model.get_submodule(paths.base)(input_ids=token_ids, use_cache=False)
    return first[0], arguments


def catch_block_arguments(model: PreTrainedModel, paths: Paths, tokens: int) -> list[dict[str, Any]]:
    """Learn what every block is called with besides hidden states; no weights are needed.

    Args:
        model: a skeleton.
        paths: where its blocks are.
        tokens: how many the model is run on.

    Returns:
        The arguments of each block, by keyword.
    """
    with ExitStack() as restore:
        for name, module in model.get_submodule(paths.base).named_modules(prefix=paths.base):
            inside = name.startswith(f"{paths.blocks}.")
            weight = getattr(module, "weight", None)
            if not inside and isinstance(weight, Tensor) and not any(module.children()):
                restore.enter_context(_forward_replaced(module, _zeros_like_answer(weight, tokens)))
        return catch_block_inputs(model, paths, torch.zeros(1, tokens, dtype=torch.int64))[1]


def end_of_model(
    model: PreTrainedModel, paths: Paths, token_ids: Tensor, hidden: Tensor, *, as_tuple: bool
) -> Tensor:
    """What the model makes of hidden states that leave its last block, up to the head.

    Args:
        model: causal language model; what stands before and after the blocks must be filled.
        paths: where its blocks are.
        token_ids: int64 [B, L] that belong to the hidden states.
        hidden: float32 [B, L, H].
        as_tuple: the model's blocks return tuples.

    Returns:
        float32 [B, L, H], behind the last norm.
    """
    with _blocks_that_answer(model, paths, (hidden,) if as_tuple else hidden):
        last: Tensor = model.get_submodule(paths.base)(input_ids=token_ids, use_cache=False).last_hidden_state
        return last


def logits_of_model(
    model: PreTrainedModel,
    paths: Paths,
    token_ids: Tensor,
    hidden: Tensor,
    *,
    as_tuple: bool,
    weights: Mapping[str, Tensor],
) -> Tensor:
    """The logits for hidden states that leave the last block: `end_of_model`, and the head, which must be filled.

    Args:
        model: as `end_of_model` takes it.
        paths: where its blocks are.
        token_ids: int64 [B, L] that belong to the hidden states.
        hidden: float32 [B, L, H].
        as_tuple: the model's blocks return tuples.
        weights: to use in place of parameters outside the blocks, by full name.

    Returns:
        float32 [B, L, V].
    """
    asked = {"input_ids": token_ids, "use_cache": False}
    with _blocks_that_answer(model, paths, (hidden,) if as_tuple else hidden):
        logits: Tensor = torch.func.functional_call(model, dict(weights), kwargs=asked).logits
        return logits


def run_block(block: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """One block on one batch: float32 [B, L, H] -> float32 [B, L, H]."""
    output = block(hidden, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def _zeros_like_answer(weight: Tensor, tokens: int) -> Any:
    """Answers of the right shape: an embedding's or norm's width is its weight's last size, a linear's its first."""

    def answer(asked: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        if weight.dim() == 1:
            return asked
        rows = asked.is_floating_point() and asked.dim() == 3
        return torch.zeros(1, tokens, weight.shape[0 if rows else 1])

    return answer


def _by_keyword(block: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a block without the first, hidden states, under the names that the block gives them."""
    signature = inspect.signature(type(block).forward)
    bound = dict(signature.bind(block, *args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound |= bound.pop(parameter.name, {})
    names = list(signature.parameters)
    return {name: value for name, value in bound.items() if name not in names[:2]}


@contextmanager
def _blocks_that_answer(
    model: PreTrainedModel, paths: Paths, answer: Tensor | tuple[Tensor]
) -> Iterator[None]:
    """Every block returns the same, whatever it is called with."""
    with ExitStack() as restore:
        for block in model.get_submodule(paths.blocks).children():
            restore.enter_context(_forward_replaced(block, lambda *_args, **_kwargs: answer))
        yield


@contextmanager
def _forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
