"""`tune db list | merge | verify | coverage | prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from awq_tvm.cli.options import Json, Model
from awq_tvm.cli.output import print_json, say, table

if TYPE_CHECKING:
    from awq_tvm.compile.tuning.record import TunedRecord
    from awq_tvm.compile.tuning.record_file import BadLine, Records

app = typer.Typer(help="List, merge, check and clean files of tuned records.", no_args_is_help=True)

Places = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE_OR_FOLDER]...",
        show_default=False,
        help="By default the records that came with the program and your own.",
    ),
]


@app.command("list")
def list_records(
    places: Places = None,
    target: Annotated[
        str | None, typer.Option(help="Only of this target: a name or a fingerprint.", show_default=False)
    ] = None,
    json_output: Json = False,
) -> None:
    """Show the records, the newest for each kernel."""
    found = _read(places)
    records = list(found.by_key().values())
    if target is not None:
        fingerprint = _fingerprint(target)
        records = [record for record in records if record.key.target == fingerprint]
    records.sort(key=lambda record: tuple(value for _, value in record.key))
    _complain(found.bad)
    if json_output:
        print_json(
            {
                "records": [record.model_dump(mode="json", exclude_none=True) for record in records],
                "bad": len(found.bad),
            }
        )
        return
    print(
        table(
            [
                (
                    record.key.target,
                    record.key.title,
                    f"{record.microseconds.cold:.1f}",
                    f"{record.microseconds.hot:.1f}",
                    f"{record.default_microseconds.cold / record.microseconds.cold:.2f}",
                    _in_words(record),
                )
                for record in records
            ],
            header=("target", "kernel", "cold us", "hot us", "gain", "configuration"),
            right=(2, 3, 4),
        )
    )
    say(f"{len(records)} records, {len(found.records) - len(records)} not shown, {len(found.bad)} bad lines")


@app.command()
def merge(
    places: Annotated[
        list[Path], typer.Argument(metavar="FILE_OR_FOLDER...", show_default=False, help="What to read.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            show_default=False,
            help="The file; what it holds is merged too.",
        ),
    ],
    json_output: Json = False,
) -> None:
    """Put the newest record of every kernel into one file; the files that are read stay as they are."""
    from awq_tvm.compile.tuning.record_file import (
        Records,
        existing,
        read_records,
        replace_records,
        sorted_records,
    )

    paths = [path for place in places for path in existing(place) if path.resolve() != out.resolve()]
    found = read_records(paths)
    merged: list[TunedRecord] = []

    def union(before: Records) -> list[TunedRecord]:
        merged.extend(sorted_records(Records((*before.records, *found.records))))
        return merged

    before = replace_records(out, union)
    bad = (*found.bad, *before.bad)
    _complain(bad)
    if json_output:
        print_json({"out": out, "files": len(paths), "records": len(merged), "bad": len(bad)})
        return
    print(f"{out}: {len(merged)} records of {len(paths)} files; {len(bad)} bad lines left out")


@app.command()
def verify(places: Places = None, json_output: Json = False) -> int:
    """Check every line; exit code 1 if one is bad. Records that no kernel asks for any more are named."""
    from awq_tvm.compile.tuning.choice import retired

    found = _read(places)
    _complain(found.bad)
    old = [
        f"{record.key.target}, {record.key.title}: {why}"
        for record in found.records
        if (why := retired(record.key))
    ]
    for line in old[:5]:
        say(f"retired: {line}")
    if json_output:
        print_json(
            {
                "good": len(found.records),
                "blank": found.blank,
                "retired": old,
                "bad": [
                    {"file": line.path, "line": line.number, "why": line.why, "title": line.title}
                    for line in found.bad
                ],
            }
        )
    else:
        print(
            f"{len(found.records)} good lines, {found.blank} blank, {len(found.bad)} bad; {len(old)} retired"
        )
    return 1 if found.bad else 0


@app.command()
def prune(
    places: Annotated[
        list[Path], typer.Argument(metavar="FILE_OR_FOLDER...", show_default=False, help="What to clean.")
    ],
    json_output: Json = False,
) -> None:
    """Leave the newest record of every kernel that is still asked for; bad lines go to a file beside it."""
    from awq_tvm.compile.tuning.choice import retired
    from awq_tvm.compile.tuning.record_file import existing, replace_records, sorted_records

    def wanted(found: Records) -> list[TunedRecord]:
        return [record for record in sorted_records(found) if retired(record.key) is None]

    rows = []
    for path in (path for place in places for path in existing(place)):
        before = replace_records(path, wanted)
        newest = before.by_key()
        gone = [f"{key.target}, {key.title}: {why}" for key in newest if (why := retired(key)) is not None]
        for line in gone:
            say(f"retired: {line}")
        rows.append(
            {
                "file": path,
                "kept": len(newest) - len(gone),
                "older": len(before.records) - len(newest),
                "retired": len(gone),
                "retired_records": gone,
                "bad": len(before.bad),
            }
        )
    if json_output:
        print_json({"files": rows})
        return
    for row in rows:
        removed = f"{row['older']} older, {row['retired']} retired and {row['bad']} bad removed"
        print(f"{row['file']}: {row['kept']} kept; {removed}")


@app.command()
def coverage(
    model: Model,
    target: Annotated[str, typer.Option(help="As for `compile`.")] = "auto",
    activations: Annotated[str, typer.Option(help="As for `compile`.")] = "auto",
    dtype: Annotated[str, typer.Option(help="As for `compile`.")] = "auto",
    vocabulary_bits: Annotated[int, typer.Option(metavar="BITS", help="As for `compile`.")] = 8,
    records: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE_OR_FOLDER", show_default=False, help="More tuned records."),
    ] = None,
    json_output: Json = False,
) -> None:
    """Say which of a model's kernels have records for a target, and which records its schedules left behind."""
    from awq_tvm.compile.tuning.choice import recorded_choice
    from awq_tvm.compile.tuning.shapes import model_wanted
    from awq_tvm.targets import resolve

    chip = resolve(target)
    chooser, bad = recorded_choice(chip, records or ())
    _complain(bad)
    rows = []
    for one in model_wanted(
        model, chip, activations=activations, dtype=dtype, vocabulary_bits=vocabulary_bits
    ):
        problem = one.problem
        if problem is None:
            rows.append({"kernel": str(one.spec), "count": one.count, "source": "none", "reason": ""})
            continue
        choice = chooser.choose(problem.family, problem.spec, chip, problem.default)
        rows.append(
            {
                "kernel": problem.title,
                "count": one.count,
                "source": choice.source,
                "reason": choice.reason,
            }
        )
    unused = [f"{title}: {why}" for title, why in sorted(chooser.unfit.items())]
    if json_output:
        print_json(
            {
                "target": chip.name,
                "fingerprint": chip.fingerprint,
                "kernels": rows,
                "unused": unused,
                "bad": len(bad),
            }
        )
        return
    for line in unused:
        say(f"not used: {line}")
    print(
        table([tuple(row.values()) for row in rows], header=("kernel", "count", "records", "why"), right=(1,))
    )


def _read(places: list[Path] | None) -> Records:
    from awq_tvm.compile.tuning.places import usual_files
    from awq_tvm.compile.tuning.record_file import existing, read_records

    if places:
        return read_records(path for place in places for path in existing(place))
    return read_records(usual_files())


def _fingerprint(target: str) -> str:
    from awq_tvm.errors import TargetError
    from awq_tvm.targets import resolve

    try:
        return resolve(target).fingerprint
    except TargetError:
        family, _, digest = target.partition("-")
        if family in ("x86", "arm", "cuda", "metal") and len(digest) == 12:
            return target
        raise


def _complain(bad: tuple[BadLine, ...]) -> None:
    """Name the first bad lines."""
    for line in bad[:5]:
        say(f"bad line: {line.title}")
    if len(bad) > 5:
        say(f"and {len(bad) - 5} more bad lines")


def _in_words(record: TunedRecord) -> str:
    parts = []
    for name, value in record.config.items():
        inner = value.items() if isinstance(value, dict) else None
        parts.append(
            f"{name}={value}" if inner is None else f"{name}({', '.join(f'{k}={v}' for k, v in inner)})"
        )
    return " ".join(parts)
