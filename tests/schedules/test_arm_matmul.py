"""The ARM kernels: cross-compiled, run by qemu as the CPU they are for, looked at for their instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
import tvm_ffi

from awq_tvm.schedules.rule import MatmulRule, select
from awq_tvm.targets import Target, resolve
from awq_tvm.targets.detection import describe_linux_cpu
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
    target_name: str, activations: str, bits: int, n: int = 40, k: int = 128, group_size: int = 64
) -> tuple[tvm.runtime.Executable, str, MatmulRule]:
    return compiled_for(resolve(target_name), activations, bits, n, k, group_size)


def compiled_for(
    target: Target, activations: str, bits: int, n: int, k: int, group_size: int = 64
) -> tuple[tvm.runtime.Executable, str, MatmulRule]:
    spec = cpu_kernels.spec_of(n, k, group_size, bits, activations=activations, has_bias=True)
    rule, match = select(spec, target)
    assert isinstance(rule, MatmulRule), match
    func = rule.build(spec, target, match.config).with_attr("global_symbol", "kernel")
    built = tvm.compile(tvm.IRModule({"kernel": func}), target=tvm.target.Target(target.tvm_target))
    return built, built.mod.inspect_source("asm"), rule


@needs_qemu
@pytest.mark.parametrize(
    ("target_name", "qemu_cpu", "activations", "bits", "group_size"),
    [
        ("raspberry-pi-4", "cortex-a72", "float", 4, 64),
        ("raspberry-pi-4", "cortex-a72", "float", 8, 64),
        ("raspberry-pi-5", "cortex-a76", "float", 4, 64),
        ("raspberry-pi-5", "cortex-a76", "int8", 3, 64),
        ("raspberry-pi-5", "cortex-a76", "int8", 8, 64),
        ("graviton-3", "max", "float", 4, 64),
        ("graviton-3", "max", "float", 8, 32),
        ("graviton-3", "max", "int8", 3, 32),
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
    built, _, rule = compiled(target_name, activations, bits, group_size=group_size)
    built.export_library(str(tmp_path / "kernel.so"), fcompile=tvm.support.cc.cross_compiler(CXX))
    target = resolve(target_name)
    spec = cpu_kernels.spec_of(40, 128, group_size, bits, activations=activations, has_bias=True)
    weight = cpu_kernels.random_weight(spec)
    exact = cpu_kernels.dequantized(spec, *weight)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(40).astype(np.float32)
    for rows in (1, 2, 7, 17, 131):
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


@pytest.mark.parametrize(
    ("target_name", "activations", "instruction"),
    [
        ("raspberry-pi-4", "float", "fmla"),
        ("raspberry-pi-5", "float", "sdot"),
        ("raspberry-pi-5", "int8", "sdot"),
        ("graviton-3", "int8", "usdot"),
        ("graviton-3", "int8", "usmmla"),
        ("graviton-3", "float", "usmmla"),
        ("apple-m1-cpu", "int8", "sdot"),
    ],
)
def test_the_inner_loop_has_the_instruction_meant_and_spills_nothing(
    target_name: str, activations: str, instruction: str
) -> None:
    # Large enough that LLVM keeps the loops.
    _, assembly, _ = compiled(target_name, activations, 4, n=576, k=576)
    # The blocks between labels that end in a backward branch are loops; those with the instruction are ours.
    blocks = re.split(r"^\.?L\w+:", assembly, flags=re.MULTILINE)
    loops = [parts[0] for block in blocks if len(parts := re.split(r"\bb\.(?:ne|lt)\b", block)) > 1]
    inner = [loop for loop in loops if len(re.findall(rf"\s{instruction}(?:\.4s)?\s", loop)) >= 8]
    assert inner
    assert not [
        line for loop in inner for line in loop.splitlines() if re.search(r"\bst[rp]\s+q.*\[sp", line)
    ]


LINUX_WITH_I8MM = "Features : fp asimd atomics fphp asimdhp asimdrdm asimddp asimdfhm i8mm bf16"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["host", "snapdragon-8-gen-2", "snapdragon-x", "graviton-4", "apple-m2-cpu"])
def test_matrix_instructions_spill_nothing_whatever_cpu_llvm_schedules_for(name: str, bits: int) -> None:
    host = describe_linux_cpu("aarch64", LINUX_WITH_I8MM, cores=4, caches={})
    target = host if name == "host" else resolve(name)
    _, assembly, _ = compiled_for(target, "int8", bits, n=256, k=256)
    loops = re.findall(r"^\.?L\w+:\n((?:\s[^\n]*\n)*?\sb\.\w+\s[^\n]*\n)", assembly, flags=re.MULTILINE)
    inner = [loop for loop in loops if loop.count("usmmla") >= 8]
    assert len(inner) == 1
    assert not re.search(r"\b(?:st|ld)u?[rp]\s+q.*\[sp", inner[0])


def test_a_cpu_without_dot_products_is_told_why() -> None:
    spec = cpu_kernels.spec_of(16, 64, 32, activations="int8")
    rule, reasons = select(spec, resolve("raspberry-pi-4"))
    assert rule is None
    assert any("byte dot product" in reason for reason in reasons)
