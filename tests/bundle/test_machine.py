from __future__ import annotations

import platform

import pytest

from awq_tvm.bundle import machine

X86 = """processor\t: 0
flags\t\t: fpu pni sse4_1 sse4_2 avx2 avx512f avx512_vnni avx512_bf16 bmi1 abm sha_ni

processor\t: 1
flags\t\t: fpu pni sse4_1 sse4_2 avx2 avx512f bmi1 abm
"""
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm bf16 atomics sve2\nCPU part : 0xd40\n"


def test_x86_flags_take_llvm_names_and_every_core_counts() -> None:
    both = "fpu sse3 sse4.1 sse4.2 avx2 avx512f bmi lzcnt"
    assert machine.parse_cpuinfo(X86) == set(both.split())
    one_core = machine.parse_cpuinfo(X86.split("\n\n")[0])
    assert {"avx512vnni", "avx512bf16", "sha"} <= one_core


def test_arm_features_take_llvm_names() -> None:
    assert machine.parse_cpuinfo(ARM) == {"fp-armv8", "neon", "dotprod", "i8mm", "bf16", "lse", "sve2"}


def test_unknown_cpuinfo_has_no_features() -> None:
    assert machine.parse_cpuinfo("nothing here") == frozenset()


def test_apple_sysctl() -> None:
    text = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.AdvSIMD: 1\nnoise\n"
    assert machine.parse_sysctl(text) == {"dotprod", "neon"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no baseline known")
def test_this_machine_has_its_baseline() -> None:
    baseline = {"x86_64": "sse2", "aarch64": "neon"}[platform.machine()]
    assert baseline in machine.cpu_features()


@pytest.mark.parametrize(
    ("triple", "arch", "system"),
    [
        ("x86_64-pc-linux-gnu", "x86_64", "linux"),
        ("arm64-apple-macos11", "aarch64", "darwin"),
        ("aarch64-linux-android", "aarch64", "linux"),
        ("x86_64-pc-windows-msvc", "x86_64", "windows"),
        ("aarch64", "aarch64", "unknown"),
    ],
)
def test_triples(triple: str, arch: str, system: str) -> None:
    assert machine.architecture(triple) == arch
    assert machine.operating_system(triple) == system


@pytest.mark.parametrize(
    ("needed", "found", "runs"),
    [
        ("sm_80", "sm_80", True),
        ("sm_80", "sm_86", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_90", False),
        ("sm_90a", "sm_90", True),
        ("sm_90a", "sm_100", False),
        ("sm_100", "sm_103", True),
        ("sm_120", "sm_121", True),
        ("compute_80", "sm_90", True),
        ("compute_90", "sm_86", False),
        ("compute_90a", "sm_90", False),
        ("sm_x", "sm_90", False),
        ("sm_90", "gfx942", False),
    ],
)
def test_gpu_compatibility(needed: str, found: str, runs: bool) -> None:
    assert machine.runs_on_gpu(needed, found) is runs
