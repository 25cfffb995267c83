"""The C largest of the numbers that a block of threads has in registers, of equal ones those of the lowest ids.

Floats become unsigned integers that order as they do. The C-th largest is found bit by bit from the top: for each bit
the block counts how many are at least as large, and it is done as soon as they are C. Only where equal numbers make
them more are the ids searched the same way. Nothing is sorted, and no result depends on which thread comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script import builder as T

from awq_tvm.schedules.attention.gpu.lanes import (
    WARP,
    Exchange,
    combine_lanes,
    halves_of,
    held,
    registers,
)
from awq_tvm.schedules.attention.tile import i32

THREADS = 256
WARPS = THREADS // WARP
NO_ID = (1 << 31) - 1

_SIGN, _NAN, _INFINITY = 1 << 31, (1 << 32) - 1, 0x7F800000
OF_MINUS_INFINITY = ~(_SIGN | _INFINITY) & _NAN
"""The smallest key of a number; what is not there has 0."""


def u32(value: int) -> Any:
    """A constant."""
    return tirx.const(value, "uint32")


def key_of(bits: Any) -> Any:
    """Emit the key of a float32: equal for equal numbers, larger for larger ones, the largest for what is none."""
    own = held("bits", T.Select(bits == u32(_SIGN), u32(0), bits), "uint32")
    ordered = T.Select(own < u32(_SIGN), own | u32(_SIGN), tirx.bitwise_not(own))
    magnitude = own & u32(_SIGN - 1)
    return held("key", T.Select(u32(_INFINITY) < magnitude, u32(_NAN), ordered), "uint32")


def number_of(key: Any) -> Any:
    """The float32 of a key; -0 comes back as 0."""
    bits = T.Select(key < u32(_SIGN), tirx.bitwise_not(key), key ^ u32(_SIGN))
    return T.reinterpret("float32", bits)


def counter_of(target: Target) -> Callable[[Any, int], Any]:
    """(an int32 of each lane, the most it can be) -> their sum over the warp."""
    if target.kind.name == "metal":
        return lambda value, _: T.call_pure_extern("int32", "simd_sum", value)
    return _count_by_votes


def _count_by_votes(value: Any, most: int) -> Any:
    """The votes for each bit do not wait for each other, as five exchanges would."""
    total = i32(0)
    for bit in range(most.bit_length()):
        holds = (value >> i32(bit)) & i32(1)
        votes = T.call_pure_extern("uint32", "__ballot_sync", u32(_NAN), holds)
        total = total + (T.call_pure_extern("int32", "__popc", votes) << i32(bit))
    return total


class Block:
    """What the threads of a block tell each other, in shared memory.

    Args:
        thread: of ``THREADS``.
        exchange: of the target.
        count: of the target, see ``counter_of``.
    """

    def __init__(self, thread: Any, exchange: Exchange, count: Callable[[Any, int], Any]) -> None:
        self.thread, self.exchange, self._count = thread, exchange, count
        self.warp, self.lane = held("warp", thread // WARP), held("lane", thread % WARP)
        self._arrays = {
            dtype: IRBuilder.name(f"{dtype}_of_warps", T.alloc_buffer((WARPS,), dtype, scope="shared"))
            for dtype in ("int32", "uint32", "float32")
        }

    def shared(self, name: str, length: int, dtype: str) -> Any:
        """More shared memory."""
        return IRBuilder.name(name, T.alloc_buffer((length,), dtype, scope="shared"))

    def barrier(self) -> None:
        """Emit it."""
        T.evaluate(T.tvm_storage_sync("shared"))

    def count(self, value: Any, most: int) -> Any:
        """Emit the sum over the block of an int32 of each thread, at most ``most``."""
        warps = self._leave(held("of_warp", self._count(held("own", value), most)), "int32")
        return held("total", sum((warps[i] for i in range(1, WARPS)), warps[0]))

    def count_before(self, value: Any) -> tuple[Any, Any]:
        """Emit the sum of an int32 over the threads before, in registers, and that over all."""
        before, total = registers("before", 1, "int32"), registers("so_far", 1, "int32")
        T.buffer_store(before, i32(0), [0])
        T.buffer_store(total, value, [0])
        for distance in (1, 2, 4, 8, 16):
            other = held("other", self.exchange(total[0], distance))
            upper = tirx.bitwise_and(self.lane, i32(distance)) != 0
            T.buffer_store(before, before[0] + T.Select(upper, other, i32(0)), [0])
            T.buffer_store(total, total[0] + other, [0])
        warps = self._leave(total[0], "int32")
        for i in range(WARPS):
            T.buffer_store(before, before[0] + T.Select(i32(i) < self.warp, warps[i], i32(0)), [0])
        return before, held("total", sum((warps[i] for i in range(1, WARPS)), warps[0]))

    def reduce(self, value: Any, combine: Callable[[Any, Any], Any], dtype: str) -> Any:
        """Emit the combination of one number of each thread, in the same order each time."""
        own = registers("own", 1, dtype)
        T.buffer_store(own, value, [0])
        combine_lanes(own, 0, combine, self.exchange, halves_of(WARP))
        warps, result = self._leave(own[0], dtype), registers("result", 1, dtype)
        T.buffer_store(result, warps[0], [0])
        for i in range(1, WARPS):
            T.buffer_store(result, combine(result[0], warps[i]), [0])
        return result[0]

    def _leave(self, value: Any, dtype: str) -> Any:
        """Emit the leaving of a warp's number where all see it."""
        array = self._arrays[dtype]
        # What was left before has been read by all.
        self.barrier()
        with T.If(self.lane == 0), T.Then():
            T.buffer_store(array, value, [self.warp])
        self.barrier()
        return array


