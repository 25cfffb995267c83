from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from awq_tvm.compile.toolchain import BuiltLibrary, Kernel, build_library
from awq_tvm.compile.toolchain.cuda import CudaJob, tvm_cuda_library
from awq_tvm.compile.toolchain.driver_stub import DRIVER_LIBRARY, undefined_symbols, write_stubs
from awq_tvm.compile.toolchain.nvcc import Nvcc, kernel_at, read_report, with_more_registers
from awq_tvm.errors import ResourceError, TargetError
from awq_tvm.targets import resolve
from tests.compile.toolchain_modules import module_with, relax_module

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'mm_kernel_2' for 'sm_86'
ptxas info    : Function properties for mm_kernel_2
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 16384 bytes smem, 424 bytes cmem[0]
ptxas info    : Compile time = 90.730 ms
ptxas info    : Compiling entry function 'mm_kernel' for 'sm_86'
ptxas info    : Function properties for mm_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 416 bytes cmem[0]
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> BuiltLibrary:
    target = resolve("cuda")
    return build_library(relax_module(target), target, tmp_path_factory.mktemp("cuda"))


@needs_nvcc
def test_every_kernel_is_compiled_for_every_architecture(built) -> None:
    names = {kernel.name for kernel in built.kernels}
    ours = {"linear_kernel", "linear_kernel_1", "linear_kernel_2", "linear_kernel_3"}
    assert ours < names
    assert {"rms_norm_kernel", "take_kernel"} < names
    expected = {(name, arch) for name in names for arch in resolve("cuda").cuda_archs}
    assert {(kernel.name, kernel.arch) for kernel in built.kernels} == expected
    assert all(kernel.spill_store_bytes == kernel.spill_load_bytes == 0 for kernel in built.kernels)
    # What a launch asks for is not in the compiler's report: of ours, the sums of four warps for eight tokens are.
    few = [kernel for kernel in built.kernels if kernel.name == "linear_kernel"]
    assert {kernel.shared_bytes for kernel in few} == {4 * 8 * 20 * 4}


@needs_nvcc
def test_the_library_holds_binaries_and_no_source(built) -> None:
    library = built.path.read_bytes()
    fat = next(path for path in built.files if path.suffix == ".fatbin")
    source = next(path for path in built.files if path.suffix == ".cu")
    assert fat.read_bytes() in library
    assert "__global__" in source.read_text()
    assert b"__global__" not in library
    kinds = sorted(path.name for path in built.files)
    assert kinds == [
        "kernels.compute_90.ptx",
        "kernels.cu",
        "kernels.fatbin",
        "kernels.json",
        *(f"kernels.{arch}.cubin" for arch in resolve("cuda").cuda_archs),
    ]
    report = json.loads((built.path.parent / "kernels.json").read_text())
    assert tuple(Kernel(**kernel) for kernel in report) == built.kernels


@needs_nvcc
def test_this_process_stays_clean(built) -> None:
    assert "LD_LIBRARY_PATH" not in os.environ or "awq-tvm-cuda" not in os.environ["LD_LIBRARY_PATH"]
    assert "awq-tvm-cuda" not in Path("/proc/self/maps").read_text()


@needs_nvcc
def test_a_rejected_kernel_is_named_with_what_nvcc_says(tmp_path) -> None:
    with pytest.raises(TargetError, match="nvcc rejects") as error:
        build_library(module_with("no_such_function"), resolve("nvidia-a100"), tmp_path)
    assert "kernel bad_kernel for sm_80" in (error.value.where or "")
    assert "no_such_function" in (error.value.why or "")


