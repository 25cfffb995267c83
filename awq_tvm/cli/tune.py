"""`tune MODEL_OR_SHAPES`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from awq_tvm.cli.options import Json
from awq_tvm.cli.output import print_json, say, table
from awq_tvm.cli.progress_bar import ProgressDisplay
from awq_tvm.cli.tune_pack import import_file, make_pack
from awq_tvm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from awq_tvm.compile.tuning.local import LocalMeasurer
    from awq_tvm.compile.tuning.problem import Problem
    from awq_tvm.compile.tuning.rpc import RpcMeasurer
    from awq_tvm.compile.tuning.shapes import Wanted
    from awq_tvm.compile.tuning.tuner import TuneReport
    from awq_tvm.targets import Target


def command(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL_OR_SHAPES",
            show_default=False,
            help="A quantized model as `compile` takes it, or shapes of linears, inputs x outputs: 576x960,1536x576.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(help="auto, or a name; this machine must run its code, except with --rpc or --pack."),
    ] = "auto",
    activations: Annotated[str, typer.Option(help="As for `compile`.")] = "auto",
    dtype: Annotated[str, typer.Option(help="As for `compile`.")] = "auto",
    vocabulary_bits: Annotated[
        int, typer.Option(metavar="BITS", help="As for `compile`; of a model only.")
    ] = 8,
    bits: Annotated[int, typer.Option(help="Of shapes.")] = 4,
    group_size: Annotated[int, typer.Option(help="Of shapes.")] = 64,
    trials: Annotated[int, typer.Option(min=1, help="Candidates for each kernel and range of M.")] = 16,
    seconds: Annotated[
        float | None, typer.Option(min=0, show_default=False, help="After so many, try nothing new.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="That the kernels run on while they are timed.")] = 1,
    limit: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="For the few candidates that are measured together; a slow device needs more.",
        ),
    ] = 60,
    again: Annotated[bool, typer.Option("--again", help="Measure what has a record already, too.")] = False,
    rpc: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            show_default=False,
            help="Measure on a device of TVM's tracker at this address.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(show_default=False, help="Of the tracker's devices; --target says what they are."),
    ] = None,
    pack: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Measure nothing: build the candidates into a file that the device runs, with TVM's runtime alone.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="RESULTS", show_default=False, help="Add what a pack measured to the records."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            show_default=False,
            help="Where records are added; by default a file for the target among your own.",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Find the fastest tiles of a model's kernels, for `compile` to use; `tune db` keeps them."""
    from awq_tvm.compile.tuning.places import file_of, user_folder, usual_files
    from awq_tvm.compile.tuning.record_file import append_record, read_records, record_files
    from awq_tvm.compile.tuning.shapes import are_shapes, model_wanted, shapes_wanted
    from awq_tvm.targets import resolve

    if results is not None:
        if what is not None or pack is not None or rpc is not None:
            raise UsageError("--import takes no model, no shapes, no --pack and no --rpc", where="--import")
        report, file, chip = import_file(results, None if target == "auto" else resolve(target), out)
        _finish(report, file, chip, 0, json_output)
        return
    if what is None:
        raise UsageError("there is nothing to tune", where="MODEL_OR_SHAPES", fix="name a model or shapes")
    if (rpc is None) != (key is None) or (rpc is not None and pack is not None):
        raise UsageError(
            "--rpc goes with --key, and not with --pack", where="--rpc", fix="see docs/tuning-devices.md"
        )
    if pack is not None and seconds is not None:
        raise UsageError("--pack has no --seconds", where="--seconds", fix="--trials says how much is tried")
    chip = resolve(target)
    file = out or file_of(user_folder(), chip.fingerprint)

    def wanted_here() -> list[Wanted]:
        if are_shapes(what):
            return shapes_wanted(
                what, chip, bits=bits, group_size=group_size, activations=activations, dtype=dtype
            )
        return model_wanted(what, chip, activations=activations, dtype=dtype, vocabulary_bits=vocabulary_bits)

    files = dict.fromkeys((*usual_files(), *record_files(file)))
    known = () if again else read_records(files).by_key().keys()
    if pack is not None:
        problems = _linears([one.problem for one in wanted_here() if one.problem is not None])
        make_pack(
            pack,
            problems,
            chip,
            known=known,
            trials=trials,
            threads=threads,
            limit=limit,
            json_output=json_output,
        )
        return
    from awq_tvm.compile.tuning.limits import limits_of_this_machine
    from awq_tvm.compile.tuning.tuner import tune

    with _measurer(chip, rpc, key, threads, limit) as measurer, ProgressDisplay() as display:
        wanted = wanted_here()
        problems = [one.problem for one in wanted if one.problem is not None]
        untuned = len(wanted) - len(problems)
        problems = problems if rpc is None else _linears(problems)
        say("note: measure on a quiet machine; what else runs here makes the choice less sure")
        report = tune(
            problems,
            measurer,
            lambda record: append_record(file, record),
            known=known,
            trials=trials,
            seconds=seconds,
            limits=partial(limits_of_this_machine, threads) if rpc is None else lambda: None,
            progress=display.update,
        )
    _finish(report, file, chip, untuned, json_output)


