from __future__ import annotations

import re

import pytest
import tvm
from tvm import relax

from awq_tvm.compile.toolchain import build_library
from awq_tvm.compile.toolchain.cross import has_zig
from awq_tvm.compile.toolchain.lower import build_executable, device_modules, lower_relax
from awq_tvm.errors import TargetError
from awq_tvm.targets import resolve
from tests.compile.toolchain_modules import relax_module, tensor


@pytest.mark.skipif(not has_zig(), reason="the package ziglang is not installed")
def test_metal_library_carries_its_source(tmp_path) -> None:
    target = resolve("metal")
    built = build_library(relax_module(target), target, tmp_path)
    assert built.path == tmp_path / "model.dylib"
    library = built.path.read_bytes()
    assert library[:8] == bytes.fromhex("cffaedfe0c000001")  # 64-bit Mach-O, arm64
    (source,) = built.files
    text = source.read_text()
    names = [kernel.name for kernel in built.kernels]
    # A linear has a kernel for each range of tokens.
    assert {re.sub(r"_\d+$", "", name) for name in names} == {
        "linear_kernel",
        "rms_norm_kernel",
        "take_kernel",
    }
    assert names.count("rms_norm_kernel") == names.count("take_kernel") == 1
    for name in names:
        assert f"kernel void {name}(" in text
        assert f"kernel void {name}(".encode() in library


def test_without_a_linker_for_macos_the_package_is_named(monkeypatch, tmp_path) -> None:
    target = resolve("metal")
    monkeypatch.setattr("awq_tvm.compile.toolchain.cross.has_zig", lambda: False)
    monkeypatch.setattr("awq_tvm.compile.toolchain.host.platform.system", lambda: "Linux")
    monkeypatch.setattr("awq_tvm.compile.toolchain.host.platform.machine", lambda: "x86_64")
    with pytest.raises(TargetError, match="cannot be linked") as error:
        build_library(relax_module(target), target, tmp_path)
    assert "pip install ziglang" in (error.value.fix or "")
    assert list(tmp_path.iterdir()) == []


def test_a_plain_matmul_stays_off_the_matrix_units() -> None:
    """TVM's simdgroup kernels sum in float16."""
    target = resolve("metal")
    builder = relax.BlockBuilder()
    x = relax.Var("x", tensor((tvm.tirx.Var("n", "int64"), 128), "float16"))
    weight = relax.Var("weight", tensor((128, 64), "float16"))
    with builder.function("main", [x, weight]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.matmul(x, weight, out_dtype="float32"))
        builder.emit_func_output(y)
    lowered = lower_relax(builder.get(), target.tvm_target_with_host)
    executable = build_executable(lowered, target.tvm_target_with_host)
    (module,) = device_modules(executable.mod, "metal")
    source = module.inspect_source("metal")
    assert "kernel void matmul" in source
    assert "simdgroup" not in source