@needs_nvcc
def test_an_architecture_nvcc_does_not_know_is_an_error(tmp_path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text('extern "C" __global__ void ok_kernel(float* y) {\n  y[0] = 1;\n}\n')
    _, files, kernels = Nvcc.find().compile(source, ("sm_80",), "compute_80", fast_math=True)
    assert [path.name for path in files] == ["kernels.sm_80.cubin", "kernels.compute_80.ptx"]
    assert [kernel.name for kernel in kernels] == ["ok_kernel"]
    with pytest.raises(TargetError, match="sm_33"):
        Nvcc.find().compile(source, ("sm_80", "sm_33"), None)


@needs_nvcc
def test_a_kernel_that_would_spill_to_share_an_sm_has_it_for_itself(tmp_path) -> None:
    source = tmp_path / "kernels.cu"
    kept, threads = range(64), "__launch_bounds__(256, 6)"
    loads = "".join(f"float f{i} = x[{i} * 256 + threadIdx.x]; " for i in kept)
    sums = "".join(f"f{i} = f{i} * f{(i + 1) % 64} + s; " for i in kept)
    stores = "".join(f"x[{i} * 256 + threadIdx.x] = f{i}; " for i in kept)
    source.write_text(
        f'extern "C" __global__ void {threads} big(float* __restrict__ x, float s, int n) {{\n'
        f"  {loads}\n  for (int step = 0; step < n; ++step) {{ {sums} }}\n  {stores}\n}}\n"
        f'extern "C" __global__ void {threads} small(float* x) {{\n  x[threadIdx.x] = 1.0f;\n}}\n'
    )
    nvcc = Nvcc.find()
    _, _, kernels = nvcc.compile(source, ("sm_80",), None)
    uses = {kernel.name: kernel for kernel in kernels}
    assert uses["big"].spill_store_bytes == uses["big"].spill_load_bytes == 0
    # 42 registers are the most that leave room for six blocks of 256 threads.
    assert uses["big"].registers > 64
    assert [path.name for path in tmp_path.glob("*.cu")] == ["kernels.cu"]


def test_only_the_kernels_that_spill_get_more_registers() -> None:
    def bounds_of(source: str) -> list[str]:
        return re.findall(r"__launch_bounds__(.*) \{", source)

    kernels = (("64", "one"), ("64, 2", "two"), ("64, 2", "one_more"))
    source = "".join(f"void __launch_bounds__({n}) {name}(int) {{}}\n" for n, name in kernels)
    wider = with_more_registers(source, ["one", "two"])
    assert bounds_of(wider) == ["(64, 1) one(int)", "(64) two(int)", "(64, 2) one_more(int)"]
    widest = with_more_registers(wider, ["one", "two"])
    assert bounds_of(widest) == ["(64, 1) one(int)", "(64, 1) two(int)", "(64, 2) one_more(int)"]
    assert with_more_registers(widest, ["one", "two"]) == widest


@needs_nvcc
def test_a_module_tvm_cannot_build_is_an_error_and_no_crash(tmp_path) -> None:
    """CUDA has no vector of sixteen 32-bit integers."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.is_scheduled": True, "global_symbol": "wide"})
        x, y = (T.match_buffer(T.arg(name, T.handle()), (512,), "int32") for name in "xy")
        with T.launch_thread("threadIdx.x", 32) as i, T.vectorized(0, 16) as j:
            T.buffer_store(y, x[i * 16 + j], [i * 16 + j])
    with pytest.raises(TargetError, match="TVM could not generate code"):
        build_library(tvm.IRModule({"wide": builder.get()}), resolve("nvidia-a100"), tmp_path)


def test_missing_nvcc_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    target = resolve("cuda")
    with pytest.raises(TargetError, match="cannot be compiled here") as error:
        build_library(relax_module(target), target, tmp_path)
    assert "nvcc" in (error.value.why or "")
    assert "CUDA toolkit" in (error.value.fix or "")


def test_a_disk_that_is_full_is_no_fault_of_the_kernel(monkeypatch, tmp_path) -> None:
    """nvcc says so, in a process of its own: the kind of the error comes through as well."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("nvcc", "fatbinary"):
        (tools / name).write_text(
            "#!/bin/sh\necho 'fatal: /tmp/x.ptx: No space left on device' >&2; exit 1\n"
        )
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(ResourceError, match="The disk is full") as error:
        build_library(module_with("sinf"), resolve("nvidia-a100"), tmp_path)
    assert "kernels.cu for sm_80" in (error.value.where or "")


def test_nvcc_without_its_packer_is_an_error(monkeypatch, tmp_path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError) as error:
        Nvcc.find()
    assert "fatbinary" in (error.value.why or "")
    (tmp_path / "fatbinary").touch(mode=0o755)
    assert Nvcc.find().fatbinary == str(tmp_path / "fatbinary")


def test_a_tvm_without_cuda_is_an_error(monkeypatch) -> None:
    assert tvm_cuda_library().is_file()
    monkeypatch.setattr("awq_tvm.compile.toolchain.cuda.TVM_CUDA_LIBRARY", "libno_such.so")
    with pytest.raises(TargetError, match="cannot build for CUDA"):
        tvm_cuda_library()


def test_stand_ins_define_what_tvm_asks_for(tmp_path) -> None:
    library = tvm_cuda_library()
    wanted = undefined_symbols(library)
    assert "cuModuleLoadData" in wanted[DRIVER_LIBRARY]
    write_stubs(library, tmp_path)
    for name in wanted:
        assert (tmp_path / name).read_bytes()[:4] == b"\x7fELF"
    assert undefined_symbols(tmp_path / DRIVER_LIBRARY) == {}


def test_resource_usage_is_read_per_kernel() -> None:
    assert read_report(REPORT) == (
        Kernel("mm_kernel_2", "sm_86", 48, 8, 12, 16384),
        Kernel("mm_kernel", "sm_86", 32, 0, 0, 0),
    )


def test_the_kernel_of_a_line_is_found() -> None:
    head = 'extern "C" __global__ void __launch_bounds__(128) '
    definitions = f"{head}a_kernel(float* p) {{\n}}\n{head}b_kernel() {{\n  x;\n"
    source = f"#include <x>\n{head}a_kernel(float* p);\n{definitions}"
    assert [kernel_at(source, line) for line in (1, 2, 3, 6)] == [None, None, "a_kernel", "b_kernel"]


def test_a_job_survives_json() -> None:
    job = CudaJob({"kind": "cuda"}, ("sm_80", "sm_90"), None, "x86_64-linux-gnu", False)
    assert CudaJob.from_json(job.to_json()) == job
