"""The benchmark for GPUs, as far as it goes without one: packs are built, and measured in the emulator's driver."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.compile.tuning.cuda_driver import Gpu, best_arch
from awq_tvm.emulate import EmulatedKernels, build_kernels
from awq_tvm.errors import BundleError, ResourceError, TargetError, UnsupportedError
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from benchmarks.gpu import report, run
from benchmarks.gpu.build import build_cases, build_pack, model_target
from benchmarks.gpu.check import checked_rows, error_of, random_weight, rows_of_weight
from benchmarks.gpu.emulated import EmulatedDevice
from benchmarks.gpu.machine_code import find_disassembler
from benchmarks.gpu.measure import measure_limits, measure_rows
from benchmarks.gpu.model import Parameter, lines, measure_model, random_weights, write_random_bundle
from benchmarks.gpu.model_build import LLAMA_3_8B, build_model
from benchmarks.gpu.pack import IN_TURN, OURS, WITH_MMA, Pack
from benchmarks.gpu.peers import dequantized
from benchmarks.gpu.timing import Contender, copies_beyond, interleaved, timed
from tests.support.emulated_bundle import run_in_emulator

TINY = {
    **LLAMA_3_8B,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
}

ROOT = Path(__file__).resolve().parents[2]
TOKENS = (1, 17, 65)
"""From 65 on Hopper has kernels of its own, and those of other GPUs are beside them."""

needs_compilers = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("g++") is None, reason="nvcc or g++ is not installed"
)
without_gpu = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU here")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """K of 16 blocks, so that it is divided in two; N ragged."""
    if shutil.which("nvcc") is None or shutil.which("g++") is None:
        pytest.skip("nvcc or g++ is not installed")
    folder = tmp_path_factory.mktemp("gpu") / "pack"
    return build_pack(folder, [(1024, 40)], TOKENS, ["nvidia-h100"], 64)


def in_pack(pack: Pack, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the pack's own program, from elsewhere and without this checkout on the path."""
    command = [sys.executable, "-E", str(pack.folder / "run.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=pack.folder.parent, capture_output=True, text=True, check=False)


def test_a_pack_is_small_and_says_what_it_holds(pack: Pack) -> None:
    assert sum(path.stat().st_size for path in pack.folder.rglob("*") if path.is_file()) < 8 << 20
    assert pack == Pack.read(pack.folder)
    case, beside = pack.cases
    assert [[one.cluster for one in case.launches[m]] for m in TOKENS] == [[1], [2], [2]]
    assert case.counts[17]["parts"] == 2
    assert (case.name, beside.name) == (OURS, WITH_MMA)
    assert (case.image.endswith("-sm_90a.cubin"), beside.image.endswith("-sm_90.cubin")) == (True, True)
    assert (case.rounds_weights_at, beside.rounds_weights_at, list(beside.launches)) == ((65,), (), [65])
    for one in pack.cases:
        assert all(kernel["spill_bytes"] == 0 and kernel["registers"] for kernel in one.kernels.values())
    assert (pack.folder / pack.limits["sm_90"]).read_bytes()[:4] == b"\x7fELF"


def test_kernels_of_a_pack_compute_what_they_should(pack: Pack) -> None:
    done = in_pack(pack, "--emulate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of the error that rounding allows") == len(TOKENS) + 1
    assert "M = 65, wgmma" in done.stdout
    assert "M = 65, mma" in done.stdout
    assert "no time was measured" in done.stdout


def test_counts_are_printed_as_counts(pack: Pack) -> None:
    done = in_pack(pack, "--counts", "--m", "17,65")
    assert done.returncode == 0, done.stderr
    assert "No time was measured" in done.stdout
    for line in ("17 | mma | 1 x 2", "65 | wgmma | 1 x 2", "65 | mma | 2 x 2"):
        assert f"| 1024x40 | {line} |" in done.stdout
    assert "| 1024x40 | 1 |" not in done.stdout
    # Once as counts, once as what they say of a time, where there is a disassembler.
    assert done.stdout.count("| 1024x40 | 65 | wgmma |") == 1 + (find_disassembler() is not None)


@without_gpu
def test_without_a_gpu_it_says_so_and_writes_nothing(pack: Pack) -> None:
    before = set(pack.folder.parent.iterdir())
    done = in_pack(pack)
    assert done.returncode == 5
    assert done.stderr.startswith("No NVIDIA GPU was found, so nothing was measured")
    assert "--counts and --emulate" in done.stderr
    assert (done.stdout, set(pack.folder.parent.iterdir())) == ("", before)


def test_what_a_pack_does_not_hold_is_refused(pack: Pack) -> None:
    done = in_pack(pack, "--counts", "--shapes", "64x64")
    assert done.returncode == 2
    assert "sm_90 1024x40" in done.stderr


def test_hoppers_kernels_are_held_to_the_weights_that_they_multiply(pack: Pack) -> None:
    """Rounded once, and then to no less than `mma`'s: with exact weights they would be told to be wrong."""
    case, beside = pack.cases
    device = EmulatedDevice(pack.folder)
    assert error_of(device, case, 65) < 1
    assert error_of(device, beside, 65) < 1
    assert error_of(device, dataclasses.replace(case, rounds_weights_at=()), 65) > 1
    assert error_of(device, dataclasses.replace(beside, rounds_weights_at=(65,)), 65) > 1


def test_a_kernel_that_computes_something_else_is_found(pack: Pack, tmp_path: Path) -> None:
    case = pack.cases[0]
    source = (pack.folder / case.source).read_text()
    # A sixteenth, with which every second code is decoded.
    sixteenth = f"(uint){0x2C002C00}"
    assert sixteenth in source
    (tmp_path / case.source).write_text(source.replace(sixteenth, "(uint)0"))
    assert error_of(EmulatedDevice(tmp_path), case, 1) > 100


def test_an_output_that_is_not_written_is_infinitely_wrong(pack: Pack, emulated_gpu: Gpu) -> None:
    case = pack.cases[0]
    (launch,) = case.launches[17]
    fewer = dataclasses.replace(launch, arguments=tuple(16 if one == 17 else one for one in launch.arguments))
    lazy = dataclasses.replace(case, launches={17: (fewer,)})
    assert math.isinf(error_of(emulated_gpu, lazy, 17))


@pytest.fixture(scope="module")
def emulated_gpu(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    """The driver's interface with kernels in the emulator: a library instead of a binary in each image."""
    folder = tmp_path_factory.mktemp("driver")
    library, source = folder / "driver.so", ROOT / "tests/support/emulated_driver.cc"
    subprocess.run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    gpu = Gpu(str(library))
    gpu.pack = folder
    for image in (*(case.image for case in pack.cases), pack.limits["sm_90"]):
        into = folder / image.removesuffix(".cubin")
        into.mkdir()
        source = (pack.folder / image).with_suffix(".cu")
        built = build_kernels(source.read_text(), "cuda", into)
        (folder / image).write_bytes(f"{built}\0".encode())
    return gpu


def test_all_that_is_measured_there_runs_here(
    pack: Pack, emulated_gpu: Gpu, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the program's own calls of the driver, graphs and events; what it prints is the emulator's time."""
    assert (emulated_gpu.arch, emulated_gpu.sms) == ("sm_90", 2)
    limits = measure_limits(emulated_gpu, pack.limits["sm_90"], True, None, 2, read_bytes=1 << 16, rounds=1)
    assert limits.wgmma is not None
    assert min(limits.read, limits.multiply, limits.wgmma) > 0
    assert limits.best == max(limits.multiply, limits.wgmma)
    rows = list(measure_rows(emulated_gpu, pack.cases, None, 2, rotated=1))
    assert [row.m for row in rows] == list(TOKENS)
    assert [list(row.errors) for row in rows] == [[OURS], [OURS], [OURS, WITH_MMA]]
    assert all(0 < error < 1 for row in rows for error in row.errors.values())
    assert all(row.times[0].median > 0 for row in rows)
    # Up to 64 tokens kernels overlap, and are timed beside themselves without.
    assert [[one.name for one in row.times] for row in rows] == [
        [OURS, IN_TURN],
        [OURS, IN_TURN],
        [OURS, WITH_MMA],
    ]
    assert rows[-1].times_as_fast(WITH_MMA) == rows[-1].times[1].median / rows[-1].times[0].median
    assert report.wrong(rows) == []
    lines = report.table(rows, limits)
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    document = report.document(rows, limits, {"gpu": emulated_gpu.name}, pack.made_with, [])
    assert json.loads(json.dumps(document))["rows"][1]["of_roof"] == rows[1].of_roof(limits)
    assert report.plot(rows, limits, "a < b").count("<rect") == 1 + len(rows)
    # The emulator is not as fast as a GPU.
    assert any(line.startswith("- MISSED: 1024x40, M = 1") for line in report.bars(rows, limits))


def test_the_whole_program_writes_its_results(
    pack: Pack, emulated_gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import benchmarks.gpu.measure as measure

    small = {"rotated": 1}
    monkeypatch.setattr(measure.measure_limits, "__defaults__", (1 << 16, 1))
    monkeypatch.setattr(measure.measure_rows, "__defaults__", (small["rotated"],))
    options = run._options(
        ["--no-torch", "--no-model", "--repetitions", "1", "--m", "1", "-o", str(tmp_path / "out")]
    )
    folder = emulated_gpu.pack
    assert run._measure(pack, run._chosen(pack, options, "sm_90"), emulated_gpu, "sm_90", options) == 0
    assert emulated_gpu.pack == folder
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert (found["machine"]["gpu"], found["machine"]["torch"]) == ("emulated", None)
    assert (tmp_path / "out/roof.svg").read_text().startswith("<svg")


def test_a_fault_in_a_kernel_is_the_drivers_error(pack: Pack, emulated_gpu: Gpu) -> None:
    case = pack.cases[0]
    buffers = {name: emulated_gpu.empty(16) for name in ("qweight", "scales", "x", "y", "zeros")}
    with pytest.raises(ResourceError, match="cuLaunchKernelEx failed") as error:
        emulated_gpu.launch(emulated_gpu.image(case), case.launches[1][0], buffers)
    assert "out of bounds" in error.value.why
    emulated_gpu.free_all()


@pytest.mark.slow
@needs_compilers
def test_a_model_without_weights_gets_random_ones_and_runs(tmp_path: Path) -> None:
    """For CUDA in the emulator: numbers of a likely size, no two tokens alike."""
    made = build_pack(tmp_path / "pack", [], [], ["nvidia-h100"], 64, TINY)
    write_random_bundle(made.folder / made.models["sm_90"], tmp_path / "bundle")
    found = run_in_emulator(tmp_path / "bundle", tmp_path, parts=[(20, "all")], greedy=2, vocabulary=512)
    assert np.isfinite(found.logits).all()
    assert 0.3 < found.logits.std() < 3
    assert len(set(found.logits.argmax(1))) > 10


def test_a_model_is_measured_by_the_runtimes_own_bench(tmp_path: Path) -> None:
    """For this CPU, where there are times to measure."""
    build_model(tmp_path / "model", resolve("cpu"), TINY, 64, context_length=64)
    rows = measure_model(tmp_path / "model", prompt_tokens=(16,), generate_tokens=4, repetitions=2)
    assert [row["test"] for row in rows] == ["pp16", "tg4"]
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert len(lines(rows)) == 4


def test_random_weights_keep_the_size_of_what_passes() -> None:
    K, N = 512, 64
    spec = MatmulSpec(K, N, 4, 64, "float16")
    arrays = LAYOUTS["mma_fragments"].arrays(spec)
    parameters = [Parameter(a.suffix, a.shape, a.dtype, a.suffix, 4, K) for a in arrays]
    parameters += [Parameter("norm", (K,), "float16", "dense", 16, K)]
    weight = dict(random_weights(parameters))
    W = rows_of_weight(spec, "mma_fragments", weight, np.arange(N))
    assert abs(W.std() * K**0.5 - 1) < 0.05
    assert (weight["norm"] == 1).all()


@needs_compilers
def test_limits_read_every_byte(tmp_path: Path) -> None:
    kernels = EmulatedKernels(
        build_kernels((ROOT / "benchmarks/gpu/limits.cu").read_text(), "cuda", tmp_path)
    )
    x = np.random.default_rng(0).integers(0, 2**32, (3001, 4), dtype=np.uint32)
    out = np.zeros(1024, np.uint32)
    kernels.launch("read16", [out, x, len(x)], (2, 1, 1), (512, 1, 1))
    assert out.sum(dtype=np.uint32) == np.bitwise_xor.reduce(x, 1).sum(dtype=np.uint32)


def test_a_driver_that_is_not_there_is_no_gpu() -> None:
    with pytest.raises(TargetError, match="No NVIDIA GPU") as error:
        Gpu("libnothing-of-the-kind.so")
    assert "cannot be loaded" in error.value.why


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 99}'])
def test_what_is_no_pack_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(BundleError, match="pack"):
        Pack.read(tmp_path)
    assert run.main(tmp_path, ["--counts"]) == 6


def test_a_linear_that_the_kernels_do_not_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="do not serve") as error:
        build_cases(MatmulSpec(96, 16, 4, 32, "float16"), resolve("nvidia-h100"), [1], tmp_path)
    assert "whole blocks" in error.value.why


@pytest.mark.parametrize(
    ("gpu", "found"),
    [("sm_90", "sm_90"), ("sm_86", "sm_80"), ("sm_80", "sm_80"), ("sm_120", None), ("sm_75", None)],
)
def test_a_gpu_runs_binaries_of_its_own_generation(gpu: str, found: str | None) -> None:
    assert best_arch(gpu, ["sm_80", "sm_90"]) == found


def test_weights_are_decoded_as_they_were_packed() -> None:
    spec, layout = MatmulSpec(128, 40, 4, 64, "float16"), LAYOUTS["mma_fragments"]
    rng = np.random.default_rng(0)
    q = rng.integers(0, 16, (40, 128), dtype=np.uint8)
    scales, zeros = rng.random((40, 2)).astype(np.float16), rng.integers(0, 16, (40, 2), dtype=np.uint8)
    names = [array.suffix for array in layout.arrays(spec)]
    weight = dict(zip(names, layout.pack(spec, q, scales, zeros), strict=True))
    rows = checked_rows(spec, 0)
    assert (rows // 16).tolist() == [0, 1, 2]
    expected = (q.astype(float) - np.repeat(zeros, 64, 1)) * np.repeat(scales.astype(float), 64, 1)
    assert (rows_of_weight(spec, "mma_fragments", weight, rows) == expected[rows]).all()
    random = random_weight(spec, "mma_fragments", 0)
    assert {name: (a.shape, a.dtype) for name, a in random.items()} == {
        name: (a.shape, a.dtype) for name, a in weight.items()
    }


def test_a_model_is_compiled_for_what_one_would_name() -> None:
    assert model_target(resolve("nvidia-h100")).name == "nvidia-h100"
    assert model_target(resolve("nvidia-a100")).name == resolve("cuda").name


def test_statistics_of_real_products() -> None:
    """NumPy's, on this CPU: what is measured is in the order of what was asked, and every figure follows from it."""
    order = []

    def product(name: str, size: int) -> Contender:
        a = np.random.default_rng(0).random((size, size), dtype=np.float32)

        def seconds() -> float:
            order.append(name)
            start = time.perf_counter()
            a @ a
            return time.perf_counter() - start

        return Contender(name, seconds)

    ours, other = interleaved([product(OURS, 8), product(report.CUBLAS, 128)], 4)
    assert order == [OURS, report.CUBLAS] * 5
    assert 0 < ours.low <= ours.median <= ours.high
    row = report.Row(
        "8x8", 1, 3 * 8 * 8 * 4, 2.0 * 8**3, {OURS: 0.5}, (ours, other), {report.INT4: "not here"}
    )
    limits = report.Limits(read=1e12, multiply=1e13)
    assert row.roof(limits) == 768 / 1e12
    assert row.of_roof(limits) == 768 / 1e12 / ours.median
    assert row.times_as_fast(report.CUBLAS) == other.median / ours.median
    assert row.times_as_fast(report.INT4) is None
    (line,) = report.table([row], limits)[2:]
    assert f"{ours.median * 1e6:.2f}" in line
    assert line.endswith("|  |  |")
    assert report.table([dataclasses.replace(row, times=(), errors={OURS: 7.0})], limits)[2:] == []
    assert report.wrong([dataclasses.replace(row, times=(), errors={OURS: 7.0})]) == [
        "- WRONG: 8x8, M = 1, ours: 7 times the error that rounding allows"
    ]


def test_quartiles() -> None:
    found = timed("a", [4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high, found.spread) == (2.0, 3.0, 4.0, 2 / 3)
    assert timed("a", [2.0]).spread == 0


def test_weights_rotate_beyond_every_cache() -> None:
    assert copies_beyond(50 << 20, 8_781_824) * 8_781_824 >= 2 * (50 << 20)
    assert copies_beyond(4 << 20, 1_000_000) == 100
    assert copies_beyond(4 << 20, 500_000_000) == 2


def test_the_weight_of_both_steps_apart_is_the_dequantized_one() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    q = random.integers(0, 16, (6, 64))
    scales, zeros = random.standard_normal((6, 2)).astype(np.float16), random.integers(0, 16, (6, 2))
    packed = (q[:, ::2] | q[:, 1::2] << 4).astype(np.uint8)
    arrays = (packed, scales, zeros.astype(np.float16))
    found = dequantized(torch, *map(torch.from_numpy, arrays)).numpy()
    expected = (q.reshape(6, 2, 32) - zeros[..., None]).astype(np.float16) * scales[..., None]
    np.testing.assert_array_equal(found, expected.reshape(6, 64))
