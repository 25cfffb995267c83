"""Rows of results: the table, the bars that the project sets itself, JSON, and a plot of the part of the roof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from .pack import IN_TURN, WITH_MMA
from .timing import Timed

CUBLAS, INT4, APART = "cuBLAS fp16", "torch int4", "dequantize, cuBLAS"

BARS = {1: 3.2, 16: 3.0, 64: 1.8, 512: 0.9, 2048: 0.9}
"""How many times as fast as cuBLAS in float16 we want to be, by M."""

OF_BANDWIDTH = 0.85
"""The part of the measured bandwidth that one token is to reach."""


@dataclass(frozen=True)
class Limits:
    """What a machine was measured to do at best.

    Attributes:
        read: bytes a second, from memory.
        multiply: float16 operations a second of `mma.sync` with float32 sums, without any memory.
        wgmma: the same of Hopper's products; None on other GPUs.
        matmul: the same of cuBLAS with a large square product; None without PyTorch.
    """

    read: float
    multiply: float
    wgmma: float | None = None
    matmul: float | None = None

    @property
    def best(self) -> float:
        """Operations a second of what multiplies fastest."""
        return max(self.multiply, self.wgmma or 0.0, self.matmul or 0.0)


@dataclass(frozen=True)
class Row:
    """All contenders on one linear and M.

    Attributes:
        shape: "KxN".
        m: tokens.
        floor_bytes: that must be read and written.
        operations: 2 M N K.
        errors: of ours by the name of their contender, as a part of what is allowed.
        times: of the contenders, ours first; none if our numbers are wrong.
        left_out: why, by contender.
    """

    shape: str
    m: int
    floor_bytes: int
    operations: float
    errors: dict[str, float]
    times: tuple[Timed, ...]
    left_out: dict[str, str]

    def median(self, name: str) -> float | None:
        """Of a contender, if it was measured."""
        return next((one.median for one in self.times if one.name == name), None)

    def roof(self, limits: Limits) -> float:
        """Seconds that the machine allows at best: the longer of reading and multiplying."""
        return max(self.floor_bytes / limits.read, self.operations / limits.best)

    def of_roof(self, limits: Limits) -> float:
        """The part of the roof that ours reaches."""
        return self.roof(limits) / self.times[0].median

    def times_as_fast(self, name: str) -> float | None:
        """Ours as against a contender."""
        other = self.median(name)
        return None if other is None else other / self.times[0].median


def table(rows: Sequence[Row], limits: Limits) -> list[str]:
    """Lines of Markdown, for what was timed."""
    header = (
        "K x N",
        "M",
        "us",
        "spread",
        "roof us",
        "of the roof",
        "GB/s",
        "TFLOP/s",
        CUBLAS,
        "x",
        INT4,
        "x",
        APART,
        "x",
        WITH_MMA,
        "x",
        IN_TURN,
        "x",
    )
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in _timed(rows):
        ours = row.times[0]
        cells = [
            row.shape,
            str(row.m),
            f"{ours.median * 1e6:.2f}",
            f"{ours.spread:.0%}",
            f"{row.roof(limits) * 1e6:.2f}",
            f"{row.of_roof(limits):.0%}",
            f"{row.floor_bytes / ours.median / 1e9:.0f}",
            f"{row.operations / ours.median / 1e12:.1f}",
        ]
        for name in (CUBLAS, INT4, APART, WITH_MMA, IN_TURN):
            other, ratio = row.median(name), row.times_as_fast(name)
            cells += (
                [f"{other * 1e6:.2f}", f"{ratio:.2f}"]
                if other is not None and ratio is not None
                else ["", ""]
            )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def bars(rows: Sequence[Row], limits: Limits) -> list[str]:
    """What was hoped for, and what was found, a line each."""
    lines = []
    for row in _timed(rows):
        if row.m == 1:
            found = row.floor_bytes / limits.read / row.times[0].median
            lines.append(
                _bar(row, f"{found:.0%} of the bandwidth", f"{OF_BANDWIDTH:.0%}", found >= OF_BANDWIDTH)
            )
        if row.m in BARS and (ratio := row.times_as_fast(CUBLAS)) is not None:
            lines.append(_bar(row, f"{ratio:.2f} x {CUBLAS}", f"{BARS[row.m]}", ratio >= BARS[row.m]))
        for name in (INT4, APART):
            if (ratio := row.times_as_fast(name)) is not None:
                lines.append(_bar(row, f"{ratio:.2f} x {name}", "1", ratio > 1))
    return lines


def wrong(rows: Sequence[Row]) -> list[str]:
    """Which kernels compute something else, a line each."""
    return [
        f"- WRONG: {row.shape}, M = {row.m}, {name}: {error:.3g} times the error that rounding allows"
        for row in rows
        for name, error in row.errors.items()
        if not error <= 1
    ]


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.times]


def _bar(row: Row, found: str, wanted: str, holds: bool) -> str:
    return f"- {'reached' if holds else 'MISSED'}: {row.shape}, M = {row.m}: {found}, wanted {wanted}"


def document(
    rows: Sequence[Row],
    limits: Limits,
    machine: dict[str, Any],
    made_with: dict[str, str],
    model: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Everything for a JSON file."""
    return {
        "schema_version": 1,
        "machine": machine,
        "made_with": made_with,
        "limits": asdict(limits),
        "model": list(model),
        "rows": [{**asdict(row), "of_roof": row.of_roof(limits) if row.times else None} for row in rows],
    }


_WIDTH, _BAR, _LEFT = 720, 14, 150


def plot(rows: Sequence[Row], limits: Limits, title: str) -> str:
    """An SVG: a bar a row, the part of the roof that ours reaches, and a mark where cuBLAS is on the same scale."""
    rows, scale = _timed(rows), _WIDTH - _LEFT - 60
    height = 60 + _BAR * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="13">{escape(title)}</text>',
    ]
    for part in range(0, 101, 25):
        x = _LEFT + scale * part / 100
        parts.append(f'<line x1="{x}" x2="{x}" y1="28" y2="{height - 24}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{height - 10}" text-anchor="middle">{part}%</text>')
    for place, row in enumerate(rows):
        y, roof = 32 + _BAR * place, row.roof(limits)
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 9}" text-anchor="end">{row.shape}, M = {row.m}</text>')
        length = scale * min(row.of_roof(limits), 1.05)
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR - 4}" fill="#4477aa"/>')
        if (other := row.median(CUBLAS)) is not None:
            x = _LEFT + scale * min(roof / other, 1.05)
            parts.append(f'<circle cx="{x:.1f}" cy="{y + 5}" r="3" fill="#cc6677"/>')
    return "\n".join([*parts, "</svg>", ""])
