"""The ARM kernels: cross-compiled, run by qemu as the CPU they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from awq_tvm.schedules.rule import MatmulRule, select
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve
from tests.support import cpu_kernels, emulated_arm

BOUND = 2e-6


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated_arm.build_caller(tmp_path_factory.mktemp("caller"))


def compiled(target: Target, spec: MatmulSpec) -> tuple[tvm.runtime.Executable, MatmulRule]:
    rule, match = select(spec, target)
    assert isinstance(rule, MatmulRule), match
    func = rule.build(spec, target, match.config).with_attr("global_symbol", "kernel")
    return tvm.compile(tvm.IRModule({"kernel": func}), target=tvm.target.Target(target.tvm_target)), rule


@emulated_arm.needs_qemu
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
    spec = cpu_kernels.spec_of(40, 128, group_size, bits, activations=activations, has_bias=True)
    built, rule = compiled(target, spec)
    emulated_arm.link(built, tmp_path / "kernel.so")
    weight = cpu_kernels.random_weight(spec)
    exact = cpu_kernels.dequantized(spec, *weight)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(40).astype(np.float32)
    # The last is more than any of these kernels quantizes at once.
    for rows in (1, 2, 7, 17, 135):
        x = rng.standard_normal((rows, 128)).astype(np.float32)
        y = np.full((rows, 40), np.nan, np.float32)
        arrays = (x, *rule.layout(spec, target).pack(spec, *weight), bias, y)
        got = emulated_arm.call(caller, qemu_cpu, tmp_path / "kernel.so", "kernel", arrays)[-1]
        used = cpu_kernels.int8_rows(x, group_size) if activations == "int8" else x.astype(np.float64)
        scale = np.abs(used) @ np.abs(exact).T + np.abs(bias)
        assert (np.abs(got - used @ exact.T - bias) / scale).max() < BOUND, rows


@emulated_arm.needs_qemu
@pytest.mark.parametrize(
    ("target_name", "qemu_cpu", "group_size"),
    [("raspberry-pi-5", "cortex-a76", 64), ("graviton-3", "max", 8)],
)
@pytest.mark.parametrize("prologue", [{"rms_norm_eps": 1e-5}, {"gate": "relu"}], ids=["norm", "gate"])
def test_prologues_run_right_on_the_emulated_cpu(
    target_name: str,
    qemu_cpu: str,
    group_size: int,
    prologue: dict[str, Any],
    caller: Path,
    tmp_path: Path,
) -> None:
    target = resolve(target_name)
    spec = cpu_kernels.spec_of(40, 128, group_size, 4, activations="int8", **prologue)
    built, rule = compiled(target, spec)
    emulated_arm.link(built, tmp_path / "kernel.so")
    weight = cpu_kernels.random_weight(spec)
    exact = cpu_kernels.dequantized(spec, *weight)
    rng = np.random.default_rng(1)
    norm = rng.standard_normal(128).astype(np.float32)
    for rows in (1, 7, 17):
        x = rng.standard_normal((rows, spec.x_features)).astype(np.float32)
        y = np.full((rows, 40), np.nan, np.float32)
        more = (norm,) if spec.rms_norm_eps is not None else ()
        arrays = (x, *rule.layout(spec, target).pack(spec, *weight), *more, y)
        got = emulated_arm.call(caller, qemu_cpu, tmp_path / "kernel.so", "kernel", arrays)[-1]
        used = cpu_kernels.multiplied(spec, x, norm)
        assert (np.abs(got - used @ exact.T) / (np.abs(used) @ np.abs(exact).T)).max() < BOUND, rows


def test_a_cpu_without_dot_products_is_told_why() -> None:
    spec = cpu_kernels.spec_of(16, 64, 32, activations="int8")
    rule, reasons = select(spec, resolve("raspberry-pi-4"))
    assert rule is None
    assert any("byte dot product" in reason for reason in reasons)
