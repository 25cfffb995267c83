"""`quantize_checkpoint`: a model in, a quantized checkpoint on disk out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from awq_tvm.checkpoint import (
    PER_CHANNEL,
    Checkpoint,
    check_linears_fit,
    open_checkpoint,
    write_quantized_checkpoint,
)
from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.memory import peak_memory
from awq_tvm.output_folder import check_output
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.quantize.architecture import architecture_of, linears_of
from awq_tvm.quantize.bit_allocation import parse_budget, plan_of
from awq_tvm.quantize.block_stream import BlockStream
from awq_tvm.quantize.calibration import check_request, default_for
from awq_tvm.quantize.card import model_card
from awq_tvm.quantize.device import AUTO, describe_device, find_device
from awq_tvm.quantize.finished import dense_tensors, quantized_linears
from awq_tvm.quantize.group_quantize import Rounding, choose_group_size
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED
from awq_tvm.quantize.inner_width import pad_inner_width, padding_note
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.names import NetworkView, in_network_terms
from awq_tvm.quantize.options import METHODS, AwqOptions
from awq_tvm.quantize.preparation import bit_widths, calibration_text, keep_final_norm
from awq_tvm.quantize.report import QuantizeReport, warnings_about_experts
from awq_tvm.quantize.report_request import request_report
from awq_tvm.quantize.rounding_plan import RoundingPlan
from awq_tvm.quantize.torch_model import fast_matmul, quiet_transformers
from awq_tvm.quantize.vocabulary import roundings_of_vocabulary

RTN = "rtn"
# Learning needs more text than searching: it chooses for every weight, not for every channel.
_SAMPLES = {"awq": 16, "awq+": 64}


def quantize_checkpoint(
    model: str,
    out: Path,
    *,
    method: Literal["awq+", "awq", "rtn"] = "awq+",
    bits: int | str = 4,
    group_size: str | int = "auto",
    symmetric: bool = False,
    quantize_embedding: int | None = None,
    quantize_lm_head: int | None = None,
    calibration: str = "default",
    samples: int | None = None,
    sequence_length: int = 512,
    seed: int = 0,
    device: str = AUTO,
    resume: bool = False,
    options: AwqOptions | None = None,
    report_folder: Path | None = None,
    report_text: Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> QuantizeReport:
    """Quantize the linears of a model's blocks, on request embedding and head too; the rest becomes float16.

    The same arguments on the same machine give the same bytes.

    Args:
        model: what `open_checkpoint` takes.
        out: the folder to make; it must not be there.
        method: "awq+"; "awq", which is ten times as fast and does not learn the rounding of the blocks; or "rtn"
            for rounding to nearest, which needs no calibration.
        bits: 2 to 8; or "auto:3.5" for widths of 2, 3, 4 and 8 that differ by linear and take at most 3.5 bits a
            weight on average, scales and zero points included. Asymmetric 4 bits are written as AutoAWQ "gemm",
            all else as compressed-tensors.
        group_size: "auto" for the largest of 128, 64, 32 that divides every linear's inputs, one of them, or -1
            for one group a row. Where only the width inside the MLPs keeps it from fitting, they get channels of
            zeros (see `inner_width`).
        symmetric: no zero points: every one is 2 ** (bits - 1).
        quantize_embedding: 4 or 8 bits for the embedding, rounded to nearest; for a tied head too.
        quantize_lm_head: 4 or 8 bits for the head, rounded to nearest.
        calibration: "default", "self", "hf:NAME" or a text file.
        samples: of calibration text; None for 16, and for 64 where rounding is learned.
        sequence_length: tokens of each.
        seed: of the places where the text is cut.
        device: where PyTorch works: "auto", "cpu", "cuda" or "cuda:N".
        resume: go on from the last finished block of a run that was stopped.
        options: steps of the search; None for those that METHODS recommends for the method.
        report_folder: where to write `report.html` and `report.json`; it must not be there. The model is scored for
            them.
        report_text: UTF-8 text to score for the report; None for Python's help topics.
        progress: told what is being done.

    Returns:
        What was done.

    Raises:
        UsageError: an argument that cannot be meant, an output that exists; before any work.
        UnsupportedError: a family or a value that cannot be quantized.
        CheckpointError: a damaged model, activations that are not finite, or a damaged journal.
        ResourceError: no room, no such device, or another run on the same output.
    """
    started = time.monotonic()
    out = Path(out)
    samples = _SAMPLES.get(method, 1) if samples is None else samples
    _check_arguments(out, method, calibration, samples, sequence_length)
    working = find_device(device)
    options = options or METHODS.get(method, AwqOptions())
    calibrated = method != RTN
    budget = _budget(bits, method)
    usual = int(bits) if budget is None else 3
    Rounding(usual, PER_CHANNEL)
    opened = open_checkpoint(model)
    checkpoint = in_network_terms(pad_inner_width(opened, group_size))
    architecture = architecture_of(checkpoint.config)
    linears = _linears(checkpoint)
    rounding = Rounding(
        usual,
        choose_group_size(group_size, {name: inputs for name, (_, inputs) in linears.items()}),
        symmetric,
    )
    vocabulary = roundings_of_vocabulary(checkpoint, quantize_embedding, quantize_lm_head, rounding)
    plan = RoundingPlan(rounding, vocabulary)
    check_linears_fit({**linears, **_shapes(checkpoint, vocabulary)}, plan.scheme())
    quiet_transformers()
    request = request_report(
        report_folder,
        report_text,
        out=out,
        checkpoint=checkpoint,
        calibration=None if not calibrated else _resolved(calibration, checkpoint),
        context=sequence_length,
    )

    wanted = {
        "calibration": calibration,
        "samples": samples,
        "sequence_length": sequence_length,
        "seed": seed,
    }
    settings = {
        "model": _identity(checkpoint),
        "method": method,
        "bits": usual if budget is None else f"auto:{budget:g}",
        "group_size": rounding.group_size,
        "symmetric": symmetric,
        "vocabulary": {name: one.bits for name, one in vocabulary.items()},
        **(_identity_of_search(wanted, options, working) if calibrated else {}),
    }
    folder = out.with_name(f"{out.name}.journal")
    with torch.device(working), Journal(folder, settings, resume=resume) as journal:
        text = calibration_text(journal, checkpoint, wanted, progress) if calibrated else None
        with torch.no_grad(), fast_matmul():
            if budget is not None and text is not None:
                widths = bit_widths(journal, checkpoint, text, rounding, budget, options, progress)
                chosen = plan_of(widths, rounding)
                plan = replace(chosen, exceptions={**chosen.exceptions, **vocabulary})
            reads_quantized = options.learn_norm_steps or (
                options.learn_steps and options.learn_from == QUANTIZED
            )
            streams = (FULL, QUANTIZED) if reads_quantized else (FULL,)
            stream = BlockStream(
                checkpoint,
                journal,
                plan,
                text.token_ids if text else None,
                loss_mask=text.loss_mask if text else None,
                streams=streams,
            )
            blocks = stream.run(options, progress)
            norm = None
            if text is not None and options.learn_norm_steps:
                norm = keep_final_norm(journal, checkpoint, text, options, seed, progress)
        progress(ProgressEvent("write", 0, 1, str(out)))
        report = QuantizeReport(
            out=out,
            method=method,
            bits=plan.default.bits,
            budget=budget,
            widths=None if budget is None else {name: plan.of(name).bits for name in linears},
            vocabulary={name: one.bits for name, one in vocabulary.items()},
            group_size=rounding.group_size,
            symmetric=symmetric,
            bytes_before=sum(info.stored_bytes for info in checkpoint.files.tensors.values()),
            bytes_after=0,
            seconds=time.monotonic() - started,
            blocks=blocks,
            calibration_source=text.source if text else None,
            calibration_sha256=text.sha256 if text else None,
            calibration_tokens=int(text.token_ids.size) if text else 0,
            peak_memory_bytes=peak_memory(),
            warnings=(
                *padding_note(opened.config, checkpoint.files.config),
                *(text.warnings if text else ()),
                *warnings_about_experts(blocks),
            ),
            norm=norm,
        )
        recipe, name, model_type = (
            _recipe(report, options),
            _name_of(checkpoint),
            checkpoint.files.config["model_type"],
        )

        def card(written: Path) -> str:
            nonlocal report
            if request is not None:
                report = request.measure(report, written, checkpoint, progress)
            return model_card(name, model_type, report, options)

        names = checkpoint.names
        write_quantized_checkpoint(
            out,
            config=checkpoint.files.config,
            scheme=names.scheme_on_disk(plan.scheme()),
            dense=dense_tensors(checkpoint, architecture, journal, plan, vocabulary),
            quantized=quantized_linears(checkpoint, architecture, journal, plan, vocabulary),
            side_files={**checkpoint.side_files, "recipe.json": json.dumps(recipe, indent=2).encode()},
            card=card,
        )
        report = replace(
            report,
            bytes_after=sum(file.stat().st_size for file in out.glob("*.safetensors")),
            seconds=time.monotonic() - started,
            peak_memory_bytes=peak_memory(),
        )
        if request is not None:
            request.write(report, model=name, model_type=model_type, recipe=recipe)
        journal.remove()
    progress(ProgressEvent("write", 1, 1, str(out)))
    return report


def _recipe(report: QuantizeReport, options: AwqOptions) -> dict[str, Any]:
    """How the weights were made, for programs; the same for every run with the same settings."""
    return {
        "method": report.method,
        "bits": report.bits,
        **({} if report.budget is None else {"budget": report.budget, "widths": report.widths}),
        **({"vocabulary": report.vocabulary} if report.vocabulary else {}),
        "group_size": report.group_size,
        "symmetric": report.symmetric,
        "calibration": report.calibration_source,
        "calibration_sha256": report.calibration_sha256,
        "options": asdict(options) if report.calibration_sha256 else None,
    }


def _check_arguments(out: Path, method: str, calibration: str, samples: int, sequence_length: int) -> None:
    if method not in (*METHODS, RTN):
        raise UsageError(
            f"There is no method {method!r}",
            where="--method",
            why=f"known are {', '.join((*METHODS, RTN))}",
            fix="--method awq",
        )
    check_output(out)
    if method != RTN:
        check_request(calibration, samples=samples, sequence_length=sequence_length)


def _budget(bits: int | str, method: str) -> float | None:
    budget = parse_budget(bits)
    if budget is not None and method == RTN:
        raise UsageError(
            "Rounding to nearest cannot choose bit widths",
            where="--bits",
            why="the choice is measured on calibration text, and --method rtn reads none",
            fix="--method awq",
        )
    return budget


def _linears(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """(N, K) of every linear of the blocks, by full name: all are quantized."""
    if checkpoint.quantized:
        raise UnsupportedError(
            "The model is quantized already",
            where=checkpoint.source,
            why=f"{len(checkpoint.quantized)} of its linears are, as {checkpoint.format}",
            fix="quantize the model it was made from, or compile this one as it is",
        )
    return linears_of(checkpoint.config)


def _shapes(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(N, K) of matrices outside the blocks, by full name."""
    found = {}
    for name in names:
        rows, inputs = checkpoint.tensors[f"{name}.weight"].shape
        found[name] = (rows, inputs)
    return found


def _name_of(checkpoint: Checkpoint) -> str:
    """The model's name for the card: what the user typed, without the path of a file on this machine."""
    source = checkpoint.source
    return source if source.startswith("hf:") or source == "demo" else checkpoint.path.name


def _identity(checkpoint: NetworkView) -> dict[str, Any]:
    """What tells this model from another, without reading its weights."""
    path = checkpoint.path
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {
        "config": hashlib.sha256(json.dumps(checkpoint.files.config, sort_keys=True).encode()).hexdigest(),
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
    }


def _identity_of_search(
    wanted: Mapping[str, Any], options: AwqOptions, device: torch.device
) -> dict[str, Any]:
    """What decides how a search ends, beside the model.

    PyTorch does not promise the same bits with another number of threads or on another processor.
    """
    file = Path(wanted["calibration"])
    return {
        **wanted,
        "calibration_file": [file.stat().st_size, file.stat().st_mtime_ns] if file.is_file() else None,
        "options": asdict(options),
        "torch": torch.__version__,
        "processor": describe_device(device),
        "threads": torch.get_num_threads(),
    }


def _resolved(calibration: str, checkpoint: Checkpoint) -> str:
    return default_for(checkpoint) if calibration == "default" else calibration
