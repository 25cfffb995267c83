"""Which CPU this is: read from the operating system, mapped to features that LLVM knows by name."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from awq_tvm.errors import TargetError, UsageError
from awq_tvm.targets import arm, x86
from awq_tvm.targets.description import Target

CPUINFO = Path("/proc/cpuinfo")
CPU_TREE = Path("/sys/devices/system/cpu")
SYSCTL = "/usr/sbin/sysctl"

# /proc/cpuinfo "flags" -> LLVM feature.
X86_FLAGS: Mapping[str, str] = {
    "abm": "lzcnt",
    "avx": "avx",
    "avx2": "avx2",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512vbmi": "avx512vbmi",
    "avx512vl": "avx512vl",
    "avx_vnni": "avxvnni",
    "bmi1": "bmi",
    "bmi2": "bmi2",
    "cx16": "cx16",
    "f16c": "f16c",
    "fma": "fma",
    "lahf_lm": "sahf",
    "movbe": "movbe",
    "pni": "sse3",
    "popcnt": "popcnt",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "ssse3": "ssse3",
    "xsave": "xsave",
}

# /proc/cpuinfo "Features" (the kernel's hwcap names) -> LLVM feature.
ARM_FLAGS: Mapping[str, str] = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdfhm": "fp16fml",
    "asimdhp": "fullfp16",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}


def detect() -> Target:
    """Describe the CPU this process runs on.

    Raises:
        TargetError: not Linux on x86-64 or 64-bit ARM, nor macOS on an Apple chip; or a CPU below x86-64-v2.
    """
    system, machine = platform.system(), platform.machine().lower()
    if system == "Linux":
        allowed = sorted(os.sched_getaffinity(0))
        caches = read_caches(CPU_TREE / f"cpu{allowed[0]}" / "cache")
        return describe_linux_cpu(machine, _cpuinfo(), cores=len(allowed), caches=caches)
    if system == "Darwin" and machine == "arm64":
        return describe_apple_cpu(
            _sysctl("machdep.cpu.brand_string"), int(_sysctl("hw.perflevel0.logicalcpu"))
        )
    raise _unknown_machine(f"{system} on {machine}")


def with_host_here(target: Target) -> Target:
    """A GPU whose kernels this machine calls, where the emulator is to run them, and not the one that it is in.

    Tuned records of the GPU's own machine are of another fingerprint and not found.

    Raises:
        UsageError: the target is a CPU.
        TargetError: see ``detect``.
    """
    if target.kind == "cpu":
        raise UsageError(
            "Only a GPU has a host part of its own.",
            where="--host-here",
            why=f"{target.name} is a CPU",
            fix="leave out --host-here",
        )
    triple = detect().tvm_target["mtriple"]
    return dataclasses.replace(target, host={"kind": "llvm", "mtriple": triple})


def describe_linux_cpu(machine: str, cpuinfo: str, *, cores: int, caches: Mapping[str, int]) -> Target:
    """Describe a Linux machine from what it says of itself.

    Args:
        machine: as ``uname -m`` gives it, "x86_64" or "aarch64".
        cpuinfo: the text of /proc/cpuinfo.
        cores: cores this process may run on.
        caches: bytes under "l1_bytes", "l2_bytes", "l3_bytes", those that are known.

    Raises:
        TargetError: another machine, no flags in `cpuinfo`, or a CPU below x86-64-v2.
    """
    if machine in ("x86_64", "amd64"):
        flags = common_flags(cpuinfo, "flags")
        return _describe_x86({X86_FLAGS[flag] for flag in flags if flag in X86_FLAGS}, cores, caches)
    if machine in ("aarch64", "arm64"):
        flags = common_flags(cpuinfo, "features")
        return _describe_arm({ARM_FLAGS[flag] for flag in flags if flag in ARM_FLAGS}, cores, caches)
    raise _unknown_machine(f"Linux on {machine}")


def describe_apple_cpu(brand: str, cores: int) -> Target:
    """Describe an Apple chip from its brand string, "Apple M3 Pro" say, and its number of performance cores.

    Raises:
        TargetError: the brand names no chip of the registry.
    """
    known = {target.mcpu: target for target in arm.TARGETS if target.mcpu.startswith("apple-")}
    words = brand.lower().split()
    mcpu = "-".join(words[:2])
    if mcpu not in known:
        raise _unknown_machine(f"macOS on {brand.strip()!r}")
    chip = known[mcpu]
    return arm.arm_target(
        f"host-{'-'.join(words)}",
        f"this machine: {brand.strip()}, {cores} performance cores",
        mcpu=mcpu,
        features=chip.features,
        cores=cores,
        triple=arm.MACOS_TRIPLE,
        l1_bytes=chip.l1_bytes,
        l2_bytes=chip.l2_bytes,
    )


def common_flags(cpuinfo: str, key: str) -> frozenset[str]:
    """The words that every `key` line of /proc/cpuinfo has, so that code may run on each core there is.

    Raises:
        TargetError: there is no such line.
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    per_core = [frozenset(value.split()) for name, _, value in lines if name.strip().lower() == key]
    if not per_core:
        raise TargetError(
            "This CPU does not say what it can do",
            where=str(CPUINFO),
            why=f"there is no line {key!r}",
            fix="name the target: python -m awq_tvm targets lists them",
        )
    return frozenset.intersection(*per_core)


