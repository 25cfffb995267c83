"""`targets [NAME]`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from awq_tvm.cli.options import Json
from awq_tvm.cli.output import print_json, say, table
from awq_tvm.errors import TargetError


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", show_default=False, help="Show all of one target.")
    ] = None,
    json_output: Json = False,
) -> None:
    """List the hardware that can be compiled for, and what this machine is."""
    from awq_tvm.targets import ALIASES, all_targets, detect, resolve

    if name is not None:
        description = resolve(name).as_dict()
        if json_output:
            print_json(description)
        else:
            print(table([(key, json.dumps(value)) for key, value in description.items()]))
        return
    known = all_targets()
    try:
        here = detect()
    except TargetError as error:
        here = None
        say(f"note: {error.what}")
    if json_output:
        print_json(
            {
                "targets": [target.as_dict() for target in known],
                "aliases": ALIASES,
                "this_machine": None if here is None else here.as_dict(),
            }
        )
        return
    print(
        table(
            [(target.name, target.kind, target.summary) for target in known],
            header=("target", "kind", "summary"),
        )
    )
    print()
    print(table([(alias, "->", meaning) for alias, meaning in ALIASES.items()]))
    if here is not None:
        print(f"auto, cpu  ->  this machine: {here.name}, {here.summary}")
