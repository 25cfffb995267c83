"""What the attention kernels ask of a warp (CUDA) or SIMD group (Metal), and how each of the two spells it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script import builder as T

WARP = 32
"""Lanes of a warp or SIMD group. No shuffle names one beyond it."""

Exchange = Callable[[Any, int], Any]
"""(value of 32 bits, distance) -> that of the lane whose number differs in that one bit; every lane must come."""


def exchange_of(target: Target) -> Exchange:
    """How lanes of the target swap values."""
    if target.kind.name == "metal":
        return simd_shuffle_xor
    return shfl_xor


def simd_shuffle_xor(value: Any, distance: int) -> Any:
    """Metal's ``Exchange``."""
    return T.call_pure_extern(value.ty.dtype, "simd_shuffle_xor", value, tirx.const(distance, "uint16"))


_EVERYONE = 0xFFFFFFFF


def shfl_xor(value: Any, distance: int) -> Any:
    """CUDA's ``Exchange``."""
    everyone = tirx.const(_EVERYONE, "uint32")
    return T.call_pure_extern(
        value.ty.dtype, "__shfl_xor_sync", everyone, value, tirx.const(distance, "int32")
    )


def any_lane(holds: Any) -> Any:
    """CUDA: whether a condition holds in any lane; every lane must come."""
    return T.call_pure_extern("int32", "__any_sync", tirx.const(_EVERYONE, "uint32"), holds) != 0


def any_simd_lane(holds: Any) -> Any:
    """Metal: the same in its words."""
    return T.call_pure_extern("bool", "simd_any", holds)


def combine_lanes(
    of: Any, at: int, combine: Callable[[Any, Any], Any], exchange: Exchange, distances: Iterable[int]
) -> None:
    """Emit ``of[at]`` = the combination of the lanes' own, for those whose numbers differ in these bits alone.

    Args:
        of: registers.
        at: where in them.
        combine: two of them.
        exchange: of the target.
        distances: see ``halves_of``; in their order.
    """
    for distance in distances:
        T.buffer_store(of, combine(of[at], exchange(of[at], distance)), [at])


def halves_of(lanes: int) -> list[int]:
    """The distances by which so many lanes, a power of two, all meet: the largest first."""
    return [1 << bit for bit in reversed(range(lanes.bit_length() - 1))]


def shfl(value: Any, lane: Any) -> Any:
    """CUDA: the value of a lane; every lane must come."""
    return T.call_pure_extern("float32", "__shfl_sync", tirx.const(_EVERYONE, "uint32"), value, lane)


def registers(name: str, length: int, dtype: str = "float32") -> Any:
    """A named array in a thread's registers."""
    return IRBuilder.name(name, T.alloc_buffer((length,), dtype, scope="local"))


def held(name: str, value: Any, dtype: str = "int32") -> Any:
    """Compute a value here, once: TVM would put an expression back in wherever it is used."""
    place = registers(name, 1, dtype)
    T.buffer_store(place, value, [0])
    return place[0]


def as_words(buffer: Any, count: Any) -> Any:
    """A buffer of global memory as ``count`` vectors of 16 bytes, that is four words each."""
    return T.decl_buffer((count * 4,), "uint32", data=buffer.data)


def load_vector(into: Any, at: int, words: Any, vector: Any, length: int = 4) -> None:
    """Emit the load of a vector of so many words, of ``as_words``, into registers from ``at`` on."""
    T.buffer_store(into, words[T.Ramp(vector * length, 1, length)], [T.Ramp(at, 1, length)])


def store_vector(words: Any, vector: Any, source: Any, at: int, length: int = 4) -> None:
    """Emit the store of so many registers from ``at`` on as a vector of ``as_words``."""
    T.buffer_store(words, source[T.Ramp(at, 1, length)], [T.Ramp(vector * length, 1, length)])


def unpack(words: Any, first: int, dtype: str, length: int = 4) -> list[Any]:
    """The numbers in so many words of registers from ``first`` on, in order, as float32."""
    if dtype == "float32":
        return [T.reinterpret("float32", words[first + i]) for i in range(length)]
    if dtype == "bfloat16":
        # Which is the upper half of a float32.
        halves = ((words[first + i // 2], i % 2) for i in range(2 * length))
        return [
            T.reinterpret("float32", word & T.uint32(0xFFFF0000) if upper else word << T.uint32(16))
            for word, upper in halves
        ]
    pairs = registers("pairs", 2 * length, "float16")
    for i in range(length):
        T.buffer_store(pairs, T.reinterpret("float16x2", words[first + i]), [T.Ramp(2 * i, 1, 2)])
    return [pairs[i].astype("float32") for i in range(2 * length)]


def pack(into: Any, first: int, values: list[Any], dtype: str) -> None:
    """Emit the rounding of float32 to ``dtype``, and the stores of the words they fill from ``first`` on."""
    if dtype == "float32":
        for i, value in enumerate(values):
            T.buffer_store(into, T.reinterpret("uint32", value), [first + i])
        return
    pairs = registers("pairs", len(values), dtype)
    for i, value in enumerate(values):
        T.buffer_store(pairs, value.astype(dtype), [i])
    for i in range(len(values) // 2):
        if dtype == "bfloat16":
            low, high = (T.reinterpret("uint16", pairs[2 * i + j]).astype("uint32") for j in range(2))
            word = low | high << T.uint32(16)
        else:
            word = T.reinterpret("uint32", pairs[T.Ramp(2 * i, 1, 2)])
        T.buffer_store(into, word, [first + i])
