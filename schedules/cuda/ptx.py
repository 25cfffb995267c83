"""The PTX instructions that the tensor-core kernels are made of, each as one statement of the IR.

Registers are elements of local uint32 buffers: two float16 or bfloat16, or codes. Semantics are those of the PTX ISA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

_AND_OR = 0xEA
"""The truth table of (a & b) | c."""


def mma(d: Sequence[Any], a: Sequence[Any], b: Sequence[Any], dtype: str) -> None:
    """Emit D[16, 8] += A[16, 16] @ B[16, 8] in float32: 4, 4 and 2 registers of every lane.

    Args:
        d: of D.
        a: of A.
        b: of B.
        dtype: of A and B, "float16" or "bfloat16".
    """
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    T.evaluate(T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"](*d, *a, *b, *d))


def and_or(d: Any, a: Any, mask: int, bits: int) -> None:
    """Emit d = (a & mask) | bits."""
    T.evaluate(T.ptx["lop3.b32"](d, a, T.uint32(mask), T.uint32(bits), _AND_OR))


def permute_bytes(d: Any, a: Any, b: Any, selector: int) -> None:
    """Emit d = the bytes of b:a that the four nibbles of ``selector`` pick, lowest first; b may be a number."""
    other = T.uint32(b) if isinstance(b, int) else b
    T.evaluate(T.ptx["prmt.b32"](d, a, other, T.uint32(selector)))


def subtract_halves(d: Any, a: Any, b: Any) -> None:
    """Emit d = a - b of two float16 each."""
    T.evaluate(T.ptx["sub.f16x2"](d, a, b))


def fma_halves(d: Any, a: Any, b: Any, c: Any) -> None:
    """Emit d = a * b + c of two float16 each, rounded once."""
    T.evaluate(T.ptx["fma.rn.f16x2"](d, a, b, c))


def multiply_halves(d: Any, a: Any, b: Any) -> None:
    """Emit d = a * b of two float16 each."""
    T.evaluate(T.ptx["mul.f16x2"](d, a, b))


def fma_bfloats(d: Any, a: Any, b: Any, c: Any) -> None:
    """Emit d = a * b + c of two bfloat16 each, rounded once."""
    T.evaluate(T.ptx["fma.rn.bf16x2"](d, a, b, c))


def pack_bfloats(d: Any, low: Any, high: Any) -> None:
    """Emit d = two float32 rounded to bfloat16."""
    T.evaluate(T.ptx["cvt.rn.bf16x2.f32"](d, high, low))


def pack_halves(d: Any, low: Any, high: Any) -> None:
    """Emit d = two float32 rounded to float16."""
    T.evaluate(T.ptx["cvt.rn.f16x2.f32"](d, high, low))


def pack(d: Any, low: Any, high: Any, dtype: str) -> None:
    """Emit d = two float32 rounded to ``dtype``, of 16 bits."""
    (pack_bfloats if dtype == "bfloat16" else pack_halves)(d, low, high)


def exp2(d: Any, a: Any) -> None:
    """Emit d = 2^a in float32 to 22 bits, and 0 for what is below 2^-126, which ``exp2f`` tells in three more."""
    T.evaluate(T.ptx["ex2.approx.ftz.f32"](d, a))


def load_matrices(d: Sequence[Any], row: Any) -> None:
    """Emit the loads of four matrices of 8 x 8 numbers of 16 bits from shared memory.

    Args:
        d: four registers; lane l gets the numbers 2 (l % 4) and the next of row l / 4.
        row: the address of row l % 8 of matrix l / 8, 16 bytes.
    """
    T.evaluate(T.ptx["ldmatrix.sync.aligned.m8n8.x4.shared.b16"](*d, row))


def load_transposed_matrices(d: Sequence[Any], row: Any) -> None:
    """Emit ``load_matrices`` of the transposed: lane l gets rows 2 (l % 4) and the next of column l / 4."""
    T.evaluate(T.ptx["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"](*d, row))


def store(address: Any, words: Sequence[Any]) -> None:
    """Emit one store of 1, 2 or 4 registers to global memory; the compiler splits some stores of vectors."""
    vector = f".v{len(words)}" if len(words) > 1 else ""
    T.evaluate(T.ptx[f"st.global{vector}.b32"](address, *words))


def store_shared(address: Any, words: Sequence[Any]) -> None:
    """Emit a store of four registers to shared memory; TVM would put a barrier between one of its own and a read."""
    T.evaluate(T.ptx["st.shared.v4.b32"](address, *words))


def copy_async(into: Any, address: Any) -> None:
    """Emit an asynchronous copy of 16 bytes, read once, to shared memory: past the first-level cache."""
    T.evaluate(T.ptx["cp.async.cg.shared.global"](into, address, 16))


def copy_async_or_zero(into: Any, address: Any, there: Any) -> None:
    """Emit an asynchronous copy of 16 bytes that other blocks read too, or of zeros where ``there`` is false."""
    size = T.Select(there, T.uint32(16), T.uint32(0))
    T.evaluate(T.ptx["cp.async.ca.shared.global"](into, address, 16, size))


def commit_copies() -> None:
    """Emit the end of a group of asynchronous copies."""
    T.evaluate(T.ptx["cp.async.commit_group"]())


def wait_for_copies(left: int) -> None:
    """Emit a wait until at most ``left`` of this thread's newest groups of copies are under way."""
    T.evaluate(T.ptx["cp.async.wait_group"](left))


def let_next_begin() -> None:
    """Emit that the next launch may begin once every block has come here or ended, if it is one that overlaps."""
    T.evaluate(T.ptx["griddepcontrol.launch_dependents"]())


def wait_for_launches() -> None:
    """Emit a wait until all launches before have ended and what they wrote can be seen."""
    T.evaluate(T.ptx["griddepcontrol.wait"]())


def meet_cluster() -> None:
    """Emit a barrier of all threads of the cluster, after which they see each other's shared memory."""
    T.evaluate(T.ptx["barrier.cluster.arrive.release.aligned"]())
    T.evaluate(T.ptx["barrier.cluster.wait.acquire.aligned"]())


def map_shared(d: Any, address: Any, block: Any) -> None:
    """Emit d = the address in another block's shared memory of what lies at ``address`` in one's own.

    Args:
        d: a register.
        address: in a register.
        block: of the cluster.
    """
    T.evaluate(T.ptx["mapa.shared::cluster.u32"](d, address, T.Cast("uint32", block)))


def load_mapped(d: Sequence[Any], address: Any) -> None:
    """Emit a load of 1, 2 or 4 float32 from another block's shared memory; see ``map_shared``."""
    vector = f".v{len(d)}" if len(d) > 1 else ""
    T.evaluate(T.ptx[f"ld.shared::cluster{vector}.f32"](*d, address))


def sync_warp() -> None:
    """Emit a barrier of the warp's lanes, after which they see each other's shared memory."""
    T.evaluate(T.cuda.warp_sync())
