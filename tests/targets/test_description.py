"""The checks a target description goes through, and its fingerprint."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from awq_tvm.errors import TargetError
from awq_tvm.targets import Target, all_targets, missing_features, resolve

CPU = {
    "name": "some-cpu",
    "summary": "a CPU",
    "kind": "cpu",
    "family": "x86",
    "tvm_target": {
        "kind": "llvm",
        "mtriple": "x86_64-unknown-linux-gnu",
        "num-cores": 2,
        "mattr": ["+avxvnni"],
    },
    "features": frozenset({"avx2", "avxvnni"}),
    "cores": 2,
}
GPU = {
    "name": "some-gpu",
    "summary": "a GPU",
    "kind": "cuda",
    "family": "cuda",
    "tvm_target": {"kind": "cuda", "arch": "sm_80", "thread_warp_size": 32},
    "host": {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu"},
    "sm_arch": "sm_80",
    "cuda_archs": ("sm_80",),
    "shared_memory_bytes": 49152,
    "warp_size": 32,
}


def test_the_good_twins_are_accepted() -> None:
    assert Target(**CPU).has_int8_dot
    assert Target(**GPU).compute_dtype == "float16"
    assert not Target(**CPU).has_bfloat16
    assert Target(**GPU).has_bfloat16
    assert resolve("nvidia-h100").has_bfloat16


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "Some CPU"}, "lower-case words"),
        ({"kind": "tpu"}, "unknown kind 'tpu'"),
        ({"family": "cuda"}, "does not go with kind 'cpu'"),
        ({"tvm_target": {"kind": "cuda"}}, "tvm_target has kind 'cuda'"),
        ({"tvm_target": {**CPU["tvm_target"], "host": {}}}, "holds a host"),
        ({"default_activations": "int4"}, "default_activations is 'int4'"),
        ({"l1_bytes": 0}, "l1_bytes is 0"),
        ({"l2_bytes": -1}, "l2_bytes is -1"),
        ({"fp32_gflops": float("nan")}, "fp32_gflops is nan"),
        ({"read_bandwidth_gb_per_s": float("inf")}, "read_bandwidth_gb_per_s is inf"),
        ({"cores": True}, "cores is True"),
        ({"cores": None}, "cores is None"),
        ({"cores": 3}, "num-cores is 2 but cores is 3"),
        ({"tvm_target": {"kind": "llvm", "num-cores": 2}}, "no mtriple"),
        ({"host": {"kind": "llvm"}}, "a CPU target has a host"),
        ({"features": frozenset({"avx2"})}, "mattr turns on avxvnni"),
        (
            {
                "features": frozenset({"avx"}),
                "tvm_target": {**CPU["tvm_target"], "mattr": []},
                "default_activations": "int8",
            },
            "without an int8 dot product",
        ),
        ({"sm_arch": "sm_80"}, "are for CUDA"),
        ({"ptx_arch": "compute_80"}, "are for CUDA"),
    ],
)
def test_an_inconsistent_cpu_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(TargetError, match="not consistent") as refusal:
        Target(**{**CPU, **change})
    assert why in str(refusal.value.why)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"host": None}, "host is None"),
        ({"host": {"kind": "llvm"}}, "host is {'kind': 'llvm'}"),
        ({"features": frozenset({"avx2"})}, "a GPU target has CPU features"),
        ({"warp_size": None}, "warp_size is None"),
        ({"shared_memory_bytes": None}, "shared_memory_bytes is None"),
        ({"warp_size": 64}, "thread_warp_size is 32 but warp_size is 64"),
        ({"sm_arch": "sm_90a"}, "'sm_90a' is not an architecture"),
        ({"sm_arch": None}, "'' is not an architecture"),
        ({"cuda_archs": ("sm_80", "90")}, "'90' is not an architecture"),
        ({"sm_arch": "sm_86"}, "arch 'sm_80' but sm_arch is 'sm_86'"),
        ({"cuda_archs": ("sm_90",)}, "lacks 'sm_80'"),
        ({"cuda_archs": ("sm_90a",)}, "lacks 'sm_80'"),
        ({"cuda_archs": ("sm_80", "sm_90b")}, "'sm_90b' is not an architecture"),
        ({"ptx_arch": "sm_90"}, "ptx_arch is 'sm_90'"),
    ],
)
def test_an_inconsistent_gpu_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(TargetError, match="not consistent") as refusal:
        Target(**{**GPU, **change})
    assert why in str(refusal.value.why)


def test_a_target_does_not_change_after_it_was_made() -> None:
    given = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "num-cores": 2}
    target = Target(**{**CPU, "tvm_target": given})
    given["mcpu"] = "x86-64-v4"
    assert target.mcpu == ""
    target.tvm_target_with_host["mcpu"] = "x86-64-v4"
    assert target.mcpu == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.cores = 4  # type: ignore[misc]


def test_the_host_rides_inside_the_tvm_target_of_a_gpu() -> None:
    target = Target(**GPU)
    assert target.tvm_target_with_host == {**GPU["tvm_target"], "host": GPU["host"]}
    assert "host" not in target.tvm_target


def test_the_fingerprint_is_of_what_matters_for_tuning() -> None:
    target = Target(**CPU)
    same = dataclasses.replace(target, name="another", summary="other words", fp32_gflops=5.0, l3_bytes=2**25)
    assert same.fingerprint == target.fingerprint
    changes: list[dict[str, Any]] = [
        {"features": target.features | {"fma"}},
        {"l1_bytes": 49152},
        {"l2_bytes": 2**20},
        {"cores": 4, "tvm_target": {**target.tvm_target, "num-cores": 4}},
        {"tvm_target": {**target.tvm_target, "mcpu": "x86-64-v3"}},
        {"tvm_target": {**target.tvm_target, "mtriple": "x86_64-apple-macos"}},
    ]
    prints = {dataclasses.replace(target, **change).fingerprint for change in changes}
    assert len(prints) == len(changes)
    assert target.fingerprint not in prints
    assert all(text.startswith("x86-") and len(text) == len("x86-") + 12 for text in prints)


def test_the_fingerprint_stays_the_same_between_processes_and_releases() -> None:
    # Shipped tuned records are keyed by it: when this fails, they are orphaned.
    code = "from awq_tvm.targets import resolve; print(resolve('raspberry-pi-5').fingerprint)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == resolve("raspberry-pi-5").fingerprint == "arm-e9185a830d2b"


def test_registered_chips_have_fingerprints_of_their_own() -> None:
    prints = [target.fingerprint for target in all_targets()]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_as_dict_is_json_with_the_derived_fields(target: Target) -> None:
    plain = json.loads(json.dumps(target.as_dict()))
    assert plain["features"] == sorted(target.features)
    assert plain["fingerprint"] == target.fingerprint
    assert plain["compute_dtype"] == ("float32" if target.kind == "cpu" else "float16")
    assert hash(target) == hash(dataclasses.replace(target))


def test_missing_features_are_named() -> None:
    old, new = resolve("raspberry-pi-4"), resolve("raspberry-pi-5")
    assert missing_features(new, old) == ("dotprod", "fullfp16", "lse", "rdm")
    assert missing_features(old, new) == ()


def test_targets_load_without_tvm_and_numpy() -> None:
    code = "import sys, awq_tvm.targets as t; t.detect(); print({'tvm', 'numpy', 'torch'} & set(sys.modules))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "arch"), [("cuda", "sm_80"), ("nvidia-h100", "sm_90a"), ("nvidia-b200", "sm_100")]
)
def test_code_for_one_gpu_has_all_that_it_has(name: str, arch: str) -> None:
    assert resolve(name).own_cuda_arch == arch
