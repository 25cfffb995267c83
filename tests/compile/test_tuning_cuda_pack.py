"""Packs for NVIDIA GPUs, as far as they go without one: built by nvcc, and run on a stand-in for the driver.

Its kernels are the emulator's. Of what it measures everything is as on a GPU but the clock.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.compile.tuning import run_pack
from awq_tvm.compile.tuning.choice import recorded_choice
from awq_tvm.compile.tuning.cuda_device import CudaDevice
from awq_tvm.compile.tuning.numbers import Numbers
from awq_tvm.compile.tuning.pack import write_pack
from awq_tvm.compile.tuning.pack_results import import_results, read_results
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record_file import append_record
from awq_tvm.compile.tuning.run_pack import Pack
from awq_tvm.emulate import build_kernels
from awq_tvm.errors import TargetError
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve

GPU = resolve("nvidia-h100")
SPEC = MatmulSpec(256, 64, 4, 64, "float16")
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def problem() -> Problem:
    found = Problem.of(SPEC, GPU)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two candidates for the fewest tokens."""
    if shutil.which("nvcc") is None or shutil.which("g++") is None:
        pytest.skip("nvcc or g++ is not installed")
    file = tmp_path_factory.mktemp("pack") / "gpu.pack"
    keys = [problem().key(part) for part in problem().parts[1:]]
    report = write_pack([problem()], GPU, file, known=keys, trials=2, seconds=0.01, limit=120)
    assert (report.parts, report.candidates, report.refused, report.known) == (1, 2, [], len(keys))
    return file


class Emulated:
    """A pack with a library of the emulator in place of each binary.

    Args:
        pack: the real one.
        folder: for the libraries.
    """

    def __init__(self, pack: Pack, folder: Path) -> None:
        self.pack, self.content, self._folder = pack, json.loads(json.dumps(pack.content)), folder
        self.changed: dict[str, bytes] = {}

    def read(self, name: str) -> bytes:
        if not name.endswith(".cubin"):
            return self.changed.get(name, self.pack.read(name))
        into = self._folder / name
        if not into.exists():
            into.mkdir()
            tables = [part["library"] for part in self.content["parts"]]
            (source,) = [
                one["source"]
                for table in tables
                for one in json.loads(self.pack.read(table))["candidates"]
                if one["image"] == name
            ]
            build_kernels(self.pack.read(source).decode(), "cuda", into)
        return f"{into / 'kernels.so'}\0".encode()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("driver") / "driver.so"
    source = ROOT / "tests/support/emulated_driver.cc"
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


def device(archive: Emulated, driver: str, folder: Path) -> CudaDevice:
    return CudaDevice(archive, folder, library=driver, cold_bytes=1)


def test_what_a_gpu_would_measure_becomes_records_of_that_target(
    packed: Path, driver: str, libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        run_pack, "open_device", lambda pack, folder: device(Emulated(pack, libraries), driver, folder)
    )
    results, file = tmp_path / "results.jsonl", tmp_path / "records.jsonl"
    assert run_pack.main([str(packed), str(results)]) == 0
    report = import_results(read_results(results), lambda record: append_record(file, record))
    assert (report.failed, report.refused, report.left) == ([], [], 0)
    (record,) = report.records
    assert record.key == problem().key(problem().parts[0])
    assert (record.measured.by, record.measured.machine) == ("pack", "emulated")
    assert record.key.target == GPU.fingerprint
    choice, bad = recorded_choice(GPU, [file])
    assert bad == ()
    ours = choice.choose(problem().family, SPEC, GPU, problem().default)
    assert "M 1-8 tuned" in ours.reason
    other = resolve("nvidia-a100")
    elsewhere, _ = recorded_choice(other, [file])
    theirs = Problem.of(SPEC, other)
    assert theirs is not None
    assert elsewhere.choose(theirs.family, SPEC, other, theirs.default).source == "default"


def outcome(archive: Emulated, driver: str, folder: Path) -> dict[str, Any]:
    """Of the first candidate."""
    there = device(archive, driver, folder)
    (part,) = archive.content["parts"]
    there.open(part)
    return there.measure(part, [0], 0.01)


