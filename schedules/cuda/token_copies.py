"""Asynchronous copies of x to shared memory: what a thread brings of a tile, one block of k after another."""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.fragments import BLOCK_K
from awq_tvm.schedules.gpu.weights import local

CHUNKS = 8
"""16-byte chunks of one token's 64 k."""

TOKEN_WORDS = BLOCK_K // 2
"""32-bit words of one token's 64 k."""


class TokenCopies:
    """What a thread copies; emits the registers that it keeps.

    Args:
        x: [M, K], 16 bits.
        most: tokens of the tile.
        first: its first token.
        tokens: M; tokens past the last are read as the last, and not stored.
        blocks: the first block of k, and how many further on the next is.
        thread: this thread's number among those that copy.
        threads: how many copy.
    """

    def __init__(
        self,
        x: Any,
        most: int,
        first: Any,
        tokens: Any,
        blocks: tuple[Any, int],
        thread: Any,
        threads: int,
    ) -> None:
        in_features = int(x.shape[1])
        self._first, self._blocks, self._in_features = first, blocks, in_features
        self._flat = IRBuilder.name("all_x", T.decl_buffer((tokens * in_features,), x.dtype, data=x.data))
        count = most * CHUNKS // threads
        self._own = [((i * threads + thread) // CHUNKS, thread % CHUNKS) for i in range(count)]
        self._from, self._into = local("x_from", count, "int32"), local("x_to", count, "int32")
        for at, (token, chunk) in enumerate(self._own):
            # Of the tile's numbers, of which there are not so many.
            last = T.Cast("int32", tokens - 1 - first)
            T.buffer_store(
                self._from, T.min(token, last) * in_features + (blocks[0] * BLOCK_K + chunk * 8), [at]
            )
            T.buffer_store(self._into, token * TOKEN_WORDS + swizzled(chunk, token) * 4, [at])

    def copy_next(self, shared: Any, base: Any) -> None:
        """Emit the copies of the next block of k to ``shared[base]`` and on.

        Args:
            shared: uint32 in shared memory.
            base: where; a multiple of 4.
        """
        for at in range(len(self._own)):
            source = T.Cast("int64", self._from[at])
            if not isinstance(self._first, int):
                source = source + T.Cast("int64", self._first) * self._in_features
            ptx.copy_async(shared.ptr_to([base + self._into[at]]), self._flat.ptr_to([source]))
        self.skip()

    def skip(self) -> None:
        """Emit that the next block of k was brought otherwise."""
        for at in range(len(self._own)):
            T.buffer_store(self._from, self._from[at] + self._blocks[1] * BLOCK_K, [at])

    def pieces(self, base: Any, number: int) -> list[tuple[Any, Any, Any]]:
        """(where it goes, token, k) of each piece of a block of k that would be copied to ``shared[base]`` and on.

        Args:
            base: where; a multiple of 4.
            number: of the thread's blocks.
        """
        block = self._blocks[0] + number * self._blocks[1]
        return [
            (base + self._into[at], self._first + token, block * BLOCK_K + chunk * 8)
            for at, (token, chunk) in enumerate(self._own)
        ]


def swizzled(chunk: Any, token: Any) -> Any:
    """Where a token's chunk lies: so that one chunk of eight tokens meets all banks, and as `wgmma` has it."""
    return T.bitwise_xor(chunk, token % 8)
