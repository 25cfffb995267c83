"""What the operating system says of a CPU, turned into a target."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from awq_tvm.errors import TargetError, UsageError
from awq_tvm.targets import detect, resolve, with_host_here
from awq_tvm.targets.detection import common_flags, describe_apple_cpu, describe_linux_cpu, read_caches

V2 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = f"{V2} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
CACHES = {"l1_bytes": 48 * 2**10, "l2_bytes": 2**20, "l3_bytes": 2**25}


def x86_cpuinfo(*flags_per_core: str) -> str:
    return "\n".join(f"processor\t: {n}\nflags\t\t: fpu {flags}\n" for n, flags in enumerate(flags_per_core))


@pytest.mark.parametrize(
    ("flags", "name", "mattr", "activations"),
    [
        (V2, "host-x86-64-v2", [], "float"),
        (V3, "host-x86-64-v3", [], "int8"),
        (f"{V3} avx_vnni", "host-x86-64-v3", ["+avxvnni"], "int8"),
        (V4, "host-x86-64-v4", [], "int8"),
        (
            f"{V4} avx512_vnni avx512_bf16 avx512vbmi",
            "host-x86-64-v4",
            ["+avx512bf16", "+avx512vbmi", "+avx512vnni"],
            "int8",
        ),
        # A hypervisor that masks a part of AVX-512 leaves none of it.
        (f"{V3} avx512f avx512_vnni", "host-x86-64-v3", [], "int8"),
    ],
)
def test_x86_levels(flags: str, name: str, mattr: list[str], activations: str) -> None:
    target = describe_linux_cpu("x86_64", x86_cpuinfo(flags, flags), cores=2, caches=CACHES)
    assert (target.name, target.tvm_target["mattr"], target.default_activations) == (name, mattr, activations)
    assert (target.l1_bytes, target.l2_bytes, target.l3_bytes) == (48 * 2**10, 2**20, 2**25)
    assert target.cores == target.tvm_target["num-cores"] == 2
    assert {word[1:] for word in mattr} <= target.features


def test_unknown_caches_stay_unknown() -> None:
    target = describe_linux_cpu("x86_64", x86_cpuinfo(V3), cores=1, caches={})
    assert (target.l1_bytes, target.l2_bytes, target.l3_bytes) == (None, None, None)


def test_only_what_every_core_has_counts() -> None:
    target = describe_linux_cpu("x86_64", x86_cpuinfo(f"{V3} avx_vnni", V3), cores=2, caches={})
    assert "avxvnni" not in target.features


def test_an_x86_cpu_below_v2_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(TargetError, match="lacks popcnt"):
        describe_linux_cpu("x86_64", x86_cpuinfo(V2.replace("popcnt", "")), cores=1, caches={})


def test_arm_features() -> None:
    features = "fp asimd atomics fphp asimdhp asimdrdm asimddp i8mm bf16"
    cpuinfo = f"processor\t: 0\nFeatures\t: {features}\nCPU part\t: 0xd40\n"
    target = describe_linux_cpu("aarch64", cpuinfo, cores=8, caches={})
    assert target.features == {"neon", "lse", "fullfp16", "rdm", "dotprod", "i8mm", "bf16"}
    assert target.tvm_target["mattr"] == ["+bf16", "+dotprod", "+fullfp16", "+i8mm", "+lse", "+neon", "+rdm"]
    assert target.default_activations == "int8"
    old = describe_linux_cpu("aarch64", "Features : fp asimd", cores=4, caches={})
    assert (old.features, old.default_activations) == ({"neon"}, "float")


def test_apple_chips() -> None:
    target = describe_apple_cpu("Apple M3 Pro\n", 6)
    assert (target.name, target.mcpu, target.cores) == ("host-apple-m3-pro", "apple-m3", 6)
    assert "i8mm" in target.features
    with pytest.raises(TargetError, match="Apple Z9"):
        describe_apple_cpu("Apple Z9", 6)


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", ""])
def test_other_machines_are_refused(machine: str) -> None:
    with pytest.raises(TargetError, match=f"Linux on {machine}"):
        describe_linux_cpu(machine, x86_cpuinfo(V4), cores=1, caches={})


def test_another_operating_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with pytest.raises(TargetError, match="Windows on"):
        detect()


def test_a_gpu_called_from_this_machine() -> None:
    metal = resolve("metal")
    here = with_host_here(metal)
    assert here.host == {"kind": "llvm", "mtriple": detect().tvm_target["mtriple"]}
    assert {**here.as_dict(), "host": None, "fingerprint": None} == {
        **metal.as_dict(),
        "host": None,
        "fingerprint": None,
    }
    with pytest.raises(UsageError, match="graviton-3 is a CPU"):
        with_host_here(resolve("graviton-3"))


@pytest.mark.parametrize("text", ["", "processor : 0\n", "flagship : a b\n"])
def test_a_cpuinfo_without_flags_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="no line 'flags'"):
        common_flags(text, "flags")


@pytest.mark.skipif(platform.system() != "Linux", reason="reads Linux's own account of the CPU")
def test_a_machine_without_cpuinfo_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_tvm.targets.detection.CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(TargetError, match="No such file"):
        detect()


def write_cache(folder: Path, index: int, kind: str, level: str, size: str | None) -> None:
    (folder / f"index{index}").mkdir(parents=True)
    (folder / f"index{index}" / "type").write_text(f"{kind}\n")
    (folder / f"index{index}" / "level").write_text(f"{level}\n")
    if size is not None:
        (folder / f"index{index}" / "size").write_text(f"{size}\n")


def test_cache_sizes(tmp_path: Path) -> None:
    write_cache(tmp_path, 0, "Data", "1", "48K")
    write_cache(tmp_path, 1, "Instruction", "1", "32K")
    write_cache(tmp_path, 2, "Unified", "2", "1M")
    write_cache(tmp_path, 3, "Unified", "3", None)
    write_cache(tmp_path, 4, "Unified", "4", "1G")
    assert read_caches(tmp_path) == {"l1_bytes": 49152, "l2_bytes": 2**20}
    assert read_caches(tmp_path / "absent") == {}


@pytest.mark.parametrize("size", ["", "K", "-1K", "big", "0"])
def test_a_cache_size_that_is_none_is_left_out(tmp_path: Path, size: str) -> None:
    write_cache(tmp_path, 0, "Data", "1", size)
    assert read_caches(tmp_path) == {}


@pytest.mark.skipif(platform.system() != "Linux", reason="reads Linux's own account of the CPU")
def test_this_machine() -> None:
    target = detect()
    assert target.cores == len(os.sched_getaffinity(0))
    assert target.family == {"x86_64": "x86", "aarch64": "arm"}[platform.machine()]
    assert target == detect()