def _linears(problems: Sequence[Problem]) -> list[Problem]:
    """What another machine can measure."""
    found = [problem for problem in problems if problem.is_linear]
    if len(found) < len(problems):
        say(
            f"note: {len(problems) - len(found)} attention kernels are left out; `tune` on the machine has them"
        )
    return found


def _measurer(
    chip: Target, rpc: str | None, key: str | None, threads: int, limit: float
) -> LocalMeasurer | RpcMeasurer:
    """This machine, or a device behind a tracker."""
    from awq_tvm.compile.tuning.local import LocalMeasurer
    from awq_tvm.compile.tuning.rpc import RpcMeasurer, tracker_address

    if rpc is None or key is None:
        return LocalMeasurer(chip, threads=threads, limit=limit)
    return RpcMeasurer(chip, tracker_address(rpc), key, threads=threads, limit=limit)


def _finish(report: TuneReport, file: Path, chip: Target, untuned: int, json_output: bool) -> None:
    """Print what was found, and end as tuning ended."""
    if json_output:
        print_json(
            {
                "target": chip.name,
                "fingerprint": chip.fingerprint,
                "file": file,
                "records": [record.model_dump(mode="json", exclude_none=True) for record in report.records],
                "known": report.known,
                "without_a_space": untuned,
                **{name: getattr(report, name) for name in _COUNTS},
            }
        )
    else:
        _print(report, file, untuned)
    if report.lost is not None:
        raise report.lost
    if report.interrupted:
        raise KeyboardInterrupt


_COUNTS = ("candidates", "failed", "left", "refused", "interrupted", "seconds")


def _print(report: TuneReport, file: Path, untuned: int) -> None:
    for line in (*report.failed, *report.refused[:5]):
        say(f"note: {line}")
    rows: list[tuple[Any, ...]] = []
    for record in report.records:
        before, after, roof = record.default_microseconds, record.microseconds, record.roof_microseconds
        rows.append(
            (
                record.key.title,
                f"{before.cold:.1f}",
                f"{after.cold:.1f}",
                f"{before.cold / after.cold:.2f}",
                "" if roof is None else f"{100 * roof / after.cold:.0f}%",
            )
        )
    if rows:
        header = ("kernel", "default us", "tuned us", "gain", "of the roof")
        print(table(rows, header=header, right=(1, 2, 3, 4)))
    parts = [f"{len(report.records)} records added to {file}" if rows else "nothing was measured anew"]
    parts += [f"{report.known} known already"] if report.known else []
    parts += [f"{report.left} not reached"] if report.left else []
    parts += [f"{untuned} linears have nothing to tune"] if untuned else []
    print(f"{'; '.join(parts)} ({report.candidates} candidates, {report.seconds:.0f} s)")