def read_caches(folder: Path) -> dict[str, int]:
    """Data cache sizes in bytes, under "l1_bytes" to "l3_bytes", from one core's folder in /sys."""
    sizes = {}
    for index in sorted(folder.glob("index*")):
        try:
            kind, level, size = ((index / item).read_text().strip() for item in ("type", "level", "size"))
        except OSError:
            continue  # some virtual machines list a cache but not its size
        if kind in ("Data", "Unified") and level in ("1", "2", "3") and (count := _bytes(size)):
            sizes[f"l{level}_bytes"] = count
    return sizes


def _bytes(size: str) -> int | None:
    """Read a size: "48K" is 49152; None for what is no size."""
    number, unit = (size[:-1], size[-1]) if size[-1:] in ("K", "M", "G") else (size, "")
    if not number.isdecimal():
        return None
    return int(number) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]


def _describe_x86(features: Iterable[str], cores: int, caches: Mapping[str, int]) -> Target:
    found = frozenset(features)
    mcpu = next((level for level, needed in x86.LEVELS if needed <= found), None)
    if mcpu is None:
        lacking = ", ".join(sorted(x86.V2_FEATURES - found))
        raise _unknown_machine(f"an x86-64 CPU below level v2: it lacks {lacking}")
    extra = found & x86.EXTRA_FEATURES
    if mcpu != "x86-64-v4":
        # With AVX-512 masked in part, as some hypervisors do, none of it is safe to use.
        extra = frozenset(feature for feature in extra if not feature.startswith("avx512"))
    return x86.x86_target(
        f"host-{mcpu}",
        f"this machine: {mcpu} {' '.join(sorted(extra))}".rstrip() + f", {cores} cores",
        mcpu=mcpu,
        extra=extra,
        cores=cores,
        l1_bytes=caches.get("l1_bytes"),
        l2_bytes=caches.get("l2_bytes"),
        l3_bytes=caches.get("l3_bytes"),
    )


def _describe_arm(features: Iterable[str], cores: int, caches: Mapping[str, int]) -> Target:
    found = frozenset(features)
    return arm.arm_target(
        "host-aarch64",
        f"this machine: aarch64 {' '.join(sorted(found))}, {cores} cores",
        mcpu="generic",
        features=found,
        mattr=[f"+{feature}" for feature in sorted(found)],
        cores=cores,
        l1_bytes=caches.get("l1_bytes"),
        l2_bytes=caches.get("l2_bytes"),
        l3_bytes=caches.get("l3_bytes"),
    )


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TargetError(
            "This CPU does not say what it can do",
            where=str(CPUINFO),
            why=str(error),
            fix="mount /proc, or name the target: python -m awq_tvm targets lists them",
        ) from error


def _sysctl(key: str) -> str:
    return subprocess.run([SYSCTL, "-n", key], capture_output=True, text=True, check=True).stdout.strip()


def _unknown_machine(what: str) -> TargetError:
    return TargetError(
        "This machine is not one that awq_tvm compiles for by itself",
        where=what,
        why="known are Linux on x86-64-v2 and later or on 64-bit ARM, and macOS on Apple M1 to M4",
        fix="name a target: python -m awq_tvm targets lists them",
    )
