"""What the attention kernels ask of a warp (CUDA) or SIMD group (Metal), and how each of the two spells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target import Target
from tvm.tirx.script import builder as T

WARP = 32
"""Lanes of a warp or SIMD group. No shuffle names one beyond it."""

VECTOR_BYTES = 16
"""Of the widest load, and of the vectors that pages are read in."""

Exchange = Callable[[Any, int], Any]
"""(value, distance) -> the value of the lane whose number differs in that one bit; every lane must come."""


def exchange_of(target: Target) -> Exchange:
    """How lanes of the target swap values."""
    if target.kind.name == "metal":
        return _simd_shuffle_xor
    return shfl_xor


def _simd_shuffle_xor(value: Any, distance: int) -> Any:
    return T.call_pure_extern("float32", "simd_shuffle_xor", value, tirx.const(distance, "uint16"))


_EVERYONE = 0xFFFFFFFF


def shfl_xor(value: Any, distance: int) -> Any:
    """CUDA's ``Exchange``."""
    everyone = tirx.const(_EVERYONE, "uint32")
    return T.call_pure_extern("float32", "__shfl_xor_sync", everyone, value, tirx.const(distance, "int32"))


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


def load_vector(into: Any, at: int, words: Any, vector: Any) -> None:
    """Emit the load of a vector of ``as_words`` into registers from ``at`` on."""
    T.buffer_store(into, words[T.Ramp(vector * 4, 1, 4)], [T.Ramp(at, 1, 4)])


def unpack(words: Any, first: int, dtype: str) -> list[Any]:
    """The numbers in four words of registers from ``first`` on, in order, as float32."""
    if dtype == "float32":
        return [T.reinterpret("float32", words[first + i]) for i in range(4)]
    if dtype == "bfloat16":
        # Which is the upper half of a float32.
        halves = ((words[first + i // 2], i % 2) for i in range(8))
        return [
            T.reinterpret("float32", word & T.uint32(0xFFFF0000) if upper else word << T.uint32(16))
            for word, upper in halves
        ]
    pairs = registers("pairs", 8, "float16")
    for i in range(4):
        T.buffer_store(pairs, T.reinterpret("float16x2", words[first + i]), [T.Ramp(2 * i, 1, 2)])
    return [pairs[i].astype("float32") for i in range(8)]
