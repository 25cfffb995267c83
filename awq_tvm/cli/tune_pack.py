"""`tune --pack` and `tune --import`: candidates for a device that measures them by itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from awq_tvm.cli.output import in_bytes, print_json, say
from awq_tvm.cli.progress_bar import ProgressDisplay
from awq_tvm.errors import TargetError, UsageError

if TYPE_CHECKING:
    from awq_tvm.compile.tuning.problem import Problem
    from awq_tvm.compile.tuning.record import KernelKey
    from awq_tvm.compile.tuning.tuner import TuneReport
    from awq_tvm.targets import Target


def make_pack(
    file: Path,
    problems: Sequence[Problem],
    target: Target,
    *,
    known: Collection[KernelKey],
    trials: int,
    threads: int,
    limit: float,
    json_output: bool,
) -> None:
    """Build a pack and say how to run it."""
    from awq_tvm.compile.tuning.pack import write_pack

    with ProgressDisplay() as display:
        report = write_pack(
            problems,
            target,
            file,
            known=known,
            trials=trials,
            threads=threads,
            limit=limit,
            progress=display.update,
        )
    if json_output:
        print_json(
            {
                "target": target.name,
                "fingerprint": target.fingerprint,
                "file": file if report.parts else None,
                **{
                    name: getattr(report, name)
                    for name in ("parts", "candidates", "known", "refused", "bytes")
                },
            }
        )
        return
    for line in report.refused[:5]:
        say(f"note: {line}")
    known_words = f"; {report.known} known already" if report.known else ""
    if not report.parts:
        print(f"nothing to measure, so no pack was written{known_words}")
        return
    print(
        f"{file}: {report.candidates} candidates of {report.parts} kernels for {target.name}, "
        f"{in_bytes(report.bytes)}{known_words}"
    )
    print(f"on the device: python {file.name} RESULTS")
    print("back here:     python -m awq_tvm tune --import RESULTS")


def import_file(file: Path, target: Target | None, out: Path | None) -> tuple[TuneReport, Path, Target]:
    """Add what a device measured to the records.

    Args:
        file: that the pack wrote.
        target: that it must be of; None for any.
        out: where records go; None for the target's file among the user's own.

    Raises:
        UsageError: there is nothing in it.
        TargetError: it is of another target.
    """
    from awq_tvm.compile.tuning.pack_results import import_results, read_results
    from awq_tvm.compile.tuning.places import file_of, user_folder
    from awq_tvm.compile.tuning.record_file import append_record

    results = read_results(file)
    if target is not None and target.fingerprint != results.target.fingerprint:
        raise TargetError(
            "these results are of another target",
            where=str(file),
            why=f"found {results.target.name} ({results.target.fingerprint}), needed {target.name} "
            f"({target.fingerprint})",
            fix="leave out --target to take them as what they are",
        )
    records = out or file_of(user_folder(), results.target.fingerprint)
    report = import_results(results, lambda record: append_record(records, record))
    if not report.records and not report.failed:
        raise UsageError(
            "there is no result in this file that can be used",
            where=str(file),
            why=report.refused[0]
            if report.refused
            else "the pack was not run to the end of its first kernel",
        )
    return report, records, results.target
