"""What leaves a tile's sums: the outputs, or where blocks divide k this part's own sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda.split_k import Parts
from awq_tvm.schedules.gpu.epilogue import finish
from awq_tvm.schedules.gpu.weights import local
from awq_tvm.schedules.spec import MatmulSpec


class TileOutputs:
    """Where a thread's sums go.

    Args:
        spec: the linear.
        arguments: the kernel's buffers by name.
        tokens: M.
        token: of the thread's first sum.
        row: likewise its output.
    """

    def __init__(
        self, spec: MatmulSpec, arguments: dict[str, Any], tokens: Any, token: Any, row: Any
    ) -> None:
        self.spec, self.arguments, self.tokens = spec, arguments, tokens
        # In registers once, or the compiler works them out again for every store.
        self.corner = local("corner", 3, "int32")
        T.buffer_store(self.corner, T.Cast("int32", token), [0])
        T.buffer_store(self.corner, row, [1])

    def store(self, sums: Any, held: Iterable[tuple[int, int, int]], parts: Parts | None, part: Any) -> None:
        """Emit the stores.

        Args:
            sums: of the thread.
            held: what they are of: place among them, output and token behind the first.
            parts: of k, if blocks divide it; outputs are finished where there is one part.
            part: this block's.
        """
        held = tuple(held)
        if parts is None:
            self._each(sums, held, self._finish)
        elif isinstance(parts.count, int):
            self._store_part(sums, held, parts, part)
        else:
            with T.If(parts.count == 1):
                with T.Then():
                    self._each(sums, held, self._finish)
                with T.Else():
                    self._store_part(sums, held, parts, part)

    def _each(
        self, sums: Any, held: tuple[tuple[int, int, int], ...], into: Callable[[Any, int, int], None]
    ) -> None:
        for at, row, token in held:
            inside = T.And(
                self.corner[0] + token < self.tokens, self.corner[1] + row < self.spec.out_features
            )
            with T.If(inside), T.Then():
                into(sums[at], token, row)

    def _finish(self, total: Any, token: int, row: int) -> None:
        finish(self.spec, total, self.corner[0] + token, self.corner[1] + row, self.arguments)

    def _store_part(self, sums: Any, held: tuple[tuple[int, int, int], ...], parts: Parts, part: Any) -> None:
        T.buffer_store(self.corner, parts.place(part, self.corner[0], self.corner[1]), [2])

        def into(total: Any, token: int, row: int) -> None:
            T.buffer_store(parts.sums, total, [self.corner[2] + (token * self.spec.out_features + row)])

        self._each(sums, held, into)