def select(
    block: Block, keys: Any, ids: list[Any], wanted: int, id_bits: int
) -> tuple[Callable[[int], Any], Any]:
    """Emit the search for the largest.

    Args:
        block: of threads.
        keys: uint32 registers of a thread; 0 for none.
        ids: of the keys, int32, each once in the block and below 2**id_bits.
        wanted: how many are to be found; all, where there are fewer.
        id_bits: see there.

    Returns:
        Which of the thread's keys are among them, by number, and how many of the thread's are.
    """
    own = range(len(ids))
    bound, done, limit = (
        registers("bound", 1, "uint32"),
        registers("done", 1, "int32"),
        registers("limit", 1, "int32"),
    )
    T.buffer_store(bound, u32(0), [0])
    T.buffer_store(done, i32(0), [0])
    T.buffer_store(limit, i32(NO_ID), [0])

    def total(holds: Callable[[int], Any]) -> Any:
        one = sum((T.Select(holds(i), i32(1), i32(0)) for i in own), i32(0))
        return block.count(one, len(ids))

    with T.serial(32) as step, T.If(done[0] == 0), T.Then():
        higher = held("higher", bound[0] | (u32(1) << (i32(31) - step).astype("uint32")), "uint32")
        found = total(lambda i: higher <= keys[i])
        with T.If(found >= wanted), T.Then():
            T.buffer_store(bound, higher, [0])
        with T.If(found == wanted), T.Then():
            T.buffer_store(done, i32(1), [0])

    def chosen(i: int, below: Any) -> Any:
        return T.Or(bound[0] < keys[i], T.And(keys[i] == bound[0], ids[i] < below))

    with T.If(T.And(done[0] == 0, bound[0] > u32(0))), T.Then():
        T.buffer_store(limit, i32(0), [0])
        with T.serial(id_bits) as step:
            further = held("further", limit[0] | (i32(1) << (i32(id_bits - 1) - step)))
            with T.If(total(lambda i: chosen(i, further)) < wanted), T.Then():
                T.buffer_store(limit, further, [0])
        T.buffer_store(limit, limit[0] + 1, [0])

    def among(i: int) -> Any:
        return T.And(chosen(i, limit[0]), keys[i] > u32(0))

    return among, sum((T.Select(among(i), i32(1), i32(0)) for i in own), i32(0))
