"""Where the warps of a decode kernel's block meet: each leaves O, m and l of what it saw in shared memory."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import held, registers
from awq_tvm.schedules.attention.gpu.splits import Splits, Whole
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.attention.tile import f32


class Meeting:
    """Shared memory for the sums of warps that have seen other keys.

    Args:
        shape: of the attention.
        key_warps: warps that took turns at the keys.
    """

    def __init__(self, shape: AttentionShape, key_warps: int) -> None:
        self._shape, self._warps = shape, key_warps
        rows = key_warps * shape.group
        self._sums = IRBuilder.name(
            "warp_sums", T.alloc_buffer((rows * shape.head_dim,), "float32", scope="shared")
        )
        self._states = IRBuilder.name("warp_states", T.alloc_buffer((rows * 2,), "float32", scope="shared"))

    def leave_sum(self, key_warp: Any, head: Any, feature: Any, value: Any) -> None:
        """Emit the store of O[feature] of a query head of the group."""
        row = key_warp * self._shape.group + head
        T.buffer_store(self._sums, value, [row * self._shape.head_dim + feature])

    def leave_state(self, key_warp: Any, head: Any, maximum: Any, total: Any) -> None:
        """Emit the store of m and l of a query head of the group."""
        row = key_warp * self._shape.group + head
        T.buffer_store(self._states, maximum, [2 * row])
        T.buffer_store(self._states, total, [2 * row + 1])

    def finish(self, thread: Any, threads: int, place: tuple[Any, Any, Any], splits: Splits | Whole) -> None:
        """Emit the barrier, the merging, and the store of the block's result.

        Args:
            thread: of the block, which takes every ``threads``-th number.
            threads: of the block.
            place: sequence, key-value head, split.
            splits: what takes the result.
        """
        group, head_dim = self._shape.group, self._shape.head_dim
        T.evaluate(T.tvm_storage_sync("shared"))
        sequence, kv_head, split = place
        with T.serial(-(-group * head_dim // threads)) as number:
            index = held("index", number * threads + thread)
            with T.If(index < group * head_dim), T.Then():
                head, feature = held("head", index // head_dim), held("feature", index % head_dim)
                maximum = registers("highest", 1)
                T.buffer_store(maximum, self._states[2 * head], [0])
                for w in range(1, self._warps):
                    T.buffer_store(maximum, T.max(maximum[0], self._states[2 * (w * group + head)]), [0])
                total, value = registers("total", 1), registers("value", 1)
                T.buffer_store(total, f32(0), [0])
                T.buffer_store(value, f32(0), [0])
                for w in range(self._warps):
                    row = w * group + head
                    weight = held("weight", tirx.exp2(self._states[2 * row] - maximum[0]), "float32")
                    T.buffer_store(total, total[0] + weight * self._states[2 * row + 1], [0])
                    T.buffer_store(value, value[0] + weight * self._sums[row * head_dim + feature], [0])
                own = (sequence, kv_head * group + head, split)
                splits.store(own, feature, value[0], maximum[0], total[0])
