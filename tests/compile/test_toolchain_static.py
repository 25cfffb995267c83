"""Archives for iOS by what is in them, and the same kind of archive for this machine by what it computes."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi

from awq_tvm.bundle.verify import verify_bundle
from awq_tvm.compile.toolchain import build_library, cpu
from awq_tvm.compile.toolchain.cross import ZIG, cross_linker, has_zig
from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.compile.toolchain.static import Archiver, symbol_prefix
from awq_tvm.errors import TargetError
from awq_tvm.targets import resolve
from tests.compile.toolchain_modules import HIDDEN, VOCABULARY, relax_module
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny

NM = shutil.which("llvm-nm")
needs_zig = pytest.mark.skipif(not has_zig(), reason="the package ziglang is not installed")
needs_nm = pytest.mark.skipif(not NM, reason="llvm-nm is not installed")
# Of TVM's runtime and of the C library; nothing else may be asked for.
ASKED_FOR = {
    "_TVMBackendAllocWorkspace",
    "_TVMBackendFreeWorkspace",
    "_TVMBackendParallelLaunch",
    "_TVMFFIEnvModRegisterSystemLibSymbol",
    "_TVMFFIErrorSetRaisedFromCStrParts",
    "_bzero",
    "_memcpy",
    "_memset",
}
LIBSYSTEM = {
    "_expf",
    "_logf",
    "_powf",
    "_sinf",
    "_cosf",
    "_tanhf",
    "_fmaf",
    "_erff",
    "_log2f",
    "_memset_pattern16",
}
# Of LLVM's support library, which every object of TVM's carries along; not every linker takes them.
SUPPORT = {"___extendhfsf2", "___truncsfhf2"}


def symbols(library: Path, *options: str) -> set[str]:
    assert NM is not None
    done = subprocess.run(
        [NM, "--format=just-symbols", *options, str(library)], capture_output=True, text=True, check=True
    )
    return {line for line in done.stdout.splitlines() if line and not line.endswith(":")}


def word(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + 4], "little")


def load_commands(content: bytes) -> list[tuple[int, int]]:
    """Number and place of every load command of a 64-bit Mach-O file for arm64."""
    assert (word(content, 0), word(content, 4)) == (0xFEEDFACF, 0x0100000C)
    found, at = [], 32
    for _ in range(word(content, 16)):
        found.append((word(content, at), at))
        at += word(content, at + 4)
    return found


def platforms(content: bytes) -> list[tuple[int, int]]:
    """Platform, 1 for macOS and 2 for iOS, and least version of it that a Mach-O file says it is for."""
    build_version = 0x32
    return [
        (word(content, at + 8), word(content, at + 12) >> 16)
        for command, at in load_commands(content)
        if command == build_version
    ]


@needs_zig
@needs_nm
def test_an_archive_for_ios(tmp_path: Path) -> None:
    target = resolve("apple-a15-ios")
    built = build_library(relax_module(target), target, tmp_path, name="smol-v2.bundle")
    assert (built.path.name, built.symbol_prefix) == ("model.a", "awq_tvm_smol_v2_bundle_")
    assert "-force_load" in built.notes[0]
    objects = tmp_path / "objects"
    objects.mkdir()
    subprocess.run([*ZIG[:-1], "ar", "x", str(built.path)], cwd=objects, check=True)
    assert [platforms(path.read_bytes()) for path in objects.iterdir()] == [[(2, 15)]] * 2
    assert symbols(built.path, "--undefined-only") <= ASKED_FOR
    defined = symbols(built.path, "--defined-only", "--extern-only") - SUPPORT
    prefix = built.symbol_prefix
    assert {f"___tvm_ffi_{prefix}linear", f"_{prefix}__tvm_ffi__library_bin"} <= defined
    # Two models in one app must not have a name in common.
    assert {name for name in defined if prefix not in name} == set()


@needs_zig
@needs_nm
def test_a_dylib_for_macos(tmp_path: Path) -> None:
    target = resolve("apple-m1-cpu")
    path = build_library(relax_module(target), target, tmp_path).path
    assert {"___tvm_ffi_linear", "___tvm_ffi__library_bin"} <= symbols(
        path, "--defined-only", "--extern-only"
    )
    assert symbols(path, "--undefined-only") <= ASKED_FOR | SUPPORT | {"dyld_stub_binder"}
    content = path.read_bytes()
    assert b"@rpath/model.dylib\0" in content
    assert str(tmp_path).encode() not in content
    assert platforms(content) == [(1, 11)]
    # Apple's CPUs run nothing without a signature; the linker makes one by nobody.
    code_signature = 0x1D
    assert code_signature in {command for command, _ in load_commands(content)}


@pytest.mark.skipif(platform.system() != "Linux" or not shutil.which("ar"), reason="needs Linux and ar")
def test_what_an_archive_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same module as a shared library, and as an archive linked whole and found by its prefix."""
    target = resolve("cpu")
    shared = build_library(relax_module(target), target, tmp_path)
    monkeypatch.setattr(cpu, "linker_for", lambda _: Archiver(("ar",), (), ".a", ""))
    names = ("first", "second")
    prefixes = []
    for name in names:
        (tmp_path / name).mkdir()
        built = build_library(relax_module(target), target, tmp_path / name, name=name)
        prefixes.append(built.symbol_prefix)
    archives = [str(tmp_path / name / "model.a") for name in names]
    app = tmp_path / "app.so"
    native.run_tool(["g++", "-shared", "-o", app, "-Wl,--whole-archive", *archives, "-Wl,--no-whole-archive"])
    ctypes.CDLL(str(app))
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, VOCABULARY, 5).astype(np.int32)]
    for parameter in relax_module(target)["main"].params[1:]:
        shape = [int(size) for size in parameter.ty.shape]
        kind = np.dtype(str(parameter.ty.dtype))
        draw = rng.integers(0, 16, shape) if kind.kind == "u" else rng.uniform(0.01, 0.03, shape)
        arrays.append(draw.astype(kind))
    assert arrays[1].shape == (VOCABULARY, HIDDEN)
    inputs = [tvm.runtime.tensor(array) for array in arrays]
    modules = [tvm.runtime.load_module(str(shared.path)), *map(tvm_ffi.system_lib, prefixes)]
    results = [tvm.relax.VirtualMachine(module, tvm.cpu())["main"](*inputs).numpy() for module in modules]
    assert np.abs(results[0]).max() > 0
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


