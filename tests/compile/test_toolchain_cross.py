from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi

from awq_tvm.compile.toolchain import build_library
from awq_tvm.compile.toolchain.cross import cross_linker, has_zig
from awq_tvm.compile.toolchain.host import host_linker, is_host
from awq_tvm.compile.toolchain.linker import Linker, run_tool
from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.errors import TargetError
from awq_tvm.schedules.rule import select
from awq_tvm.targets import resolve
from tests.compile.toolchain_modules import matmul_module, relax_module

ON_X86_LINUX = platform.machine() == "x86_64" and platform.system() == "Linux"
CALLER = Path(__file__).parents[1] / "support" / "call_packed.cc"
AARCH64_CXX, QEMU = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
ELF_MACHINE = {62: "x86_64", 183: "aarch64"}
DTYPE_CODES = {"i": 0, "u": 1, "f": 2}

x86_linux = pytest.mark.skipif(not ON_X86_LINUX, reason="cross compiling is tested from x86-64 Linux")
needs_aarch64 = pytest.mark.skipif(
    not (ON_X86_LINUX and (AARCH64_CXX or has_zig())), reason="no linker for aarch64 Linux installed"
)
needs_qemu = pytest.mark.skipif(
    not (ON_X86_LINUX and AARCH64_CXX and QEMU), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64"
)


def elf_machine(path: Path) -> str:
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    return ELF_MACHINE[int.from_bytes(header[18:20], "little")]


@x86_linux
def test_library_for_this_machine_runs(tmp_path) -> None:
    target = resolve("cpu")
    built = build_library(relax_module(target), target, tmp_path)
    assert built.path == tmp_path / "model.so"
    assert elf_machine(built.path) == "x86_64"
    assert built.kernels == ()
    machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(built.path)), tvm.cpu())
    assert machine["main"] is not None


@needs_aarch64
def test_library_for_the_raspberry_pi_is_aarch64(tmp_path) -> None:
    target = resolve("raspberry-pi-4")
    built = build_library(relax_module(target), target, tmp_path)
    assert elf_machine(built.path) == "aarch64"


def random_arguments(target, spec) -> dict[str, np.ndarray]:
    """x, the packed weight and y, in the order of the kernel's parameters; and W in float64."""
    rng = np.random.default_rng(0)
    n, k, g = spec.out_features, spec.in_features, spec.groups
    q = rng.integers(0, 16, (n, k), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.03, (n, g)).astype(np.float16)
    zeros = rng.integers(0, 16, (n, g), dtype=np.uint8)
    layout = select(spec, target)[0].layout(spec, target)
    arrays = {"x": rng.standard_normal((3, k)).astype(spec.dtype)}
    for array, packed in zip(layout.arrays(spec), layout.pack(spec, q, scales, zeros), strict=True):
        arrays[array.suffix] = packed
    arrays["y"] = np.zeros((3, n), spec.dtype)
    centred = q.astype(float) - np.repeat(zeros, spec.group_size, 1)
    arrays["W"] = centred * np.repeat(scales.astype(float), spec.group_size, 1)
    return arrays


