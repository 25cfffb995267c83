"""What happens to a finished sum on its way to y: bias, activation function, residual, ragged N."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules import vector_math
from awq_tvm.schedules.cpu.vectors import LANES, Buffer, Expression, Register, lanes, splat


def _relu(x: Expression) -> Expression:
    return T.max(x, splat(0.0, count=vector_math.lanes(x)))


ACTIVATION_FUNCTIONS: dict[str, Callable[[Expression], Expression]] = {
    "silu": partial(vector_math.silu, bind=T.bind),
    "gelu": partial(vector_math.gelu, bind=T.bind),
    "gelu_tanh": partial(vector_math.gelu_tanh, bind=T.bind),
    "relu": _relu,
}


class Output:
    """y[M, N] together with what is applied to a sum before it is stored.

    Args:
        out_features: N.
        y: the output buffer [M, N] float32.
        bias: [N] float32 or None.
        residual: [M, N] float32 or None.
        activation_function: a key of ``ACTIVATION_FUNCTIONS`` or None.
    """

    def __init__(
        self,
        out_features: int,
        y: Buffer,
        bias: Buffer | None = None,
        residual: Buffer | None = None,
        activation_function: str | None = None,
    ) -> None:
        self.out_features, self.y, self.bias, self.residual = out_features, y, bias, residual
        self.activation_function = activation_function

    def store(self, row: Expression, block: Expression, value: Expression) -> None:
        """Finish and store y[row, 16 block .. 16 block + 15], as far as N reaches."""
        full_blocks, tail = divmod(self.out_features, LANES)
        if tail == 0:
            self._store_full(row, block, value)
            return
        with T.If(block < full_blocks):
            with T.Then():
                self._store_full(row, block, value)
            with T.Else():
                self._store_tail(row, full_blocks * LANES, tail, value)

    def store_tile(
        self,
        sums: list[list[Register]],
        first_row: Expression,
        first_block: Expression,
        present: Expression | None = None,
    ) -> None:
        """Finish and store sums[row][block], of which only the first ``present`` rows belong to y.

        The sums go through a small array, so that the code of the epilogue exists once, not for each of them.
        """
        rows, blocks = len(sums), len(sums[0])
        tile = T.alloc_buffer((rows, blocks, LANES), "float32")
        for r, line in enumerate(sums):
            for b, register in enumerate(line):
                T.buffer_store(tile, register.get(), [r, b, lanes()])
        self.store_array(tile, first_row, first_block, rows if present is None else present)

    def store_array(
        self, tile: Buffer, first_row: Expression, first_block: Expression, present: Expression
    ) -> None:
        """Finish and store the first ``present`` rows of tile [rows, blocks, 16]."""
        count = present if isinstance(present, int) else T.min(present, tile.shape[0])
        with T.serial(0, count) as r, T.serial(0, tile.shape[1]) as b:
            self.store(first_row + r, first_block + b, tile[r, b, lanes()])

    def _finish(self, value: Expression, bias: Expression | None, residual: Expression | None) -> Expression:
        if bias is not None:
            value = value + bias
        if self.activation_function is not None:
            value = ACTIVATION_FUNCTIONS[self.activation_function](T.bind(value))
        if residual is not None:
            value = value + residual
        return value

    def _store_full(self, row: Expression, block: Expression, value: Expression) -> None:
        columns = lanes(block * LANES)
        bias = None if self.bias is None else self.bias[columns]
        residual = None if self.residual is None else self.residual[row, columns]
        T.buffer_store(self.y, self._finish(value, bias, residual), [row, columns])

    def _store_tail(self, row: Expression, start: int, count: int, value: Expression) -> None:
        def loaded_part(source: Buffer | None, *index: Expression) -> Expression | None:
            if source is None:
                return None
            loaded = Register(splat(0.0))
            for lane in range(count):
                T.buffer_store(loaded.buffer, source[(*index, start + lane)], [lane])
            return loaded.get()

        finished = Register(self._finish(value, loaded_part(self.bias), loaded_part(self.residual, row)))
        for lane in range(count):
            T.buffer_store(self.y, finished.buffer[lane], [row, start + lane])
