"""What this machine can execute, in the names that LLVM and nvcc use, without loading a compiler."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Linux names that differ from LLVM's; every other flag is the same word in both.
_X86_NAMES = {
    "abm": "lzcnt",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "amx_tile": "amx-tile",
    "avx512_bf16": "avx512bf16",
    "avx512_bitalg": "avx512bitalg",
    "avx512_fp16": "avx512fp16",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512_vp2intersect": "avx512vp2intersect",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx_vnni": "avxvnni",
    "avx_vnni_int8": "avxvnniint8",
    "bmi1": "bmi",
    "lahf_lm": "sahf",
    "pclmulqdq": "pclmul",
    "pni": "sse3",
    "rdrand": "rdrnd",
    "sha_ni": "sha",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
}
_ARM_NAMES = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdfhm": "fp16fml",
    "asimdhp": "fullfp16",
    "asimdrdm": "rdm",
    "atomics": "lse",
    "crc32": "crc",
    "fcma": "complxnum",
    "fp": "fp-armv8",
    "jscvt": "jsconv",
    "lrcpc": "rcpc",
}
_APPLE_NAMES = {
    "AdvSIMD": "neon",
    "FEAT_BF16": "bf16",
    "FEAT_DotProd": "dotprod",
    "FEAT_FHM": "fp16fml",
    "FEAT_FP16": "fullfp16",
    "FEAT_I8MM": "i8mm",
    "FEAT_LSE": "lse",
    "FEAT_RDM": "rdm",
    "FEAT_SME": "sme",
    "FEAT_SME2": "sme2",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether a bundle runs.

    Attributes:
        architecture: "x86_64", "aarch64", ...
        operating_system: "linux", "darwin", "ios", "windows" or "unknown".
        features: LLVM names of the CPU's features; empty where the system does not tell.
        gpus: compute capabilities of the CUDA devices, as "sm_90".
    """

    architecture: str
    operating_system: str
    features: frozenset[str]
    gpus: tuple[str, ...] = ()


def this_machine(*, gpus: bool) -> Machine:
    """The machine that this process runs on; CUDA's driver is only asked for GPUs where they matter."""
    return Machine(architecture(), operating_system(), cpu_features(), cuda_architectures() if gpus else ())


def parse_cpuinfo(text: str) -> frozenset[str]:
    """LLVM feature names in the text of `/proc/cpuinfo`: those that every listed core has."""
    cores: list[frozenset[str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        names = {"flags": _X86_NAMES, "Features": _ARM_NAMES}.get(key.strip())
        if names is not None:
            cores.append(frozenset(names.get(flag, flag) for flag in value.split()))
    return frozenset.intersection(*cores) if cores else frozenset()


def parse_sysctl(text: str) -> frozenset[str]:
    """LLVM feature names in the output of `sysctl hw.optional` on an Apple machine."""
    found = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        name = _APPLE_NAMES.get(key.strip().rpartition(".")[2])
        if name is not None and value.strip() == "1":
            found.add(name)
    return frozenset(found)


def cpu_features() -> frozenset[str]:
    """LLVM feature names of this CPU; empty where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        return parse_cpuinfo(cpuinfo.read_text(errors="replace"))
    if platform.system() == "Darwin":
        try:
            listing = subprocess.run(
                ["/usr/sbin/sysctl", "hw.optional"], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return frozenset()
        return parse_sysctl(listing.stdout)
    return frozenset()


def architecture(triple: str | None = None) -> str:
    """The instruction set of an LLVM triple, or of this machine: "x86_64", "aarch64", ..."""
    first = (platform.machine() if triple is None else triple.partition("-")[0]).lower()
    return {"arm64": "aarch64", "amd64": "x86_64", "x64": "x86_64"}.get(first, first)


def operating_system(triple: str | None = None) -> str:
    """The system of an LLVM triple, or of this machine: "linux", "darwin", "ios", "windows" or "unknown"."""
    words = platform.system().lower() if triple is None else triple.lower()
    for system, marks in (
        ("ios", ("ios",)),
        ("darwin", ("darwin", "macos", "apple")),
        ("linux", ("linux", "android")),
        ("windows", ("windows", "win32", "mingw")),
    ):
        if any(mark in words for mark in marks):
            return system
    return "unknown"


def cuda_architectures() -> tuple[str, ...]:
    """Compute capability of every CUDA device, as "sm_90"; empty without a driver or a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = []
    for index in range(count.value):
        # 75 and 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
        if (
            driver.cuDeviceGet(ctypes.byref(device), index) == 0
            and driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device) == 0
            and driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device) == 0
        ):
            found.append(f"sm_{major.value}{minor.value}")
    return tuple(found)


def runs_on_gpu(needed: str, found: str) -> bool:
    """Whether code for compute capability `needed` runs on `found`.

    A cubin runs on the same major version and the same or a later minor one ("sm_80" on "sm_86"); a suffixed
    one ("sm_90a") on its own chip alone; PTX ("compute_80") on every later chip.
    """
    if needed.startswith("compute_"):
        virtual, have = needed.removeprefix("compute_"), found.removeprefix("sm_")
        return virtual.isdigit() and have.isdigit() and int(virtual) <= int(have)
    digits = needed.removeprefix("sm_").rstrip("abcdefghijklmnopqrstuvwxyz")
    have = found.removeprefix("sm_")
    if not digits.isdigit() or not have.isdigit():
        return False
    if not needed.removeprefix("sm_").isdigit():
        return digits == have
    return digits[:-1] == have[:-1] and int(digits) <= int(have)
