"""y[M, N] = x[M, K] @ W[N, K].T with an unquantized W: the LM head and linears left in 16 bits.

At M = 1 every byte of W is used once, so the roof is the read bandwidth: 16 weights are widened to float32 as
they are loaded and multiplied by a broadcast x[k], several blocks of 16 outputs at a time. At M > 1 a
register tile of rows x blocks does the same and aims at the FMA peak; its rows share the widening.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm import ir_attrs
from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu.epilogue import Output
from awq_tvm.schedules.cpu.vectors import LANES, Buffer, Expression, Register, lanes, splat
from awq_tvm.schedules.frame import OPAQUE
from awq_tvm.schedules.layout import DENSE_LAYOUTS
from awq_tvm.schedules.rule import DenseRule, Match, NotApplicable, Part, register_dense

if TYPE_CHECKING:
    from awq_tvm.schedules.layout import DenseLayout
    from awq_tvm.schedules.spec import DenseSpec
    from awq_tvm.targets import Target

WEIGHT_DTYPES = ("float16", "bfloat16", "float32")
LAYOUT = DENSE_LAYOUTS["dense16"]


class CpuDenseRule(DenseRule):
    """float32 activations over 16- or 32-bit weights."""

    name = "cpu.dense"
    version = 1

    def applies(self, spec: DenseSpec, target: Target) -> Match | NotApplicable:
        """See ``DenseRule.applies``."""
        if spec.dtype != "float32":
            return NotApplicable(f"activations are {spec.dtype}; the CPU kernels take float32")
        if spec.weight_dtype not in WEIGHT_DTYPES:
            return NotApplicable(f"weights are {spec.weight_dtype}")
        return Match(default_config(target))

    def layout(self, spec: DenseSpec, target: Target) -> DenseLayout:
        """See ``DenseRule.layout``."""
        return LAYOUT

    def build(self, spec: DenseSpec, target: Target, config: DenseConfig) -> tirx.PrimFunc:
        """See ``DenseRule.build``."""
        shape = spec.in_features, spec.out_features
        return build_dense_matmul(*shape, spec.weight_dtype, spec.dtype, has_bias=False, config=config)

    def space(self, spec: DenseSpec, target: Target) -> tuple[Part, ...]:
        """See ``DenseRule.space``."""
        from awq_tvm.schedules.cpu.spaces import dense_parts

        return dense_parts(spec, target, default_config(target))


@dataclass(frozen=True)
class DenseConfig:
    """How the dense kernels are tiled.

    Args:
        registers: vector registers of the target, counted in bytes / 64.
        one_row_blocks: blocks of 16 outputs that M = 1 works on at once: so many streams from memory.
        one_row_sums: independent partial sums a block.
        tile_rows: rows of x in the register tile, M > 1.
        tile_blocks: blocks of 16 outputs in the register tile.

    Raises:
        UnsupportedError: the sums do not fit the registers.
    """

    registers: int
    one_row_blocks: int
    one_row_sums: int
    tile_rows: int
    tile_blocks: int

    def __post_init__(self) -> None:
        """Prove the tile possible."""
        largest = max(self.one_row_blocks * self.one_row_sums, self.tile_rows * self.tile_blocks)
        if largest >= self.registers:
            raise UnsupportedError("The register tile does not fit", where=f"{self.registers} vectors")


def default_config(target: Target) -> DenseConfig:
    """24 of 32 zmm registers for sums, or 12 of 16 ymm, or 24 of 32 NEON registers."""
    if "avx512f" in target.features:
        return DenseConfig(registers=32, one_row_blocks=2, one_row_sums=4, tile_rows=8, tile_blocks=3)
    return DenseConfig(registers=8, one_row_blocks=1, one_row_sums=4, tile_rows=6, tile_blocks=1)


def build_dense_matmul(
    in_features: int, out_features: int, weight_dtype: str, dtype: str, has_bias: bool, config: DenseConfig
) -> tirx.PrimFunc:
    """A PrimFunc with the parameters x [M, K], weight (``LAYOUT``), bias [N] if any, y [M, N]; M is dynamic.

    Args:
        in_features: K.
        out_features: N.
        weight_dtype: "float16", "bfloat16" or "float32".
        dtype: of x, bias and y: "float32".
        has_bias: whether bias[N] is added.
        config: the tiles.

    Raises:
        UnsupportedError: a dtype that is not listed.
    """
    where = f"{out_features}x{in_features} linear"
    if weight_dtype not in WEIGHT_DTYPES:
        raise UnsupportedError(
            f"No dense CPU kernel for {weight_dtype} weights", where=where, fix=f"use one of {WEIGHT_DTYPES}"
        )
    if dtype != "float32":
        raise UnsupportedError(f"No dense CPU kernel for {dtype} activations", where=where, fix="use float32")
    blocks = -(-out_features // LANES)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("dense_matmul")
        rows = T.int64()
        x = T.match_buffer(T.arg("x", T.handle()), (rows, in_features), dtype)
        weight = T.match_buffer(T.arg("weight", T.handle()), (blocks, in_features, LANES), weight_dtype)
        bias = T.match_buffer(T.arg("bias", T.handle()), (out_features,), dtype) if has_bias else None
        y = T.match_buffer(T.arg("y", T.handle()), (rows, out_features), dtype)
        output = Output(out_features, y, bias)
        with T.If(rows == 1):
            with T.Then():
                _one_row(x, weight, output, config)
            with T.Else():
                _many_rows(x, weight, output, rows, config)
    func = builder.get()
    if func.attrs is not None and "global_symbol" in func.attrs:
        func = func.without_attr("global_symbol")
    return func.with_attrs(
        {
            "op_pattern": OPAQUE,
            ir_attrs.OP: ir_attrs.OP_DENSE_MATMUL,
            ir_attrs.LAYOUT: LAYOUT.name,
            ir_attrs.SCHEDULE: "cpu.dense",
            ir_attrs.IS_SCHEDULED: True,
        }
    )


def _widened(weight: Buffer, block: Expression, k: Expression) -> Expression:
    """weight[block, k, :] as float32x16."""
    if weight.dtype == "bfloat16":
        bits = T.cast(T.reinterpret("uint16x16", weight[block, k, lanes()]), "uint32x16")
        return T.reinterpret("float32x16", bits << splat(16, "uint32"))
    return T.cast(weight[block, k, lanes()], "float32x16")


def _one_row(x: Buffer, weight: Buffer, output: Output, config: DenseConfig) -> None:
    total_blocks, k_total = int(weight.shape[0]), int(weight.shape[1])
    at_once = min(config.one_row_blocks, total_blocks)
    sums = config.one_row_sums if k_total % config.one_row_sums == 0 else 1
    with T.parallel(0, -(-total_blocks // at_once)) as task:
        start = T.bind(T.min(task * at_once, total_blocks - at_once))
        partial = [[Register(splat(0.0)) for _ in range(sums)] for _ in range(at_once)]
        with T.serial(0, k_total // sums) as step:
            for turn in range(sums):
                k = step * sums + turn
                x_k = T.bind(splat(x[0, k]))
                for i, registers in enumerate(partial):
                    registers[turn].add_product(_widened(weight, start + i, k), x_k)
        for first, *others in partial:
            for register in others:
                first.set(first.get() + register.get())
        output.store_tile([[registers[0] for registers in partial]], 0, start)


def _many_rows(x: Buffer, weight: Buffer, output: Output, rows: Expression, config: DenseConfig) -> None:
    total_blocks, k_total = int(weight.shape[0]), int(weight.shape[1])
    at_once = min(config.tile_blocks, total_blocks)
    with T.parallel(0, -(-total_blocks // at_once)) as task:
        start = T.bind(T.min(task * at_once, total_blocks - at_once))
        with T.serial(0, T.ceildiv(rows, config.tile_rows)) as tile:
            first = T.bind(tile * config.tile_rows)
            # Rows beyond M repeat the last one and are not stored.
            source = [T.bind(T.min(first + r, rows - 1)) for r in range(config.tile_rows)]
            totals = [[Register(splat(0.0)) for _ in range(at_once)] for _ in source]
            with T.serial(0, k_total) as k:
                weights = [T.bind(_widened(weight, start + i, k)) for i in range(at_once)]
                for row, line in zip(source, totals, strict=True):
                    x_k = T.bind(splat(x[row, k]))
                    for register, value in zip(line, weights, strict=True):
                        register.add_product(value, x_k)
            output.store_tile(totals, first, start, rows - first)


for _family in ("x86", "arm"):
    register_dense(_family, CpuDenseRule())
