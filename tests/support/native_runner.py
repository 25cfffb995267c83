"""The runner without Python, built by CMake as a user builds it, once for all tests that run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi

from awq_tvm.bundle.manifest import MANIFEST_NAME, FileInfo, Manifest
from awq_tvm.bundle.verify import read_manifest
from tests.support.made_once import made_once

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "awq_tvm" / "runtime" / "cpp"
# Where `make arm-wheels` puts TVM for ARM; AWQ_TVM_AARCH64_WHEELS names another folder.
AARCH64_WHEELS = Path(os.environ.get("AWQ_TVM_AARCH64_WHEELS", ROOT / "build" / "arm-wheels"))
needs_cmake = pytest.mark.skipif(
    not (sys.platform == "linux" and shutil.which("cmake") and shutil.which("g++")),
    reason="building the runner needs Linux, cmake and g++",
)


def run_tool(command: Sequence[object]) -> None:
    """Run a build step; a failure shows what it said."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def installed_runner(factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed runner: bin/awq_tvm_run, lib, include."""
    return _build("host", factory, f"-DPython3_EXECUTABLE={sys.executable}")


def installed_aarch64_runner(factory: pytest.TempPathFactory) -> Path:
    """The same for 64-bit ARM Linux; the test is skipped where something for it is missing."""
    skip_without_aarch64()
    toolchain = SOURCES / "aarch64-linux.cmake"
    return _build(
        "aarch64", factory, f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", f"-DAWQ_TVM_WHEELS={AARCH64_WHEELS}"
    )


def skip_without_aarch64() -> None:
    """Skip the test where something is missing that builds and runs programs for 64-bit ARM Linux."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    if not (AARCH64_WHEELS / "tvm_ffi").is_dir():
        pytest.skip(f"TVM for ARM is not in {AARCH64_WHEELS}: `make arm-wheels`")


def _build(name: str, factory: pytest.TempPathFactory, *options: str) -> Path:
    def make(folder: Path) -> None:
        build = folder / "build"
        run_tool(["cmake", "-S", SOURCES, "-B", build, *options])
        run_tool(["cmake", "--build", build, "--parallel", 2])
        run_tool(["cmake", "--install", build, "--prefix", folder / "installed"])

    return made_once(factory, f"runner-{name}", make) / "installed"


def run(runner: Path, *arguments: object, cpu: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run awq_tvm_run of an installed runner; tokens and text are exact, so bytes that are no UTF-8 fail.

    Args:
        runner: the folder.
        arguments: of the program.
        cpu: of an ARM machine, for qemu; None to run on this machine.
    """
    emulator = [] if cpu is None else ["qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu"]
    command = [*emulator, str(runner / "bin" / "awq_tvm_run"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def answer(runner: Path, *arguments: object, cpu: str | None = None) -> dict[str, Any]:
    """What awq_tvm_run --json prints."""
    done = run(runner, "--json", *arguments, cpu=cpu)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compile_check(source: str, parts: Sequence[str], program: Path) -> Path:
    """Compile a program of this folder with parts of the runner, and TVM's FFI library, which reads JSON."""
    folder = Path(tvm_ffi.__file__).parent
    run_tool(
        [sys.executable, "-I", SOURCES.parent / "unicode_table.py", program.parent / "unicode_table.inc"]
    )
    includes = [SOURCES / "src", SOURCES / "include", program.parent, folder / "include"]
    files = [Path(__file__).with_name(source), *(SOURCES / "src" / f"{part}.cc" for part in parts)]
    linked = [folder / "lib" / "libtvm_ffi.so", f"-Wl,-rpath,{folder / 'lib'}"]
    run_tool(["g++", "-std=c++17", "-O1", *(f"-I{i}" for i in includes), "-o", program, *files, *linked])
    return program


def copy_bundle(bundle: Path, folder: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(bundle, folder))


def reseal(bundle: Path, **changes: object) -> None:
    """Change fields of a bundle's manifest and seal it again, as whoever writes bundles could."""
    manifest = read_manifest(bundle)
    fields = {**manifest.model_dump(), **changes}
    (bundle / MANIFEST_NAME).write_bytes(Manifest.model_validate(fields).to_bytes())


def list_file(bundle: Path, name: str, info: FileInfo) -> dict[str, Any]:
    """The manifest's files with one more or changed, for `reseal`."""
    files = read_manifest(bundle).files
    return {key: value.model_dump() for key, value in {**files, name: info}.items()}
