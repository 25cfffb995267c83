"""Asynchronous copies of weights to shared memory: what a thread brings of some tiles, one block of k after another.

Where its next pieces lie is kept in registers that grow from block to block, in 32 bits. Left to TVM each address was
a sum of 64 bits that puts what changes before what does not, and nvcc worked it out anew: 90 of the 373 instructions
of a warp's round for 64 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.schedules.cuda import ptx
from awq_tvm.schedules.cuda.fragments import BLOCK_K, CHUNK, SCALE_WORDS, Fragments
from awq_tvm.schedules.gpu.weights import local

_OF_GROUP = 16
"""Scales, or zero points, of a tile and a group: one of each output."""

_Places = Callable[[Any], tuple[Any, Any]]
"""Where a piece lies in its array, of block or group 0, and where it goes behind the tiles' first word."""


@dataclass(frozen=True)
class _Pieces:
    """A thread's pieces of codes, scales or zero points.

    Attributes:
        array: they come from; of one dimension.
        sources: where they lie in it, a register each.
        places: where they go, likewise.
        there: whether the thread has each of them; None where every thread does.
    """

    array: Any
    sources: Any
    places: Any
    there: list[Any]


class WeightCopies:
    """What a thread copies; emits the registers that it keeps.

    Args:
        weights: of the linear.
        tiles: the first tile and how many, of which it is a multiple; those past the last are copied as the last.
        blocks: the first block of k, and how many further on the next is.
        thread: this thread's number among those that copy.
        threads: how many copy.
    """

    def __init__(
        self, weights: Fragments, tiles: tuple[Any, int], blocks: tuple[Any, int], thread: Any, threads: int
    ) -> None:
        self._weights, (self._first, count) = weights, tiles
        self._exact = weights.tiles % count == 0
        self._thread, self._threads = thread, threads
        self._block, self._stride = local("next_block", 1, "int32"), blocks[1]
        T.buffer_store(self._block, blocks[0], [0])
        words = 32 * weights.lane_words
        pieces = words // CHUNK

        def code(number: Any) -> tuple[Any, Any]:
            tile, piece = number // pieces, number % pieces * CHUNK
            source = (self._tile(tile) * weights.blocks + blocks[0]) * words + piece
            return source, tile * weights.tile_words + piece

        self._codes = self._held(
            "codes", "uint32", weights.qweight, words * weights.blocks, count * pieces, code
        )
        self._step = words * self._stride
        # Where whole groups lie between a block and the next, scales move on as codes do.
        of_stride, left = divmod(self._stride * BLOCK_K, weights.spec.group_size)
        self._group_step = None if left else of_stride * _OF_GROUP
        self._groups = [self._of_group(part, count) for part in range(weights.sums_per_block)]

    def copy_next(self, shared: Any, base: Any) -> None:
        """Emit the copies of the next block of k to ``shared[base]`` and on.

        Args:
            shared: uint32 in shared memory.
            base: where; a multiple of 4.
        """
        self._copy(self._codes, shared, base, self._codes.sources)
        _move(self._codes, self._step)
        for part, kinds in enumerate(self._groups):
            for kind in kinds:
                if self._group_step is not None:
                    self._copy(kind, shared, base, kind.sources)
                    _move(kind, self._group_step)
                    continue
                sources = local("group_from", len(kind.there), "int32")
                beyond = self._weights.group_of(self._block[0], part) * _OF_GROUP
                for at in range(len(kind.there)):
                    T.buffer_store(sources, kind.sources[at] + beyond, [at])
                self._copy(kind, shared, base, sources)
        T.buffer_store(self._block, self._block[0] + self._stride, [0])

    def _copy(self, kind: _Pieces, shared: Any, base: Any, sources: Any) -> None:
        for at, there in enumerate(kind.there):
            into = shared.ptr_to([base + kind.places[at]])
            source = kind.array.ptr_to([T.Cast("int64", sources[at])])
            if there is None:
                ptx.copy_async(into, source)
                continue
            with T.If(there), T.Then():
                ptx.copy_async(into, source)

    def _of_group(self, part: int, count: int) -> tuple[_Pieces, _Pieces]:
        """Emit the registers of scales and zero points of a part of a block."""
        weights = self._weights
        of_tile = weights.spec.groups * _OF_GROUP
        begin = 0 if self._group_step is None else weights.group_of(self._block[0], part) * _OF_GROUP

        def scale(number: Any) -> tuple[Any, Any]:
            tile, chunk = number // 2, number % 2
            place = tile * weights.tile_words + weights.scales_at(part) + chunk * CHUNK
            return self._tile(tile) * of_tile + begin + chunk * (2 * CHUNK), place

        def zero(tile: Any) -> tuple[Any, Any]:
            place = tile * weights.tile_words + weights.scales_at(part) + SCALE_WORDS
            return self._tile(tile) * of_tile + begin, place

        return (
            self._held("scales", "float16", weights.scales, of_tile, 2 * count, scale),
            self._held("zeros", "uint8", weights.zeros, of_tile, count, zero),
        )

    def _tile(self, number: Any) -> Any:
        tile = self._first + number
        return tile if self._exact else T.min(tile, self._weights.tiles - 1)

    def _held(self, name: str, dtype: str, array: Any, of_tile: int, count: int, places: _Places) -> _Pieces:
        """Emit the registers of ``count`` pieces that the threads share out.

        Args:
            name: of the kind.
            dtype: in which it is read.
            array: it comes from.
            of_tile: how many of ``dtype`` a tile has there.
            count: how many pieces the tiles and the block have.
            places: of a piece.
        """
        length = T.int64(self._weights.tiles * of_tile)
        flat = IRBuilder.name(f"all_{name}", T.decl_buffer((length,), dtype, data=array.data))
        held = -(-count // self._threads)
        sources, into = local(f"{name}_from", held, "int32"), local(f"{name}_to", held, "int32")
        there: list[Any] = []
        for at, first in enumerate(range(0, count, self._threads)):
            source, place = places(first + self._thread)
            T.buffer_store(sources, source, [at])
            T.buffer_store(into, place, [at])
            there.append(None if first + self._threads <= count else self._thread < count - first)
        return _Pieces(flat, sources, into, there)


def _move(kind: _Pieces, step: int) -> None:
    for at in range(len(kind.there)):
        T.buffer_store(kind.sources, kind.sources[at] + step, [at])
