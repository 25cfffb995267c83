"""Lookup of targets by name."""

from __future__ import annotations

import dataclasses

import pytest

from awq_tvm.errors import TargetError
from awq_tvm.targets import ALIASES, all_targets, detect, register, resolve


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("nvidia-h100", "nvidia-h100"),
        ("h100", "nvidia-h100"),
        ("NVIDIA_H100", "nvidia-h100"),
        ("RTX 4090", "nvidia-rtx-4090"),
        ("Raspberry Pi 5", "raspberry-pi-5"),
        ("jetson", "jetson-agx-orin"),
        ("x86-64-v3", "x86-64-v3"),
        ("cuda", "cuda-sm80-to-sm90"),
        ("metal", "apple-m1-gpu"),
        ("arm", "armv8.2-dotprod"),
    ],
)
def test_a_name_finds_its_target(asked: str, found: str) -> None:
    assert resolve(asked).name == found


def test_auto_and_cpu_are_this_machine() -> None:
    assert resolve("auto") == resolve("cpu") == detect()


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [
        ("raspberry-pi", ["raspberry-pi-4", "raspberry-pi-5"]),
        ("apple-m2", ["apple-m2-cpu", "apple-m2-gpu"]),
        ("graviton", ["graviton-2", "graviton-3", "graviton-4"]),
    ],
)
def test_a_name_with_several_meanings_is_refused(asked: str, candidates: list[str]) -> None:
    with pytest.raises(TargetError, match="is not clear") as refusal:
        resolve(asked)
    assert refusal.value.why == f"it matches {', '.join(candidates)}"
    assert refusal.value.exit_code == 5


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("gravitn-3", ["graviton-3", "graviton-2", "graviton-4"]),
        ("metla", ["metal"]),
        ("h10", ["nvidia-h100", "nvidia-a10"]),
        ("l40", ["nvidia-l40s", "nvidia-l4"]),
        ("m1", ["apple-m1-cpu", "apple-m1-gpu"]),
        ("rtx4090", ["nvidia-rtx-4090", "nvidia-rtx-3090"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(asked: str, near: list[str]) -> None:
    with pytest.raises(TargetError, match="There is no target") as refusal:
        resolve(asked)
    assert refusal.value.why == f"the nearest are {', '.join(near)}"


@pytest.mark.parametrize("asked", ["", "  ", "-", "qqqq", "7"])
def test_what_is_near_nothing_is_refused_with_all_names(asked: str) -> None:
    with pytest.raises(TargetError) as refusal:
        resolve(asked)
    assert str(refusal.value.why).startswith("known are auto, cpu, cuda, ")
    assert refusal.value.fix


@pytest.mark.parametrize("taken", ["nvidia-h100", "cuda", "auto"])
def test_a_name_is_registered_once(taken: str) -> None:
    before = all_targets()
    with pytest.raises(TargetError, match="exists already"):
        register(dataclasses.replace(resolve("nvidia-h100"), name=taken))
    assert all_targets() == before


def test_every_alias_leads_to_a_target() -> None:
    assert {resolve(alias).name for alias in ALIASES} == set(ALIASES.values())


def test_the_hardware_we_promise_is_there() -> None:
    promised = {
        "raspberry-pi-4",
        "raspberry-pi-5",
        "graviton-2",
        "graviton-3",
        "graviton-4",
        "snapdragon-x",
        "snapdragon-8-gen-2",
        "apple-m1-cpu",
        "apple-m2-cpu",
        "apple-m3-cpu",
        "apple-m4-cpu",
        "apple-m1-gpu",
        "apple-m2-gpu",
        "apple-m3-gpu",
        "apple-m4-gpu",
        "jetson-agx-orin",
        "nvidia-t4",
        "nvidia-a10",
        "nvidia-a100",
        "nvidia-rtx-3090",
        "nvidia-rtx-4090",
        "nvidia-l4",
        "nvidia-l40s",
        "nvidia-h100",
        "nvidia-h200",
        "nvidia-b200",
        "x86-64-v3",
        "x86-64-v4",
        "x86-64-v4-vnni",
    }
    assert promised <= {target.name for target in all_targets()}
