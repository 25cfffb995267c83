from __future__ import annotations

import pytest

from awq_tvm.compile.toolchain import build_library
from awq_tvm.compile.toolchain.cross import has_zig
from awq_tvm.errors import TargetError
from awq_tvm.targets import resolve
from tests.compile.toolchain_modules import relax_module


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
    assert sorted(names) == [
        "linear_kernel", "linear_kernel_1", "linear_kernel_2", "rms_norm_kernel", "take_kernel",
    ]  # fmt: skip
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
