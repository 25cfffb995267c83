"""The counter of instructions: on listings written by hand, and on kernels."""

from __future__ import annotations

import json

import pytest

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.instructions_cpu import count, main, product_loops

ELF_ARM = """
.LBB0_1:                                // outer
    fmul v0.4s, v1.4s, v2.4s
.LBB0_2:                                // sdot in a comment counts for nothing
    ldp q0, q1, [x0], #32
    str q9, [sp, #16]                   // 16-byte Folded Spill
    sdot v2.4s, v0.16b, v4.16b
    sdot v3.4s, v1.16b, v4.16b
    .loc 1 2
    b.ne .LBB0_2
    subs x1, x1, #1
    b.ne .LBB0_1
.LBB0_3:
    str q0, [x1], #16
    b.ne .LBB0_3
"""

MACH_O = """
LBB0_2:                                 ; no loop around it
    sdot.4s v2, v0, v4
    usmmla.4s v2, v0, v4
    ldr x8, [sp, #8]
    b.lt LBB0_2
"""

X86 = """
.LBB0_2:
    vmovdqa (%rsp), %ymm3               # 32-byte Reload
    vpmaddubsw %ymm2, %ymm15, %ymm15
    vpdpbusd (%rdi), %zmm2, %zmm15
    {vex} vpdpbusd %xmm1, %xmm2, %xmm15
    jne .LBB0_2
"""


@pytest.mark.parametrize(
    ("listing", "products", "instructions", "around", "spills"),
    [
        (ELF_ARM, [("sdot", 16), ("sdot", 16)], 5, 8, 1),
        (MACH_O, [("sdot", 16), ("usmmla", 16)], 4, 4, 0),
        (X86, [("vpmaddubsw", 32), ("vpdpbusd", 64), ("vpdpbusd", 16)], 5, 5, 1),
    ],
)
def test_a_loop_is_found_and_counted(
    listing: str, products: list[tuple[str, int]], instructions: int, around: int, spills: int
) -> None:
    (loop,) = product_loops(listing)
    assert loop.products == products
    assert (len(loop.lines), len(loop.around), len(loop.spills)) == (instructions, around, spills)


def test_a_table_compares_with_the_first_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--targets", "x86-64-v3,raspberry-pi-5", "--bits", "8"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[1] for row in rows[2:]] == ["x86-64-v3"] * 3 + ["raspberry-pi-5"] * 3
    assert [row[-1] for row in rows[2:5]] == ["1.00"] * 3
    assert all(0.5 < float(row[-1]) < 1.3 for row in rows[5:])


def test_json_has_what_the_table_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--targets", "raspberry-pi-5", "--bits", "4", "--json"]) == 0
    one_row = json.loads(capsys.readouterr().out.splitlines()[0])
    # 16 outputs x 2 blocks x 64 inputs of half a byte; at least a load and two dot products for 16 bytes.
    assert (one_row["rows"], one_row["product"], one_row["group_bytes"]) == (1, "sdot", 1024)
    assert (
        3 / 16 < one_row["inner"] / one_row["inner_bytes"] < one_row["group"] / one_row["group_bytes"] < 0.6
    )


def test_a_target_without_integer_kernels_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="integer kernels"):
        count(MatmulSpec(64, 16, 4, 32, "float32", activations="int8"), resolve("raspberry-pi-4"))
