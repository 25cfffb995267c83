"""The ARM kernels: cross-compiled, run by qemu as the CPU they are for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi

from awq_tvm.schedules.rule import MatmulRule, select
from awq_tvm.targets import Target, resolve
from tests.support import cpu_kernels

CXX, QEMU = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
CALLER = Path(__file__).parents[1] / "support" / "call_packed.cc"
CODES = {"i": 0, "u": 1, "f": 2}
BOUND = 2e-6

needs_qemu = pytest.mark.skipif(not (CXX and QEMU), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("caller") / "call_packed"
    include = Path(tvm_ffi.__file__).parent / "include"
    command = [CXX, "-std=c++17", "-rdynamic", f"-I{include}", "-o", program, CALLER, "-ldl"]
    subprocess.run(list(map(str, command)), check=True)
    return program


def compiled(
    target: Target, activations: str, bits: int, group_size: int
) -> tuple[tvm.runtime.Executable, MatmulRule]:
    spec = cpu_kernels.spec_of(40, 128, group_size, bits, activations=activations, has_bias=True)
    rule, match = select(spec, target)
    assert isinstance(rule, MatmulRule), match
    func = rule.build(spec, target, match.config).with_attr("global_symbol", "kernel")
    return tvm.compile(tvm.IRModule({"kernel": func}), target=tvm.target.Target(target.tvm_target)), rule


@needs_qemu
@pytest.mark.parametrize(
    ("target_name", "qemu_cpu", "activations", "bits", "group_size"),
    [
        ("raspberry-pi-4", "cortex-a72", "float", 4, 64),
        ("raspberry-pi-4", "cortex-a72", "float", 8, 64),
        ("raspberry-pi-5", "cortex-a76", "float", 4, 64),
        ("raspberry-pi-5", "cortex-a76", "int8", 3, 64),
        ("raspberry-pi-5", "cortex-a76", "int8", 4, 32),
        ("raspberry-pi-5", "cortex-a76", "int8", 8, 64),
        ("raspberry-pi-5", "cortex-a76", "int8", 8, 8),
        ("graviton-3", "max", "float", 4, 64),
        ("graviton-3", "max", "float", 8, 32),
        ("graviton-3", "max", "int8", 3, 32),
        ("graviton-3", "max", "int8", 4, 8),
        ("graviton-3", "max", "int8", 4, 64),
        ("graviton-3", "max", "int8", 8, 128),
        ("snapdragon-8-gen-2", "max", "int8", 4, 64),
        ("snapdragon-8-gen-2", "max", "int8", 8, 32),
    ],
)
def test_runs_right_on_the_emulated_cpu(
    target_name: str,
    qemu_cpu: str,
    activations: str,
    bits: int,
    group_size: int,
    caller: Path,
    tmp_path: Path,
) -> None:
    target = resolve(target_name)
    built, rule = compiled(target, activations, bits, group_size)
    built.export_library(str(tmp_path / "kernel.so"), fcompile=tvm.support.cc.cross_compiler(CXX))
    spec = cpu_kernels.spec_of(40, 128, group_size, bits, activations=activations, has_bias=True)
    weight = cpu_kernels.random_weight(spec)
    exact = cpu_kernels.dequantized(spec, *weight)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(40).astype(np.float32)
    # The last is more than any of these kernels quantizes at once.
    for rows in (1, 2, 7, 17, 135):
        x = rng.standard_normal((rows, 128)).astype(np.float32)
        y = np.full((rows, 40), np.nan, np.float32)
        words = []
        for i, array in enumerate((x, *rule.layout(spec, target).pack(spec, *weight), bias, y)):
            (tmp_path / str(i)).write_bytes(array.tobytes())
            shape = ",".join(map(str, array.shape))
            words += [str(tmp_path / str(i)), f"{CODES[array.dtype.kind]}:{array.dtype.itemsize * 8}:{shape}"]
        emulator = [QEMU, "-cpu", qemu_cpu, "-L", "/usr/aarch64-linux-gnu", str(caller)]
        command = [*emulator, str(tmp_path / "kernel.so"), "__tvm_ffi_kernel", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        got = np.fromfile(words[-2], np.float32).reshape(rows, 40)
        used = cpu_kernels.int8_rows(x, group_size) if activations == "int8" else x.astype(np.float64)
        scale = np.abs(used) @ np.abs(exact).T + np.abs(bias)
        assert (np.abs(got - used @ exact.T - bias) / scale).max() < BOUND, rows


def test_a_cpu_without_dot_products_is_told_why() -> None:
    spec = cpu_kernels.spec_of(16, 64, 32, activations="int8")
    rule, reasons = select(spec, resolve("raspberry-pi-4"))
    assert rule is None
    assert any("byte dot product" in reason for reason in reasons)
