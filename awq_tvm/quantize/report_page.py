"""`--report DIR`: the folder with `report.html` and `report.json`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from awq_tvm.errors import ResourceError, UsageError
from awq_tvm.output_folder import check_output, output_folder, write_synced

_TEMPLATE = "report_page.html.jinja"


def check_report(folder: Path, out: Path) -> None:
    """Refuse a report that cannot be written, before any work is done.

    Args:
        folder: of the report.
        out: the quantized checkpoint of the same run.

    Raises:
        UsageError: the folder is the checkpoint's, or the checkpoint would lie in it.
        ResourceError: it exists or cannot be written, or matplotlib is not installed.
    """
    if folder.absolute() in (out.absolute(), *out.absolute().parents):
        raise UsageError(
            "The report needs a folder of its own",
            where="--report",
            why=f"{folder} holds the checkpoint {out}",
            fix=f"--report {out}.report",
        )
    if find_spec("matplotlib") is None:
        raise ResourceError(
            "Reports need a package that is not installed",
            where="--report",
            why="there is no package named matplotlib",
            fix="pip install 'awq-tvm[quantize]'",
        )
    check_output(folder)


def write_report(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the folder; it appears whole or not at all.

    Args:
        folder: must not exist.
        document: as `report_document` makes it.

    Raises:
        ResourceError: it exists or cannot be written.
    """
    content = {
        "report.json": json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.html": render(document),
    }
    with output_folder(folder) as partial:
        for name, text in content.items():
            write_synced(partial / name, text.encode())


def render(document: Mapping[str, Any]) -> str:
    """The page: one HTML file that loads nothing else. Values are escaped, pictures are data.

    Args:
        document: as `report_document` makes it.
    """
    # Here, so that a run without a report needs no matplotlib.
    from awq_tvm.quantize.report_plots import plots_of

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=_size, figure=_figure, percent=_percent, duration=_duration)
    source = resources.files("awq_tvm.quantize").joinpath(_TEMPLATE).read_text("utf-8")
    pictures = [
        (plot.title, plot.caption, base64.b64encode(plot.svg).decode()) for plot in plots_of(document)
    ]
    return environment.from_string(source).render(document, plots=pictures)


def _size(count: float) -> str:
    """Bytes in powers of 1000: "97.3 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _figure(value: float | None, digits: str = ".3g") -> str:
    return "–" if value is None else format(value, digits)  # noqa: RUF001 - an empty cell


def _percent(part: float) -> str:
    return f"{100 * part:.2f} %"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
