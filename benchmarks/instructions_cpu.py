"""Count the instructions of the integer kernels for CPUs in the assembly that LLVM writes: no such CPU is needed.

    python -m benchmarks.instructions_cpu
    python -m benchmarks.instructions_cpu --targets x86-64-v3,graviton-3 --bits 4,8 --group-size 128 --json

For each kernel of a linear (M = 1, few rows, many rows): the instructions of its inner loop, and how many the whole
of a group takes, with scales, zero points and prefetches, for one byte of codes; then code times activation products
for an instruction of the group, and how many times the first target's instructions that is. Where a group is decoded
once for many tiles of rows, its decoding is left out. Instructions are not cycles, but where a loop neither waits for
memory nor spills, a core takes as many of them in a cycle as it is wide.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import tvm
from tvm import tirx

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.cpu.dot_matmul import DotConfig, Tile
from awq_tvm.schedules.cpu.plane_codes import planes
from awq_tvm.schedules.cpu.vectors import LANES
from awq_tvm.schedules.rule import Unserved, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve

TARGETS = (
    "x86-64-v3",
    "x86-64-v4",
    "x86-64-v4-vnni",
    "raspberry-pi-5",
    "graviton-2",
    "graviton-3",
    "apple-m1-cpu",
)
SIZE = 1536
"""K and N: so many that LLVM keeps the loops."""

_PRODUCT = re.compile(r"(?:\{vex\}\s+)?(sdot|usdot|usmmla|vpmaddubsw|vpdpbusd)(?:\.4s)?\s.*?([xyz]mm\d+$|$)")
_LABEL = re.compile(r"(\.?L\w+):")
_BRANCH = re.compile(r"(?:b\.\w+|b|cbn?z|tbn?z|j\w+)\s.*?(\.?L\w+)$")
_SPILL = re.compile(r"(?:st|ld)u?[rp]\s+q.*\[sp|v?mov[a-z]+\s.*\(%rsp.*mm|v?mov[a-z]+\s.*mm.*\(%rsp")


@dataclass(frozen=True)
class Loop:
    """An innermost loop.

    Attributes:
        lines: its instructions.
        around: those of the loop around it, its own among them.
    """

    lines: tuple[str, ...]
    around: tuple[str, ...]

    @property
    def products(self) -> list[tuple[str, int]]:
        """The instructions that multiply codes: name, and bytes of codes that it takes."""
        found = (_PRODUCT.match(line) for line in self.lines)
        return [(match[1], {"y": 32, "z": 64}.get(match[2][:1], 16)) for match in found if match]

    @property
    def spills(self) -> list[str]:
        """The moves of vectors to and from the stack."""
        return [line for line in self.lines if _SPILL.match(line)]


def product_loops(assembly: str, product: re.Pattern[str] = _PRODUCT) -> list[Loop]:
    """The innermost loops that have an instruction like this, in the order of the listing, of ELF or Mach-O."""
    lines = [re.split(r"//|;|#(?= )", line)[0].strip() for line in assembly.splitlines()]
    labels = {found[1]: i for i, line in enumerate(lines) if (found := _LABEL.match(line))}
    spans = sorted(
        (labels[found[1]], i)
        for i, line in enumerate(lines)
        if (found := _BRANCH.match(line)) and labels.get(found[1], i) < i
    )
    loops = []
    for start, end in spans:
        innermost = not any((start, end) != span and start <= span[0] and span[1] <= end for span in spans)
        if not innermost or not any(map(product.match, lines[start:end])):
            continue
        outer = [span for span in spans if span[0] < start and end < span[1]]
        first, last = min(outer, key=lambda span: span[1] - span[0], default=(start, end))
        loops.append(Loop(_instructions(lines[start : end + 1]), _instructions(lines[first : last + 1])))
    return loops


def _instructions(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line for line in lines if re.match(r"[a-z{]", line))


@dataclass(frozen=True)
class Count:
    """What one kernel costs.

    Attributes:
        target: its name.
        bits: of a code.
        rows: of x that its tile has.
        product: the instruction that multiplies.
        inner: instructions of the inner loop.
        inner_bytes: of codes that a pass of the inner loop takes.
        group: instructions of a whole group, with the scales, zero points and sums.
        group_bytes: of codes that a group has, for all outputs of the tile.
        group_codes: how many codes these are.
        spills: vectors moved to or from the stack in the inner loop.
    """

    target: str
    bits: int
    rows: int
    product: str
    inner: int
    inner_bytes: int
    group: int
    group_bytes: int
    group_codes: int
    spills: int

    @property
    def inner_per_byte(self) -> float:
        """Instructions of the inner loop for one byte of codes."""
        return self.inner / self.inner_bytes

    @property
    def group_per_byte(self) -> float:
        """Instructions of a group for one byte of codes."""
        return self.group / self.group_bytes

    @property
    def products(self) -> float:
        """Codes times rows for an instruction of a group."""
        return self.rows * self.group_codes / self.group


def assembly_of(func: tirx.PrimFunc, target: Target, rows: int | None = None) -> str:
    """The listing of a linear's kernels, or of what is left of them at one M."""
    if rows is not None:
        x = func.params[0].ty
        fixed = tirx.decl_buffer((tirx.IntImm("int64", rows), *x.shape[1:]), x.dtype)
        func = func.specialize({func.params[0]: fixed})
    module = tvm.IRModule({"kernel": func.with_attr("global_symbol", "kernel")})
    listing: str = tvm.compile(module, target=tvm.target.Target(target.tvm_target)).mod.inspect_source("asm")
    return listing


