"""A model whose blocks are filled one after the other; what stands before and after them stays filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from awq_tvm.checkpoint import Checkpoint
from awq_tvm.quantize.block_calls import catch_block_inputs, logits_of_model
from awq_tvm.quantize.device import place_buffers
from awq_tvm.quantize.families import family_of
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.torch_model import build_skeleton, empty, fill, outside_blocks


class StreamedModel:
    """A whole model to run with one block of it in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Fill what stands outside the blocks.

        Args:
            checkpoint: dense or quantized.

        Raises:
            CheckpointError: a weight is missing or has another shape.
        """
        self._checkpoint = in_network_terms(checkpoint)
        self._family = family_of(self._checkpoint.config)
        self._model = build_skeleton(self._checkpoint.config)
        place_buffers(self._model)
        self._returns_tuple = False
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        for name, module in outside_blocks(self._model, self._family).items():
            fill(module, name, self._checkpoint)
        if self._model.config.tie_word_embeddings:
            self._model.tie_weights()
        head = self._model.get_output_embeddings()
        name = next(name for name, module in self._model.named_modules() if module is head)
        fill(head, name, self._checkpoint)

    @property
    def blocks(self) -> int:
        """How many there are."""
        return len(self._model.get_submodule(self._family.blocks))

    def enter(self, tokens: Tensor) -> Tensor:
        """What enters the first block, int64 [1, L] -> float32 [1, L, H]."""
        # What blocks are called with besides hidden states depends on the number of tokens only.
        hidden, self._arguments[tokens.shape[1]] = catch_block_inputs(self._model, self._family, tokens)
        return hidden

    @contextmanager
    def block(self, index: int) -> Iterator[Callable[[Tensor], Tensor]]:
        """A block, filled for as long as the `with` lasts: float32 [1, L, H] -> [1, L, H], for an L that entered."""
        where = f"{self._family.blocks}.{index}"
        block = self._model.get_submodule(where)

        def run(hidden: Tensor) -> Tensor:
            output = block(hidden, **self._arguments[hidden.shape[1]][index])
            self._returns_tuple = isinstance(output, tuple)
            return output[0] if self._returns_tuple else output

        fill(block, where, self._checkpoint)
        try:
            yield run
        finally:
            empty(block)

    def logits(self, tokens: Tensor, hidden: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits for what left the last block; a block must have been run before.

        Args:
            tokens: int64 [1, L].
            hidden: float32 [1, L, H].
            weights: to use in place of parameters outside the blocks, by full name.

        Returns:
            float32 [L, V].
        """
        logits = logits_of_model(
            self._model, self._family, tokens, hidden, as_tuple=self._returns_tuple, weights=weights or {}
        )
        return logits[0].float()

    def norms_behind_blocks(self, token: Tensor) -> dict[str, torch.nn.Parameter]:
        """Copies of the weights of the norms between the last block and the head, which take gradients.

        They are found by what the logits of some hidden states depend on.

        Args:
            token: any one, int64 [1, 1].

        Returns:
            float32 [H] by full name, in order.
        """
        candidates = {
            f"{name}.weight": torch.nn.Parameter(module.weight.detach().clone())
            for name, module in outside_blocks(self._model, self._family).items()
            if getattr(module, "weight", None) is not None and module.weight.dim() == 1
        }
        with self.block(0) as run:
            hidden = run(self.enter(token))
        with torch.enable_grad():
            self.logits(token, hidden.detach(), candidates).sum().backward()
        found = {name: one for name, one in candidates.items() if one.grad is not None}
        for one in found.values():
            one.grad = None
        return found
