"""TVM's runtime library: where it is looked for, and what is said where it is not."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.compile.toolchain.driver_stub import write_stubs
from awq_tvm.errors import TargetError, UnsupportedError
from awq_tvm.runtime.tvm_library import (
    LIBRARY_PATH_VARIABLE,
    TvmRuntime,
    find_runtime_library,
    load_runtime_library,
    without_overlap,
)


def _python(script: str, *arguments: object, path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_library_is_the_one_that_tvm_loads_and_tvm_is_not_imported(repository: Path) -> None:
    script = """
import sys
from awq_tvm.runtime.tvm_library import find_runtime_library, load_runtime_library
print(find_runtime_library())
load_runtime_library("cpu")
print([name for name in sys.modules if name.partition(".")[0] in ("tvm", "torch")])
"""
    found, imported = _python(script, path=repository).splitlines()
    assert imported == "[]"
    from tvm import libinfo

    assert Path(found).samefile(libinfo.find_libtvm_runtime())


def test_the_folder_that_the_environment_names_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = find_runtime_library()
    monkeypatch.setenv(LIBRARY_PATH_VARIABLE, str(tmp_path))
    assert find_runtime_library() == own
    (tmp_path / own.name).write_bytes(b"")
    assert find_runtime_library() == tmp_path.resolve() / own.name


def test_a_package_without_the_library_is_named(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "tvm").mkdir()
    (tmp_path / "tvm" / "__init__.py").write_text("raise SystemExit('imported')")
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from awq_tvm.errors import UnsupportedError
from awq_tvm.runtime.tvm_library import load_runtime_library
try:
    load_runtime_library("cpu")
except UnsupportedError as error:
    print(error.what, error.why)
"""
    said = _python(script, tmp_path, path=repository)
    assert "runtime library was not found" in said
    assert str(tmp_path / "tvm" / "lib") in said


@pytest.mark.parametrize("package", ["tvm", "tvm_ffi"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=f"the package {package} is not installed"):
        load_runtime_library("cpu")


def test_a_part_for_gpus_that_is_not_there_is_named() -> None:
    with pytest.raises(TargetError, match=r"TVM's runtime for abacus cannot be loaded[\s\S]*_abacus\."):
        load_runtime_library("abacus")


def test_the_part_for_cuda_registers_its_device(tmp_path: Path, repository: Path) -> None:
    """With stand-ins for the driver's libraries: that it loads is all that can be seen without a GPU."""
    part = find_runtime_library().with_name("libtvm_runtime_cuda.so")
    if not (part.is_file() and shutil.which("nm") and shutil.which("g++")):
        pytest.skip("needs the part, g++ and nm")
    write_stubs(part, tmp_path)
    script = """
from awq_tvm.runtime.tvm_library import load_runtime_library
for kind in ("cpu", "cuda"):
    ffi = load_runtime_library(kind)
    print(ffi.get_global_func("device_api.cuda", allow_missing=True) is not None)
"""
    said = _python(script, path=repository, LD_LIBRARY_PATH=str(tmp_path))
    assert said.split() == ["False", "True"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "int32", "uint8", "int8", "bool"])
def test_tensors_are_copies(dtype: str) -> None:
    runtime = TvmRuntime("cpu")
    array = np.arange(24).reshape(2, 3, 4)[:, ::2].astype(dtype)
    tensor = runtime.tensor(array)
    assert tuple(tensor.shape) == array.shape
    assert str(tensor.dtype) == dtype
    before = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(np.from_dlpack(tensor), before)


def test_float32_comes_back_as_it_went() -> None:
    runtime = TvmRuntime("cpu")
    array = np.array([[1.5, -0.0, np.inf], [3e-45, np.nan, -7]], np.float32)
    np.testing.assert_array_equal(runtime.array(runtime.tensor(array)).view(np.uint32), array.view(np.uint32))


def test_constants_are_used_where_they_lie() -> None:
    runtime = TvmRuntime("cpu")
    room = np.zeros(64 + 4 * 8, np.uint8)
    start = -room.ctypes.data % 64
    array = room[start : start + 32].view(np.float32)
    constant = runtime.constant(array)
    array[:] = np.arange(8)
    np.testing.assert_array_equal(runtime.array(constant), np.arange(8))


def test_a_library_without_a_program_is_refused() -> None:
    with pytest.raises((RuntimeError, OSError, AttributeError)):
        TvmRuntime("cpu").load_machine(find_runtime_library())


def test_the_tag_of_kernels_that_may_begin_early_is_taken_out() -> None:
    def saved(*kernels: list[str]) -> bytes:
        """As TVM saves a module: tags are counted, and the length of each stands before it."""
        found = b"fatbin"
        for tags in kernels:
            found += struct.pack("<Q", len(tags))
            found += b"".join(struct.pack("<Q", len(tag)) + tag.encode() for tag in tags)
        return found + bytes(range(256))

    tag, rest = "tirx.use_programtic_dependent_launch", ["blockIdx.x", "threadIdx.x"]
    assert without_overlap(saved([tag, *rest], rest, [tag, *rest])) == saved(rest, rest, rest)
    assert without_overlap(saved(rest)) == saved(rest)