def kernels_of(spec: MatmulSpec, target: Target) -> tuple[tirx.PrimFunc, DotConfig]:
    """The integer kernels for a linear, and their tiles.

    Raises:
        UnsupportedError: the target has no integer kernels for it.
    """
    chosen = select(spec, target)
    config = getattr(chosen.match, "config", None) if not isinstance(chosen, Unserved) else None
    if isinstance(chosen, Unserved) or not isinstance(config, DotConfig):
        raise UnsupportedError(f"{target.name} has no integer kernels for this linear", where=spec.to_json())
    return chosen.rule.build(spec, target, config), config


def full_tiles(spec: MatmulSpec, target: Target, config: DotConfig) -> list[tuple[int | None, Tile]]:
    """M that a kernel computes by tiles of its full size alone: one row, few, many, and many that are not decoded."""
    few, many = config.few_rows, config.many_rows
    if config.matrix:
        # LLVM would unroll the loop if it knew M; it is the only one of its kind, and the last.
        return [(1, config.one_row), (few.rows, few), (None, many)]
    found: list[tuple[int | None, Tile]] = [(1, config.one_row), (few.rows, few), (config.rows_at_once, many)]
    if spec.bits <= 4 and config.decode_once_from > 1 and not planes(spec, target):
        found.append(((config.decode_once_from - 1) // many.rows * many.rows, many))
    return found


def bits_in_memory(spec: MatmulSpec, target: Target) -> int:
    """Bits that the layout for the target spends on a code."""
    chosen = select(spec, target)
    assert not isinstance(chosen, Unserved)
    codes = chosen.rule.layout(spec, target).arrays(spec)[0]
    return 8 * math.prod(codes.shape) // (-(-spec.out_features // 32) * 32 * spec.in_features)


def count(spec: MatmulSpec, target: Target) -> list[Count]:
    """The kernels for M = 1, for few and for many rows; two of the last, if it depends on their number what they do.

    Raises:
        UnsupportedError: the target has no integer kernels for it.
    """
    func, config = kernels_of(spec, target)
    found = []
    for rows, tile in full_tiles(spec, target, config):
        *_, loop = product_loops(assembly_of(func, target, rows))
        found.append(_count(loop, tile, spec, target, config.planes))
    return found


def _count(loop: Loop, tile: Tile, spec: MatmulSpec, target: Target, digits: int) -> Count:
    product = loop.products[0][0]
    # A matrix instruction multiplies its codes with two rows, any other with one.
    uses = digits * tile.rows // (2 if product == "usmmla" else 1)
    code_bits = bits_in_memory(spec, target)
    inner_bytes = sum(size for _, size in loop.products) * code_bits // 8 // uses
    group_bytes = spec.group_size * LANES * tile.blocks * code_bits // 8
    inner = len(loop.lines)
    # An inner loop that takes a whole group has none around it that belongs to the group.
    more = 0 if inner_bytes == group_bytes else len(loop.around) - inner
    group = inner * (group_bytes // inner_bytes) + more
    return Count(
        target.name,
        spec.bits,
        tile.rows,
        product,
        inner,
        inner_bytes,
        group,
        group_bytes,
        spec.group_size * LANES * tile.blocks,
        len(loop.spills),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=",".join(TARGETS), help="names, the one to compare with first")
    parser.add_argument("--bits", default="4,8", help="widths of a code")
    parser.add_argument("--group-size", type=int, default=64, help="inputs that share a scale")
    parser.add_argument("--activations", choices=("int8", "float"), default="int8", help="one digit or three")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    arguments = parser.parse_args(argv)
    if not arguments.json:
        print(
            "| bits | target | rows | by | inner loop | for bytes | a byte | group, a byte | products | times |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
    for bits in map(int, arguments.bits.split(",")):
        spec = MatmulSpec(
            SIZE, SIZE, bits, arguments.group_size, "float32", activations=arguments.activations
        )
        first: list[Count] = []
        for name in arguments.targets.split(","):
            counts = count(spec, resolve(name))
            first = first or counts
            for i, found in enumerate(counts):
                base = first[min(i, len(first) - 1)]
                print(json.dumps(asdict(found)) if arguments.json else _row(found, base))
    return 0


def _row(found: Count, base: Count) -> str:
    cells = (
        found.bits,
        found.target,
        found.rows,
        found.product + (f", {found.spills} spilled" if found.spills else ""),
        found.inner,
        found.inner_bytes,
        f"{found.inner_per_byte:.2f}",
        f"{found.group_per_byte:.2f}",
        f"{found.products:.1f}",
        f"{base.products / found.products:.2f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