@pytest.mark.parametrize(("dtype", "wanted"), [("float16", (0, 3)), ("bfloat16", (3,))])
def test_each_kernel_is_held_to_the_numbers_that_it_is_to_compute(
    dtype: str, wanted: tuple[int, ...], driver: str, tmp_path: Path
) -> None:
    """On Hopper those for more than 64 tokens round weights; bfloat16 is none of NumPy's types."""
    found = Problem.of(replace(SPEC, dtype=dtype), GPU)
    assert found is not None
    known = [found.key(part) for number, part in enumerate(found.parts) if number not in wanted]
    file = tmp_path / "gpu.pack"
    report = write_pack([found], GPU, file, known=known, trials=1, seconds=0.01, limit=120)
    assert (report.parts, report.refused) == (len(wanted), [])
    (tmp_path / "libraries").mkdir()
    archive = Emulated(Pack(file), tmp_path / "libraries")
    arrays = [one["arrays"] for one in archive.content["problems"]]
    # Once for the weights as they are and once for rounded ones: the same weights, and another y.
    assert len({tuple(names[3:]) for names in arrays}) == 1
    assert len({names[1] for names in arrays}) == len(wanted)
    there = device(archive, driver, tmp_path)
    for part in archive.content["parts"]:
        there.open(part)
        assert set(there.measure(part, [0], 0.01)) == {"cold", "hot"}, part["title"]


def test_faults_are_survived(packed: Path, driver: str, libraries: Path, tmp_path: Path) -> None:
    def spoiled() -> tuple[Emulated, dict[str, Any]]:
        archive = Emulated(Pack(packed), libraries)
        return archive, json.loads(archive.read("part-0.json"))

    archive, _ = spoiled()
    assert {"cold", "hot"} == set(outcome(archive, driver, tmp_path))

    archive, _ = spoiled()
    name = archive.content["problems"][0]["arrays"][1]
    changed = io.BytesIO()
    np.save(changed, 1.01 * np.load(io.BytesIO(archive.read(name))))
    archive.changed[name] = changed.getvalue()
    assert outcome(archive, driver, tmp_path)["kind"] == "wrong"

    archive, table = spoiled()
    for launches in table["candidates"][0]["launches"].values():
        launches[0]["grid"][0] += 1000
    archive.changed["part-0.json"] = json.dumps(table).encode()
    found = outcome(archive, driver, tmp_path)
    assert found["kind"] == "died"
    assert "cuLaunchKernelEx failed" in found["why"]

    archive, _ = spoiled()
    there = device(archive, driver, tmp_path)
    there._limit = 0.001
    (part,) = archive.content["parts"]
    there.open(part)
    assert there.measure(part, [0], 0.01)["kind"] == "slow"


def test_other_gpus_are_refused(packed: Path, driver: str, libraries: Path, tmp_path: Path) -> None:
    archive = Emulated(Pack(packed), libraries)
    archive.content["architecture"] = "sm_80"
    with pytest.raises(TargetError, match="for another machine"):
        device(archive, driver, tmp_path)
    with pytest.raises(TargetError, match="no NVIDIA GPU"):
        CudaDevice(archive, tmp_path, library="/no/such/driver.so")


def test_without_a_gpu_the_pack_says_so(packed: Path, tmp_path: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        [sys.executable, "-I", packed, tmp_path / "results.jsonl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5
    assert "no NVIDIA GPU can be used here" in done.stderr
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_numbers_of_16_bits_allow_for_one_rounding_of_the_result(dtype: str) -> None:
    numbers, single = (Numbers(replace_dtype(one), 2) for one in (dtype, "float32"))
    assert numbers.x.dtype.name == dtype
    expected, allowed = numbers.device_arrays()
    assert (np.abs(expected.astype(numbers.x.dtype).astype(np.float64) - expected) <= allowed).all()
    assert (allowed > single.device_arrays()[1]).all()


def test_rounded_weights_are_other_numbers_of_the_same_linear() -> None:
    exact, rounded = Numbers(problem(), 2), Numbers(problem(), 3, rounds_weights=True)
    assert (exact.x == rounded.x[:2]).all()
    assert all((a == b).all() for a, b in zip(exact.packed, rounded.packed, strict=True))
    apart = np.abs(exact.device_arrays()[0] - rounded.device_arrays()[0][:2])
    # A float32 sum would not be told from the other; both are the result of float16 weights, about.
    assert 2 * exact.bound < (apart / exact._scale).max() < 2.0**-11


def replace_dtype(dtype: str) -> Problem:
    return replace(problem(), spec=replace(SPEC, dtype=dtype))
