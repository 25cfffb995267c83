"""Counts of the benchmark for GPUs: by arithmetic, from listings of machine code, and what they say of a time."""

from __future__ import annotations

import dataclasses

import pytest

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.schedules.cuda.defaults import default_config
from awq_tvm.schedules.cuda.hopper_config import default_hopper_config
from awq_tvm.schedules.spec import MatmulSpec
from benchmarks.gpu import prediction
from benchmarks.gpu.count_table import blocks_of_sm
from benchmarks.gpu.counts import counts_of, weight_bytes
from benchmarks.gpu.machine_code import MachineCode, read_listing
from benchmarks.gpu.pack import OURS, Case


def test_counts_are_what_arithmetic_says() -> None:
    spec = MatmulSpec(4096, 4096, 4, 128, "float16")
    weights = weight_bytes(spec, "mma_fragments")
    assert weights == 4096 * 4096 // 2 + 3 * 4096 * 32
    config = default_config(spec, 132, 227 << 10)
    one = counts_of(spec, "mma_fragments", config, 1, [Launch("a", (), (128, 1, 1), (256, 1, 1), 0)])
    assert one["copied_bytes"] == weights + 128 * 8192 + 8192
    assert one["products"] == one["floor_products"] == 256 * 256
    assert one["rounds"] == 128 * 64
    # 32 tiles of 128 outputs in four parts; 17 tokens of 32.
    both = [Launch("b", (), (128, 1, 1), (256, 1, 1), 0), Launch("c", (), (4, 32, 1), (128, 1, 1), 0)]
    some = counts_of(spec, "mma_fragments", config, 17, both)
    assert some["copied_bytes"] == weights + 32 * 32 * 8192 + 2 * 4 * 17 * 4096 * 4 + 17 * 8192
    assert (some["products"], some["floor_products"]) == (256 * 256 * 4, 256 * 256 * 3)
    assert (some["blocks"], some["parts"], some["launches"]) == (128, 4, 2)
    assert (some["whole"], some["rest"], some["tile_steps"], some["most_steps"]) == (0, 32, 32 * 64, 16)
    # 32 x 16 tiles of 128 x 128, of eight warps that go through 64 blocks of k two at a time.
    whole = counts_of(spec, "mma_fragments", config, 2048, [Launch("e", (), (512, 1, 1), (256, 1, 1), 0)])
    assert (whole["rounds"], whole["products"]) == (512 * 32 * 8, whole["floor_products"])
    # 16 x 16 tiles of 256 outputs and 128 tokens, each of eight warps: 64 times the products of 16 x 128 x 16.
    hopper = default_hopper_config(spec, 132, 227 << 10)
    many = counts_of(spec, "mma_fragments", hopper, 2048, [Launch("d", (), (256, 1, 1), (256, 1, 1), 0)])
    assert many["copied_bytes"] == 16 * weights + 256 * 128 * 8192 + 2048 * 8192
    assert (many["rounds"], many["warps"]) == (256 * 64 * 8, 8)
    assert many["products"] == many["floor_products"] == 256 * 256 * 256


def test_a_last_round_of_few_tiles_counts_as_its_longest_part() -> None:
    spec = MatmulSpec(4096, 11008, 4, 128, "float16")
    config = default_hopper_config(spec, 132, 227 << 10)
    launches = [
        Launch("a", (), (132 + 40 * 3, 1, 1), (256, 1, 1), 0),
        Launch("b", (), (32, 40, 1), (128, 1, 1), 0),
    ]
    # 43 x 4 tiles of 256 x 128, of which 40 are divided in three parts, of 21 or 22 blocks of k.
    found = counts_of(spec, "mma_fragments", config, 512, launches)
    assert (found["whole"], found["rest"], found["parts"]) == (132, 40, 3)
    assert (found["tile_steps"], found["most_steps"]) == (172 * 64, 64 + 22)
    sums = 2 * 4 * 3 * 40 * 256 * 128
    weights = weight_bytes(spec, "mma_fragments")
    assert found["copied_bytes"] == 4 * weights + 172 * 128 * 8192 + sums + 512 * 11008 * 2
    # Tokens that are not there have no sums: the last columns have four tiles each, one of them of a single token.
    fewer = counts_of(spec, "mma_fragments", config, 385, launches)
    assert found["copied_bytes"] - fewer["copied_bytes"] == 10 * 127 * 256 * 3 * 8 + 127 * 11008 * 2


