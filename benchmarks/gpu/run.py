"""Measure a pack on this machine's NVIDIA GPU: ``python PACK/run.py``. No network, no compiler.

Numbers first: each kernel is compared with float64. Then what the machine can do at best, and every linear beside
cuBLAS and PyTorch's 4-bit kernel, and on Hopper wgmma beside mma: all of them in turn, through graphs, with weights
that no cache holds. At last
prompts and generation of a model of Llama-3-8B's shape with random weights, if TVM's runtime is there.

Without a GPU: --counts prints what the kernels read and multiply, --emulate compares their numbers on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from awq_tvm.compile.tuning.cuda_driver import Gpu, best_arch
from awq_tvm.errors import AwqTvmError, TargetError, UsageError

from . import count_table, model, prediction, report
from .check import error_of
from .measure import measure_limits, measure_rows
from .pack import Case, Pack


def main(pack: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the command line of a pack; returns the exit code."""
    options = _options(arguments)
    try:
        return _run(Pack.read(pack), options)
    except AwqTvmError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--counts", action="store_true", help="print counts, and no times; needs no GPU")
    parser.add_argument(
        "--emulate", action="store_true", help="compare numbers on the CPU; needs g++ and no GPU"
    )
    parser.add_argument(
        "--arch", help="for --counts and --emulate: sm_90 and the like, else the pack's newest"
    )
    parser.add_argument("--shapes", help="only these, KxN,KxN,...")
    parser.add_argument("--m", help="only these, as 1,16")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--no-torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no-model", action="store_true", help="leave the whole model out")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("gpu-results"), help="folder for JSON and plot"
    )
    return parser.parse_args(arguments)


def _run(pack: Pack, options: argparse.Namespace) -> int:
    archs = sorted({case.arch for case in pack.cases}, key=lambda arch: int(arch.removeprefix("sm_")))
    if options.counts:
        cases = _chosen(pack, options, options.arch or archs[-1])
        print(f"Counts for {cases[0].arch} with {cases[0].sms} SMs. No time was measured.\n")
        print("\n".join(count_table.table(cases)))
        if bounds := prediction.table(cases):
            print(
                "\nCycles for which each part is busy at least, and the least time. No time was measured.\n"
            )
            print("\n".join(bounds))
        return 0
    if options.emulate:
        return _emulate(pack, _chosen(pack, options, options.arch or archs[-1]))
    gpu = Gpu()
    gpu.pack = pack.folder
    arch = best_arch(gpu.arch, archs)
    if arch is None:
        raise TargetError(
            "This pack has no binary for this GPU",
            where=f"{gpu.name}, {gpu.arch}",
            why=f"it was made for {', '.join(archs)}",
            fix="make another: python -m benchmarks.gpu.build -o PACK --targets NAME",
        )
    return _measure(pack, _chosen(pack, options, arch), gpu, arch, options)


def _chosen(pack: Pack, options: argparse.Namespace, arch: str) -> list[Case]:
    cases = [case for case in pack.cases if case.arch == arch]
    if options.shapes:
        cases = [case for case in cases if case.shape in options.shapes.split(",")]
    if options.m:
        wanted = {int(m) for m in options.m.split(",")}
        cases = [case.at(wanted) for case in cases]
    if not any(case.launches for case in cases):
        there = sorted({f"{case.arch} {case.shape}" for case in pack.cases})
        raise UsageError("The pack holds nothing of this kind", why=f"it holds {', '.join(there)}")
    return cases


def _emulate(pack: Pack, cases: Sequence[Case]) -> int:
    from .emulated import EmulatedDevice

    device, worst = EmulatedDevice(pack.folder), 0.0
    for case in cases:
        for m in case.launches:
            error = error_of(device, case, m)
            worst = max(worst, error)
            said = f"{case.shape}, M = {m}, {count_table.instructions_of(case, m)}"
            print(f"{said}: {error:.2f} of the error that rounding allows", flush=True)
    print("Computed by the emulator on the CPU; no time was measured.")
    return int(worst > 1)


def _measure(pack: Pack, cases: Sequence[Case], gpu: Gpu, arch: str, options: argparse.Namespace) -> int:
    torch = None if options.no_torch else _torch()
    machine = {
        "gpu": gpu.name,
        "arch": gpu.arch,
        "sms": gpu.sms,
        "l2_bytes": gpu.l2_bytes,
        "driver": gpu.driver,
        "python": platform.python_version(),
        "torch": None if torch is None else str(torch.__version__),
        "began": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    wgmma = any(case.rounds_weights_at for case in cases)
    limits = measure_limits(gpu, pack.limits[arch], wgmma, torch, options.repetitions)
    hopper = "" if limits.wgmma is None else f", of wgmma {limits.wgmma / 1e12:.0f}"
    cublas = "" if limits.matmul is None else f", cuBLAS {limits.matmul / 1e12:.0f}"
    print(
        f"Limits: reading {limits.read / 1e9:.0f} GB/s; float16 products {limits.multiply / 1e12:.0f} TFLOP/s of "
        f"mma.sync{hopper}{cublas}\n",
        flush=True,
    )
    rows = []
    for row in measure_rows(gpu, cases, torch, options.repetitions):
        rows.append(row)
        print("\n".join(report.table([row], limits)[2 if len(rows) > 1 else 0 :]), flush=True)
    left_out = sorted({f"- left out: {name}: {why}" for row in rows for name, why in row.left_out.items()})
    print("\n".join(["", *left_out, *report.wrong(rows), *report.bars(rows, limits)]), flush=True)
    whole = (
        [] if options.no_model or arch not in pack.models else _whole_model(pack.folder / pack.models[arch])
    )
    options.out.mkdir(parents=True, exist_ok=True)
    document = report.document(rows, limits, machine, pack.made_with, whole)
    (options.out / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    title = f"{gpu.name}: part of the roof, bars ours, dots cuBLAS in float16"
    (options.out / "roof.svg").write_text(report.plot(rows, limits, title), encoding="utf-8")
    print(f"Written: {options.out / 'results.json'}, {options.out / 'roof.svg'}")
    return int(bool(report.wrong(rows)))


def _whole_model(folder: Path) -> list[dict[str, Any]]:
    """Measure it, or say why not: what else was measured is worth keeping."""
    try:
        rows = model.measure_model(folder)
    except ImportError as error:
        print(f"\nThe whole model is left out: {error}. It takes TVM's runtime: pip install awq-tvm")
        return []
    except AwqTvmError as error:
        print(f"\nThe whole model does not run here: {error}")
        return []
    print("\n".join(["", *model.lines(rows)]), flush=True)
    return rows


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("PyTorch is not here: ours alone is measured.")
        return None
    if not torch.cuda.is_available():
        print("This PyTorch knows no GPU: ours alone is measured.")
        return None
    return torch
