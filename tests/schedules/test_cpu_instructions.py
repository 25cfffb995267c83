"""The CPU kernels' inner loops: the instructions meant, nothing spilled, and how many for a byte of codes."""

from __future__ import annotations

import re
from functools import cache

import pytest
import tvm

from awq_tvm.schedules.rule import select
from awq_tvm.targets import Target, resolve
from awq_tvm.targets.detection import describe_linux_cpu
from benchmarks.instructions_cpu import Count, count, product_loops
from tests.support import cpu_kernels

# Large enough that LLVM keeps the loops.
N = K = 576
LINUX_WITH_I8MM = "Features : fp asimd atomics fphp asimdhp asimdrdm asimddp asimdfhm i8mm bf16"


def described(name: str) -> Target:
    if name == "host":
        return describe_linux_cpu("aarch64", LINUX_WITH_I8MM, cores=4, caches={})
    return resolve(name)


def again(*values: object) -> object:
    """A core for which LLVM orders the instructions of another case otherwise: left to slow runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


@cache
def counts(name: str, activations: str, bits: int, group_size: int = 64) -> list[Count]:
    return count(cpu_kernels.spec_of(N, K, group_size, bits, activations=activations), described(name))


@pytest.mark.parametrize(
    ("name", "activations", "few_rows", "many_rows"),
    [
        ("raspberry-pi-5", "int8", "sdot", "sdot"),
        ("raspberry-pi-5", "float", "sdot", "sdot"),
        ("apple-m1-cpu", "int8", "sdot", "sdot"),
        again("graviton-2", "int8", "sdot", "sdot"),
        ("graviton-3", "int8", "usdot", "usmmla"),
        ("graviton-3", "float", "usdot", "usmmla"),
        again("graviton-4", "int8", "usdot", "usmmla"),
        again("snapdragon-8-gen-2", "int8", "usdot", "usmmla"),
        again("snapdragon-x", "int8", "usdot", "usmmla"),
        ("apple-m2-cpu", "int8", "usdot", "usmmla"),
        ("host", "int8", "usdot", "usmmla"),
        ("x86-64-v3", "int8", "vpmaddubsw", "vpmaddubsw"),
        ("x86-64-v4-vnni", "int8", "vpdpbusd", "vpdpbusd"),
    ],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_inner_loop_has_the_instruction_meant_and_spills_nothing(
    name: str, activations: str, few_rows: str, many_rows: str, bits: int
) -> None:
    found = counts(name, activations, bits)
    assert [kernel.product for kernel in found[:2]] == [few_rows, few_rows]
    assert {kernel.product for kernel in found[2:]} == {many_rows}
    assert not any(kernel.spills for kernel in found)


WIDTHS = ((3, 64), (4, 32), (4, 64), (8, 32), (8, 64))


@pytest.mark.parametrize(
    ("name", "bits", "group_size"),
    [(name, *width) for name in ("raspberry-pi-5", "graviton-3") for width in WIDTHS]
    + [again(name, *width) for name in ("graviton-2", "apple-m1-cpu", "host") for width in WIDTHS],
)
def test_arm_takes_hardly_more_instructions_for_a_byte_than_avx2(
    name: str, bits: int, group_size: int
) -> None:
    """Inner loop and whole group, for one row and for a tile of few."""
    arm, avx2 = (counts(target, "int8", bits, group_size)[:2] for target in (name, "x86-64-v3"))
    for ours, theirs in zip(arm, avx2, strict=True):
        assert ours.rows == theirs.rows
        assert ours.inner_per_byte <= 1.3 * theirs.inner_per_byte
        assert ours.group_per_byte <= 1.3 * theirs.group_per_byte


@pytest.mark.parametrize("name", ["raspberry-pi-5", "graviton-3"])
def test_codes_of_8_bits_are_multiplied_as_they_are_loaded(name: str) -> None:
    """For 512 bytes of codes: 16 loads of two registers, 32 dot products, 8 requests ahead, one load of x."""
    one_row = counts(name, "int8", 8)[0]
    assert one_row.inner_bytes == 512
    assert one_row.inner <= 16 + 32 + 8 + 1 + 8


@pytest.mark.parametrize("name", ["raspberry-pi-5", "graviton-3"])
def test_nibbles_of_a_tile_share_one_load_of_x_for_16_k(name: str) -> None:
    """For 128 bytes of codes and 4 rows: 4 loads of codes, 16 to decode, 64 products, 4 loads of x, 2 requests."""
    few_rows = counts(name, "int8", 4)[1]
    assert (few_rows.inner_bytes, few_rows.rows) == (128, 4)
    assert few_rows.inner <= 4 + 16 + 64 + 4 + 2 + 8


@pytest.mark.parametrize(
    "name", ["host", "graviton-3", "apple-m2-cpu", again("graviton-4"), again("snapdragon-x")]
)
def test_matrix_instructions_multiply_what_was_decoded_before(name: str) -> None:
    """Beside 24 products: 4 loads of two registers of codes, 3 of rows, and what ends the loop."""
    for bits in (4, 8):
        many_rows = counts(name, "int8", bits)[2]
        assert (many_rows.rows, many_rows.inner_bytes) == (6, 8 * 16 * bits // 8)
        assert many_rows.inner <= 24 + 7 + 4
        assert many_rows.products > 1.3 * counts("raspberry-pi-5", "int8", bits)[2].products


@pytest.mark.parametrize("bits", [2, 3])
def test_bit_planes_are_read_in_as_many_bits_and_spill_nothing(bits: int) -> None:
    """On AVX-512; with many rows they are decoded before, for hardly more instructions than 4 bits take."""
    planes, nibbles = (counts("x86-64-v4-vnni", "int8", width) for width in (bits, 4))
    assert planes[0].group_bytes == nibbles[0].group_bytes * bits // 4
    assert [kernel.spills for kernel in planes] == [0, 0, 0]
    assert planes[0].products > 0.7 * nibbles[0].products
    assert planes[2].products > 0.95 * nibbles[2].products


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_many_rows_of_sdot_find_nibbles_decoded(activations: str) -> None:
    few_rows, many_rows = counts("raspberry-pi-5", activations, 4)[1:]
    assert many_rows.rows == few_rows.rows
    assert many_rows.inner_per_byte < 0.86 * few_rows.inner_per_byte


def test_plain_neon_multiplies_floats_without_spills() -> None:
    target = resolve("raspberry-pi-4")
    rule, match = select(spec := cpu_kernels.spec_of(N, K, 64), target)
    func = rule.build(spec, target, match.config).with_attr("global_symbol", "kernel")
    built = tvm.compile(tvm.IRModule({"kernel": func}), target=tvm.target.Target(target.tvm_target))
    loops = product_loops(built.mod.inspect_source("asm"), re.compile(r"fmla\s"))
    inner = [loop for loop in loops if sum("fmla" in line for line in loop.lines) >= 8]
    assert len(inner) >= 2
    assert not [loop.spills for loop in inner if loop.spills]
