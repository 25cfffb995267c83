"""`tune db ...`."""

from __future__ import annotations

import typer

from awq_tvm.cli import tune_db

app = typer.Typer(help="Keep the records of tuned kernels.", no_args_is_help=True)
app.add_typer(tune_db.app, name="db")