@needs_qemu
def test_cross_compiled_code_computes_the_right_numbers(tmp_path) -> None:
    """Our own ARM schedule, run by qemu as the CPU it was built for."""
    target = resolve("raspberry-pi-4")
    mod, spec = matmul_module(target)
    built = build_library(mod, target, tmp_path)
    include = Path(tvm_ffi.__file__).parent / "include"
    program = tmp_path / "call_packed"
    run_tool(
        [AARCH64_CXX, "-std=c++17", "-rdynamic", f"-I{include}", "-o", str(program), str(CALLER), "-ldl"],
        "The test program could not be compiled",
    )
    arrays = random_arguments(target, spec)
    W = arrays.pop("W")
    words = []
    for name, array in arrays.items():
        path = tmp_path / f"{name}.bin"
        path.write_bytes(array.tobytes())
        kind = f"{DTYPE_CODES[array.dtype.kind]}:{array.dtype.itemsize * 8}:{','.join(map(str, array.shape))}"
        words += [str(path), kind]
    emulator = [QEMU, "-cpu", "cortex-a72", "-L", "/usr/aarch64-linux-gnu", str(program)]
    done = subprocess.run(
        [*emulator, str(built.path), "__tvm_ffi_mm", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    y = np.fromfile(tmp_path / "y.bin", spec.dtype).reshape(arrays["y"].shape)
    x = arrays["x"].astype(float)
    bound = 4 * spec.in_features**0.5 * 2.0**-24 * (np.abs(x) @ np.abs(W).T) + 1e-6
    assert (np.abs(y - x @ W.T) <= bound).all()


@pytest.mark.skipif(not has_zig(), reason="the package ziglang is not installed")
@x86_linux
def test_library_for_a_mac_is_a_mach_o_dylib(tmp_path) -> None:
    target = resolve("apple-m1-cpu")
    built = build_library(relax_module(target), target, tmp_path)
    assert built.path.name == "model.dylib"
    header = built.path.read_bytes()[:16]
    magic, cpu, _, kind = (int.from_bytes(header[i : i + 4], "little") for i in range(0, 16, 4))
    assert (magic, cpu, kind) == (0xFEEDFACF, 0x0100000C, 6)  # 64-bit, arm64, MH_DYLIB


@x86_linux
@pytest.mark.parametrize(
    ("mtriple", "expected"),
    [
        ("x86_64-unknown-linux-gnu", True),
        ("x86_64", True),
        ("amd64-linux-gnu", True),
        ("aarch64-unknown-linux-gnu", False),
        ("x86_64-linux-android", False),
        ("x86_64-apple-macos", False),
        ("x86_64-pc-windows-msvc", False),
    ],
)
def test_only_this_platform_is_linked_natively(mtriple, expected) -> None:
    assert is_host(mtriple) is expected


def test_no_compiler_says_how_to_get_one(monkeypatch, tmp_path) -> None:
    assert host_linker().command
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="No C\\+\\+ compiler") as error:
        host_linker()
    assert "apt-get install g++" in (error.value.fix or "")


def test_android_asks_for_the_ndk(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match="Android") as error:
        cross_linker("aarch64-linux-android")
    assert "NDK" in (error.value.fix or "")
    # The highest API level wins, by number and not by letter.
    for level in (9, 21, 35):
        (tmp_path / f"aarch64-linux-android{level}-clang++").touch()
    assert cross_linker("aarch64-linux-android").command[0].endswith("android35-clang++")


@pytest.mark.parametrize("mtriple", ["riscv32-unknown-elf", "x86_64-pc-windows-msvc", "arm64-apple-watchos"])
def test_a_platform_without_a_linker_is_refused(mtriple) -> None:
    with pytest.raises(TargetError, match="no linker for this platform"):
        cross_linker(mtriple)


@x86_linux
@pytest.mark.parametrize("mtriple", ["arm64-apple-macos", "aarch64-unknown-linux-gnu"])
def test_without_any_cross_linker_the_package_is_named(mtriple, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("awq_tvm.compile.toolchain.cross.has_zig", lambda: False)
    with pytest.raises(TargetError, match="cannot be linked") as error:
        linker_for(mtriple)
    assert "pip install ziglang" in (error.value.fix or "")


def test_a_failing_linker_is_quoted(tmp_path) -> None:
    with pytest.raises(TargetError, match="missing\\.o"):
        host_linker()(str(tmp_path / "model.so"), [str(tmp_path / "missing.o")])


def test_a_linker_that_went_away_is_named(tmp_path) -> None:
    with pytest.raises(TargetError, match="could not be linked") as error:
        Linker((str(tmp_path / "no-such-ld"),), (), ".so", "")(str(tmp_path / "model.so"), [])
    assert "no-such-ld" in (error.value.fix or "")
