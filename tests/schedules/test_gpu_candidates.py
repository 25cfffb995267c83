"""What a GPU finds in logits for sampling: in the emulator against NumPy, and what the compiler makes of it."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tvm

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import BundleError
from awq_tvm.schedules.gpu.candidates import CANDIDATES, MOST_PARTS, RECORD, Division, find_candidates
from awq_tvm.targets import resolve
from benchmarks.gpu.machine_code import disassemble, find_disassembler, read_listing
from tests.support.gpu_kernels import Emulated, needs_compiler

Dialect = Literal["cuda", "metal"]
Array = np.ndarray[Any, Any]
TARGETS = {"cuda": "nvidia-a100", "metal": "metal"}
SUM_ERROR = 1e-5


@cache
def host_part(dialect: Dialect, vocabulary: int) -> HostPart:
    target = resolve(TARGETS[dialect])
    func = find_candidates(vocabulary, tvm.target.Target(target.tvm_target_with_host))
    return HostPart(func.with_attr("global_symbol", "find"), target)


def find(kernels: Emulated, host: HostPart, logits: Array, inverses: Array) -> Array:
    rows, vocabulary = logits.shape
    arrays = {
        "logits": logits,
        "inverse_temperatures": inverses,
        "parts": np.zeros((rows, Division(vocabulary).parts, RECORD), np.uint32),
        "found": np.full((rows, RECORD), np.nan, np.float32),
    }
    kernels.launch(host.launches({"m": rows}), arrays)
    return arrays["found"]


def rows_to_try(vocabulary: int) -> Array:
    random = np.random.default_rng(vocabulary)
    rows = 4 * random.standard_normal((10, vocabulary)).astype(np.float32)
    rows[1] = np.rint(rows[1])  # ties, at the edge of the candidates too
    rows[2] = -1.25  # all equal
    rows[3, vocabulary // 3 :] = -np.inf
    rows[4, random.integers(0, vocabulary, 2)] = np.nan, -np.nan
    rows[5, :] = -np.inf
    rows[5, vocabulary - 1] = 3e38
    rows[6] = np.where(random.random(vocabulary) < 0.5, 0.0, -0.0)
    rows[7] = -3e38
    rows[7, -7:] = np.float32(1e-45)  # subnormal
    rows[8] = np.arange(vocabulary)
    rows[9, vocabulary // 2] = np.inf
    return rows


@needs_compiler
@pytest.mark.parametrize("dialect", ["cuda", "metal"])
# A part of a thread's vectors, and parts that end in the middle; read one number, two and four at a time.
@pytest.mark.parametrize("vocabulary", [65, 5002, 4096])
def test_the_likeliest_in_stable_order_and_the_sums(
    dialect: Dialect, vocabulary: int, tmp_path: Path
) -> None:
    host = host_part(dialect, vocabulary)
    logits = rows_to_try(vocabulary)
    inverses = (1 / np.array([1, 0.7, 100, 0.1, 1, 0.5, 2, 1, 3, 1])).astype(np.float32)
    found = find(Emulated(host.source, dialect, tmp_path), host, logits, inverses)
    for row, inverse, result in zip(logits, inverses, found, strict=True):
        largest_first = np.argsort(-np.where(np.isnan(row), np.inf, row), kind="stable")[:CANDIDATES]
        ids = result[CANDIDATES : 2 * CANDIDATES].view(np.int32)
        np.testing.assert_array_equal(ids, largest_first)
        np.testing.assert_array_equal(result[:CANDIDATES], row[largest_first])
        if not np.isfinite(row.max()):
            continue
        for scale, total in zip((1, inverse), result[2 * CANDIDATES :], strict=False):
            expected = np.exp((row.astype(float) - float(row.max())) * scale).sum()
            assert total == pytest.approx(expected, rel=SUM_ERROR)


@needs_compiler
def test_the_emulator_objects_without_barriers(tmp_path: Path) -> None:
    host = HostPart(
        find_candidates(96, tvm.target.Target("nvidia/nvidia-a100")).with_attr("global_symbol", "find"),
        resolve("nvidia-a100"),
    )
    host.source = host.source.replace("__syncthreads();", "")
    with pytest.raises(BundleError, match="went wrong"):
        find(Emulated(host.source, "cuda", tmp_path), host, rows_to_try(96), np.ones(10, np.float32))


def test_a_row_is_divided_among_blocks() -> None:
    for vocabulary in (65, 49152, 128256, 151936, 262144, 1 << 20):
        division = Division(vocabulary)
        assert 1 <= division.parts <= MOST_PARTS
        assert (division.parts - 1) * division.part < vocabulary <= division.parts * division.part
    read, merge = host_part("cuda", 4096).launches({"m": 3})
    assert (read.grid, merge.grid) == ((2, 3, 1), (3, 1, 1))
    assert (Division(128256).parts, Division(128256).part) == (63, 2048)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.skipif(find_disassembler() is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize("vocabulary", [128256, 262144])
def test_nothing_is_spilled_and_logits_are_read_in_vectors(vocabulary: int, tmp_path: Path) -> None:
    source = tmp_path / "kernels.cu"
    source.write_text(host_part("cuda", vocabulary).source)
    _, (cubin,), reports = Nvcc.find().compile(source, ("sm_80",), None)
    listing = disassemble(cubin)
    assert listing is not None
    code = read_listing(listing)
    vectors = {"find_kernel": Division(vocabulary).turns, "find_kernel_1": 2 * 4}
    for kernel in reports:
        assert kernel.spill_store_bytes == kernel.spill_load_bytes == 0, kernel
        # A block of 256 threads is 8 warps; four such fit an SM's registers.
        assert kernel.registers <= 64, kernel
        loads = [one for one in code[kernel.name].instructions if re.match(r"LDG?\.", one)]
        wide = [one for one in loads if ".128" in one]
        assert len(wide) >= vectors[kernel.name], (kernel.name, loads)
        # A temperature; merging reads the sums and the maximum of two parts a lane.
        assert len(loads) - len(wide) <= 7, (kernel.name, loads)
        assert any(one.startswith("VOTE") for one in code[kernel.name].instructions)
