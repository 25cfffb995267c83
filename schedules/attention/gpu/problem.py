"""The function around the decode kernels: its parameters, and the kernels for few and for many sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import held, registers
from awq_tvm.schedules.attention.gpu.splits import Splits, Whole, merge_splits
from awq_tvm.schedules.attention.parameters import (
    LOG2_E,
    History,
    build,
    indices,
    scalar,
    size,
    tensor,
    unused_rotary,
)
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import f32, i32


@dataclass(frozen=True)
class Problem:
    """One token a sequence, q [batch, heads, D], against its cached tokens, itself among them.

    Pages are [pages, 2, kv_heads, PAGE_SIZE, D], as TVM's own kernels fill them.
    """

    shape: AttentionShape
    batch: Any
    q: Any
    history: History
    q_position: Any
    softmax_scale: Any

    def span(self, sequence: Any) -> tuple[Any, Any]:
        """Emit the key to begin with, the first of a page, and the end of the keys."""
        length = held("length", self.history.length(sequence))
        if self.shape.sliding_window is None:
            return i32(0), length
        first = self.first_seen(sequence)
        return held("page_start", tirx.truncdiv(first, i32(PAGE_SIZE)) * i32(PAGE_SIZE)), length

    def first_seen(self, sequence: Any) -> Any:
        """Emit the first key within the sliding window; None where there is none."""
        if self.shape.sliding_window is None:
            return None
        own = self.q_position[sequence] - self.history.key_position[sequence]
        return held("first_seen", tirx.max(own - i32(self.shape.sliding_window - 1), i32(0)))

    def scale(self) -> Any:
        """Emit what a product of q and k is multiplied with to be in units of log2."""
        return held("scale", self.softmax_scale * f32(LOG2_E), "float32")


class PageWalk:
    """The pages of a run of keys, as warps take them in turn: each asks for its next before it needs it.

    Args:
        problem: whose pages.
        sequence: which sequence.
        start: the first key, of whole turns from a page's beginning.
        end: of the keys.
        turn: keys that all warps take in a turn.
        own: keys of the turn before the warp's own.
    """

    def __init__(self, problem: Problem, sequence: Any, start: Any, end: Any, turn: int, own: Any) -> None:
        self._values, self._end, self._turn = problem.history.page_values, end, turn
        self._begin = held("page_begin", problem.history.page_indptr[sequence])
        self._first = held("own_start", start + own)
        self._turns = tirx.truncdiv(end - start + i32(turn - 1), i32(turn))
        self.page = registers("page", 1, "int32")
        with T.If(self._first < end), T.Then():
            T.buffer_store(self.page, self.page_of(self._first), [0])

    def page_of(self, key: Any) -> Any:
        """Which page holds a key, or the last key beyond the end."""
        inside = tirx.min(key, self._end - 1)
        return self._values[self._begin + tirx.shift_right(inside, i32(PAGE_SIZE.bit_length() - 1))]

    def each(self, visit: Callable[[Any, Callable[[], None]], None]) -> None:
        """Emit the loop: ``visit`` gets the first key of the warp's turn, and what asks for the page of the next."""
        with T.serial(self._turns) as number:
            base = held("base", self._first + number * self._turn)

            def ask() -> None:
                with T.If(base + self._turn < self._end), T.Then():
                    T.buffer_store(self.page, self.page_of(base + self._turn), [0])

            with T.If(base < self._end), T.Then():
                visit(base, ask)


def decode_function(
    shape: AttentionShape, blocks: int, launch: Callable[[Problem, Splits | Whole], None]
) -> tirx.PrimFunc:
    """The PrimFunc that the runtime calls: output [batch, heads, D] and log_sum [batch, heads].

    Args:
        shape: of the attention.
        blocks: contexts are divided among so many, as long as half of them are more than what there is to do.
        launch: emits the kernel that reads pages.
    """

    def emit() -> None:
        batch = size("batch")
        rows = (batch, shape.heads, shape.head_dim)
        q = tensor("q", rows, shape.dtype)
        history = History(shape, batch)
        q_position = indices("q_position", (batch,))
        output = tensor("output", rows, shape.dtype)
        log_sum = tensor("log_sum", (batch, shape.heads))
        unused_rotary()
        problem = Problem(shape, batch, q, history, q_position, scalar("softmax_scale", "float32"))
        whole = Whole(output, log_sum)
        most_shared = blocks // (2 * shape.kv_heads)
        if most_shared < 1:
            launch(problem, whole)
            return
        splits = Splits(shape, blocks, batch)
        with T.If(batch <= most_shared):
            with T.Then():
                launch(problem, splits)
                merge_splits(splits, batch, problem.span, output, log_sum)
            with T.Else():
                launch(problem, whole)

    return build("attention_decode_paged", emit, overlaps=True)