def test_bounds_are_what_arithmetic_says() -> None:
    """256 tiles on 132 SMs: two rounds of 64 steps, in each of which tensor cores take 1,024 cycles."""
    spec = MatmulSpec(4096, 4096, 4, 128, "float16")
    launches = (Launch("d", (), (256, 1, 1), (256, 1, 1), 0),)
    counts = counts_of(spec, "mma_fragments", default_hopper_config(spec, 132, 227 << 10), 2048, launches)
    code = {
        "instructions": 1000,
        "loop_instructions": 300,
        "loop_matrix": 8,
        "loop_products": 128,
        "registers": 212,
    }
    case = Case(
        OURS,
        dataclasses.asdict(spec),
        "mma_fragments",
        "sm_90",
        132,
        "",
        "",
        {2048: launches},
        {},
        (2048,),
        {"d": code},
        {2048: counts},
    )
    h100 = prediction.MACHINES["sm_90"]
    found = prediction.predict(case, 2048, h100)
    assert found.multiplying == 2 * 64 * 1024
    assert found.issuing == 2 * (64 * 8 * 300 + 8 * 700) / 4
    assert found.reading * h100.read / h100.hertz == pytest.approx(counts["floor_bytes"])
    assert found.roof == 2048 * 4096 * 4096 / 2048 / 132
    assert found.cycles == max(found.caching, found.multiplying)
    by_mma = prediction.predict(dataclasses.replace(case, rounds_weights_at=()), 2048, h100)
    assert by_mma.multiplying == pytest.approx(found.multiplying / h100.of_mma)
    few = dataclasses.replace(found, multiplying=found.roof / 2, caching=0.0, issuing=0.0, reading=0.0)
    assert few.times_the_roof() == 2
    assert 1 < few.times_the_roof(1e-5) < 2
    assert few.times_the_roof(1e-5, overlap=True) == few.times_the_roof(1e-5)
    hidden = dataclasses.replace(few, overlapping=few.launches)
    assert hidden.times_the_roof(1e-5, overlap=True) == pytest.approx(2 + 2 * 1e-5 * few.hertz / few.roof)


def test_blocks_that_an_sm_has_room_for() -> None:
    launch = Launch("a", (), (1, 1, 1), (256, 1, 1), 83456)
    assert blocks_of_sm("sm_90", launch, {"registers": 172, "shared_bytes": 0}) == 1
    assert blocks_of_sm("sm_90", launch, {"registers": 128, "shared_bytes": 0}) == 2
    assert blocks_of_sm("sm_86", launch, {"registers": 32, "shared_bytes": 0}) == 1
    small = dataclasses.replace(launch, shared_bytes=0)
    assert blocks_of_sm("sm_90", small, {"registers": 32, "shared_bytes": 0}) == 8
    assert blocks_of_sm("sm_86", small, {"registers": 32, "shared_bytes": 0}) == 6


LISTING = """
	.section	.text.first,"ax",@progbits
.text.first:
        /*0000*/                   LDGSTS.E.BYPASS.128 [R1], [R2.64] ;
        /*0010*/                   LDGSTS.E [R1], [R2.64] ;
.L_x_0:
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32 R4, R4, R16, RZ ;
        /*0040*/                   HMMA.16816.F32 R4, R4, R16, R4 ;
        /*0050*/              @!P0 BRA `(.L_x_1) ;
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   HMMA.16816.F32 R4, R4, R16, R4 ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   BRA `(.L_x_2);
        /*00a0*/                   NOP;
.text.second:
        /*0000*/                   EXIT ;
.text.third:
.L_x_3:
        /*0000*/                   HGMMA.64x128x16.F32 R24, R88, gdesc[UR4], R24, gsb0 ;
        /*0010*/                   HGMMA.64x256x16.F32 R24, R88, gdesc[UR4], R24, gsb0 ;
        /*0020*/               @P1 BRA `(.L_x_3) ;
"""


def test_the_innermost_loop_with_most_products_is_counted() -> None:
    found = read_listing(LISTING)
    assert found["first"].counts() == {
        "instructions": 9,
        "matrix": 3,
        "copies": 2,
        "copies_16": 1,
        "loop_instructions": 3,
        "loop_matrix": 2,
        "loop_products": 2,
    }
    assert found["first"].loop == ("HMMA.16816.F32", "HMMA.16816.F32", "BRA")
    assert found["first"].count("LDGSTS", "EXIT") == 3
    assert found["second"] == MachineCode(("EXIT",), ())
    # A warp's share of a warpgroup's product: 16 outputs.
    assert {name: found["third"].counts()[f"loop_{name}"] for name in ("matrix", "products")} == {
        "matrix": 2,
        "products": 16 + 32,
    }
