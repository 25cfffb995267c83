"""Quantizing on another device than the CPU: everything is put there, and the result is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from awq_tvm.errors import ResourceError, UsageError
from awq_tvm.quantize.device import find_device

# Widths chosen by linear, experts, learned rounding.
CASES = [("llama", "awq", "auto:3.5"), ("mixtral", "awq", "4"), ("qwen2", "awq+", "4")]


@pytest.mark.parametrize(("family", "method", "bits"), CASES)
def test_another_device_gives_the_same_bytes(tmp_path, family, method, bits):
    """In a process of its own: PyTorch knows the device for as long as the process lives."""
    command = [
        sys.executable,
        "-m",
        "tests.quantize.run_on_both_devices",
        str(tmp_path),
        family,
        method,
        bits,
    ]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    hashes = json.loads(run.stdout.splitlines()[-1])
    assert hashes["cpu"]
    assert hashes["elsewhere"] == hashes["cpu"]


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:one", "cpu:0", "mps"])
def test_names_that_are_no_device(name):
    with pytest.raises(UsageError, match="auto, cpu, cuda and cuda:N"):
        find_device(name)


def test_a_gpu_that_is_not_there():
    with pytest.raises(ResourceError, match="PyTorch has no device cuda:99"):
        find_device("cuda:99")


def test_auto_takes_what_is_there():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device("auto").type == expected
    assert find_device("cpu") == torch.device("cpu")
