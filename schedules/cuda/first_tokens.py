"""x of the first stages where a launch overlaps the one before it, which may be what computes x.

Weights depend on no launch: their copies are on the way before the kernel waits. x can be asked for only then, and
if it came in asynchronous copies too, waiting for it would be waiting for all weights that were asked for before. So
it passes through registers here: all of it is asked for at once, and stored when it has come.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.gpu.weights import local

_WORDS = 4
"""Of a piece, 32 bits each."""


class FirstTokens:
    """Pieces of 16 bytes of x on their way to shared memory.

    Args:
        x: [M, K], 16 bits.
        tokens: M.
        shared: where they go, 32-bit words.
        count: how many pieces a thread brings.
    """

    def __init__(self, x: Any, tokens: Any, shared: Any, count: int) -> None:
        self._tokens, self._shared = tokens, shared
        self._vectors = int(x.shape[1]) // 8
        shape = (tokens * (self._vectors * _WORDS),)
        self._words = IRBuilder.name("x_vectors", T.decl_buffer(shape, "uint32", data=x.data))
        self._registers = local("first_x", count * _WORDS, "uint32")
        self._stores: list[tuple[Any, list[tuple[Any, int]]]] = []
        self._next = 0

    def add(self, there: Any, pieces: list[tuple[Any, Any, Any]]) -> None:
        """Emit the loads of some pieces.

        Args:
            there: whether there are any.
            pieces: (where in shared memory, token, k); tokens past the last are zeros.
        """
        stores = []
        with T.If(there), T.Then():
            for place, token, k in pieces:
                at, vector = self._next, T.min(token, self._tokens - 1) * self._vectors + k // 8
                self._next += _WORDS
                stores.append((place, at))
                source = self._words[T.Ramp(vector * _WORDS, 1, _WORDS)]
                T.buffer_store(self._registers, source, [T.Ramp(at, 1, _WORDS)])
                with T.If(token >= self._tokens), T.Then():
                    for i in range(_WORDS):
                        T.buffer_store(self._registers, T.uint32(0), [at + i])
        self._stores.append((there, stores))

    def store(self) -> None:
        """Emit the stores of all of them; other threads see them after the next barrier."""
        for there, stores in self._stores:
            with T.If(there), T.Then():
                for place, at in stores:
                    words = [self._registers[at + i] for i in range(_WORDS)]
                    ptx.store_shared(self._shared.ptr_to([place]), words)