@pytest.mark.slow
@needs_zig
@needs_nm
def test_a_bundle_for_ios(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from awq_tvm.compile.driver import compile_model

    checkpoint = tiny.quantized_llama(tmp_path_factory).checkpoint
    bundle = tmp_path / "tiny.ios"
    report = compile_model(str(checkpoint), bundle, target="apple-a15-ios")
    manifest = verify_bundle(bundle, target=False)
    assert (manifest.library, manifest.recipe.extra["symbol_prefix"]) == ("model.a", "awq_tvm_tiny_ios_")
    assert 'ffi.SystemLib("awq_tvm_tiny_ios_")' in (bundle / "README.md").read_text()
    assert any("static archive" in note for note in report.notes)
    assert symbols(bundle / "model.a", "--undefined-only") <= ASKED_FOR | LIBSYSTEM
    with pytest.raises(TargetError, match=r"operating system ios|instruction set aarch64"):
        verify_bundle(bundle)


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awq_tvm.compile.toolchain.cross.has_zig", lambda: False)
    with pytest.raises(TargetError, match="cannot be archived for iOS") as error:
        linker_for("arm64-apple-ios15.0")
    assert "pip install ziglang" in (error.value.fix or "")


@needs_zig
def test_a_failing_archiver_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="could not be archived"):
        cross_linker("arm64-apple-ios15.0")(str(tmp_path / "model.a"), [str(tmp_path / "missing.o")])


@pytest.mark.parametrize(
    ("name", "prefix"), [("a.b c", "awq_tvm_a_b_c_"), ("7", "awq_tvm_7_"), ("é", "awq_tvm___")]
)
def test_prefixes_are_names_of_c(name: str, prefix: str) -> None:
    assert symbol_prefix(name) == prefix
    assert prefix.isidentifier()
