"""A long context divided among blocks: which keys each takes, what they leave, and the kernel that merges it.

How many blocks share a context depends on the number of sequences, not on their lengths, and what they leave takes
memory of one size: so every launch for a number of sequences is the same, and can be recorded. A block whose run of
keys is empty ends at once.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.config import MIN_SPLIT_KEYS
from awq_tvm.schedules.attention.gpu.lanes import WARP, held, registers
from awq_tvm.schedules.attention.shape import PAGE_SIZE, AttentionShape
from awq_tvm.schedules.attention.tile import NOTHING, f32, i32


class Whole:
    """A context that one block reads alone; what it has found is the result.

    Attributes:
        count: blocks a context.
    """

    def __init__(self, output: Any, log_sum: Any) -> None:
        self.count: Any = i32(1)
        self._output, self._log_sum = output, log_sum

    def run(self, split: Any, begin: Any, end: Any) -> tuple[Any, Any]:
        """The keys of a block."""
        return begin, end

    def store(self, place: tuple[Any, Any, Any], feature: Any, value: Any, maximum: Any, total: Any) -> None:
        """Emit the store of O[feature] of (sequence, head, split), and with the first of m and l."""
        sequence, head, _ = place
        store_result(self._output, self._log_sum, (sequence, head), feature, value, maximum, total)


class Splits:
    """A context that ``count`` blocks share.

    Emits the allocation of what they leave: O as it is, and m and l.

    Args:
        shape: of the attention.
        blocks: the most that share what there is to do.
        batch: sequences, at most ``most_sequences``.
    """

    def __init__(self, shape: AttentionShape, blocks: int, batch: Any) -> None:
        self.shape = shape
        # There are most of them for a batch that divides the blocks.
        most = blocks * shape.group
        self.count: Any = tirx.truncdiv(i32(blocks), batch * i32(shape.kv_heads))
        self.sums = _scratch("split_sums", most * shape.head_dim)
        self.states = _scratch("split_states", 2 * most)

    def run(self, split: Any, begin: Any, end: Any) -> tuple[Any, Any]:
        """The keys of a block; none where the end comes first."""
        share = self._share(begin, end)
        start = held("start", begin + split * share)
        return start, held("end", tirx.min(start + share, end))

    def used(self, begin: Any, end: Any) -> Any:
        """How many blocks have left something: the first always has."""
        share = self._share(begin, end)
        return held("used", tirx.max(tirx.truncdiv(end - begin + share - 1, share), i32(1)))

    def place(self, sequence: Any, head: Any, split: Any) -> Any:
        """Where O of a query head is, in vectors of head_dim, and m and l, in pairs."""
        return (sequence * i32(self.shape.heads) + head) * self.count + split

    def store(self, place: tuple[Any, Any, Any], feature: Any, value: Any, maximum: Any, total: Any) -> None:
        """Emit the store of O[feature] of (sequence, head, split), and with the first of m and l."""
        at = held("at", self.place(*place))
        T.buffer_store(self.sums, value, [at * i32(self.shape.head_dim) + feature])
        with T.If(feature == 0), T.Then():
            T.buffer_store(self.states, maximum, [2 * at])
            T.buffer_store(self.states, total, [2 * at + 1])

    def _share(self, begin: Any, end: Any) -> Any:
        """Keys of each block, whole pages."""
        share = held("share", tirx.truncdiv(end - begin + self.count - 1, self.count))
        whole = tirx.truncdiv(share + i32(PAGE_SIZE - 1), i32(PAGE_SIZE)) * i32(PAGE_SIZE)
        return held("share", tirx.max(whole, i32(MIN_SPLIT_KEYS)))


def _scratch(name: str, length: int) -> Any:
    """Float32 in global memory, of a size that is known here."""
    memory = IRBuilder.name(name, T.alloc_buffer((length,), "float32", scope="global"))
    # Through a second name, or TVM makes the allocation as long as the indices can be for any batch.
    return IRBuilder.name(f"{name}_of", T.decl_buffer((length,), "float32", data=memory.data))


def store_result(
    output: Any,
    log_sum: Any,
    row: tuple[Any, Any],
    feature: Any,
    value: Any,
    maximum: Any,
    total: Any,
) -> None:
    """Emit output[row, feature] = O / l, and with the first feature log_sum[row] = m + log2(l); no keys give 0."""
    seen = total > f32(0)
    divisor = held("divisor", T.Select(seen, total, f32(1)), "float32")
    T.buffer_store(output, (value / divisor).astype(str(output.dtype)), [*row, feature])
    with T.If(feature == 0), T.Then():
        T.buffer_store(log_sum, T.Select(seen, maximum + tirx.log2(divisor), f32(NOTHING)), [*row])


def merge_splits(splits: Splits, batch: Any, span: Any, output: Any, log_sum: Any) -> None:
    """Emit the kernel that merges what blocks have left: a warp a sequence and query head.

    Args:
        splits: what they share.
        batch: sequences.
        span: sequence -> (first key, end of the keys).
        output: [batch, heads, head_dim].
        log_sum: [batch, heads].
    """
    shape = splits.shape
    with (
        T.launch_thread("blockIdx.x", batch) as sequence,
        T.launch_thread("blockIdx.y", shape.heads) as head,
        T.launch_thread("threadIdx.x", WARP) as thread,
    ):
        first = held("first", splits.place(sequence, head, i32(0)))
        used = splits.used(*span(sequence))
        maximum, total = registers("maximum", 1), registers("total", 1)
        T.buffer_store(maximum, f32(NOTHING), [0])
        T.buffer_store(total, f32(0), [0])
        with T.serial(used) as split:
            T.buffer_store(maximum, T.max(maximum[0], splits.states[2 * (first + split)]), [0])
        own = -(-shape.head_dim // WARP)
        sums = registers("sums", own)
        for i in range(own):
            T.buffer_store(sums, f32(0), [i])
        with T.serial(used) as split:
            at = held("at", first + split)
            weight = held("weight", tirx.exp2(splits.states[2 * at] - maximum[0]), "float32")
            T.buffer_store(total, total[0] + weight * splits.states[2 * at + 1], [0])
            for i in range(own):
                feature = tirx.min(thread + i * WARP, i32(shape.head_dim - 1))
                more = weight * splits.sums[at * i32(shape.head_dim) + feature]
                T.buffer_store(sums, sums[i] + more, [i])
        for i in range(own):
            feature = thread + i * WARP
            with T.If(feature < shape.head_dim), T.Then():
                store_result(output, log_sum, (sequence, head), feature, sums[i], maximum[0], total[0])
