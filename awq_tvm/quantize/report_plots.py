"""The plots of a report, as SVG, from the values of `report.json`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

# Told apart by those who see few colours, too.
_BEFORE, _AFTER, _THIRD = "#d55e00", "#0072b2", "#009e73"
_STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#33383f",
    "xtick.color": "#555b64",
    "ytick.color": "#555b64",
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    # Names in the file do not depend on the run.
    "svg.hashsalt": "awq_tvm",
}
_WIDTH = 9.6
# A mixture of experts has hundreds of groups; those that are not drawn are in the table.
_MOST_PANELS = 12

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture.

    Attributes:
        title: what it shows.
        caption: how to read it.
        svg: an SVG file.
    """

    title: str
    caption: str
    svg: bytes


def plots_of(document: Values) -> list[Plot]:
    """Draw what was measured: errors, scales and clipping where there was calibration, time and memory always.

    Args:
        document: as `report_document` makes it.
    """
    blocks = document["blocks"]
    groups = _by_group(blocks)
    drawn = dict(list(groups.items())[:_MOST_PANELS])
    left_out = (
        f" The first {_MOST_PANELS} of {len(groups)} groups; the table has all."
        if len(drawn) < len(groups)
        else ""
    )
    plots = []
    if any(block["loss_before"] is not None for block in blocks):
        plots.append(
            Plot(
                "Error of each block's output",
                "Mean squared change of the output on the calibration text, on a logarithmic scale; lower is "
                "better. Blocks are compared one by one, each on the inputs it has in full precision.",
                _draw(lambda figure: _block_errors(figure, blocks), 3.2),
            )
        )
    if groups:
        rows = -(-len(drawn) // 2)
        plots += [
            Plot(
                "Error of each group of linears",
                "Mean squared change of the output that a group is judged by; groups share an input. "
                + left_out,
                _draw(
                    lambda figure: _panels(figure, drawn, _group_errors, "mean squared change"),
                    2.3 * rows + 0.5,
                ),
            ),
            Plot(
                "Exponent r of the scales",
                "Input channels were scaled by mean|X|^r before rounding; 0 is no scaling. " + left_out,
                _draw(lambda figure: _exponents(figure, drawn, len(blocks)), 0.36 * len(drawn) + 1.3),
            ),
            Plot(
                "Range of the scales that were folded",
                "Smallest to largest scale of a group's input channels, and the median, on a logarithmic scale; "
                "1 leaves a channel as it is. " + left_out,
                _draw(lambda figure: _panels(figure, drawn, _scale_ranges, "scale"), 2.3 * rows + 0.5),
            ),
            Plot(
                "Weights outside the range that was kept",
                "Clipping moves them to the end of their group's range, so that the steps between become finer. "
                + left_out,
                _draw(lambda figure: _outside(figure, drawn), 3.2),
            ),
        ]
    plots.append(
        Plot(
            "Time and memory of each block",
            "Memory is the peak of the resident set while a block was quantized. Blocks that an interrupted run "
            "had finished are shown as they were then.",
            _draw(lambda figure: _costs(figure, blocks), 2.8),
        )
    )
    return plots


def _by_group(blocks: Sequence[Values]) -> dict[str, list[tuple[int, Values]]]:
    """For each group of linears the blocks that have it, with what is known of it there."""
    found: dict[str, list[tuple[int, Values]]] = {}
    for block in blocks:
        for group in block["groups"]:
            found.setdefault(group["name"], []).append((block["index"], group))
    return found


def _draw(fill: Callable[[Figure], None], height: float) -> bytes:
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        fill(figure)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def _block_errors(figure: Figure, blocks: Sequence[Values]) -> None:
    axes = figure.subplots()
    indices = [block["index"] for block in blocks]
    _pair(
        axes,
        indices,
        *([_logarithmic(block[side]) for block in blocks] for side in ("loss_before", "loss_after")),
    )
    axes.set(xlabel="block", ylabel="mean squared change")
    axes.legend(loc="best")


def _group_errors(axes: Axes, of_blocks: Sequence[tuple[int, Values]]) -> None:
    indices = [index for index, _ in of_blocks]
    _pair(
        axes,
        indices,
        *([_logarithmic(group[side]) for _, group in of_blocks] for side in ("loss_rtn", "loss")),
    )


def _scale_ranges(axes: Axes, of_blocks: Sequence[tuple[int, Values]]) -> None:
    indices = [index for index, _ in of_blocks]
    low, middle, high = (
        [group[f"scale_{which}"] for _, group in of_blocks] for which in ("min", "median", "max")
    )
    axes.vlines(indices, low, high, color=_AFTER, alpha=0.35, linewidth=4, label="smallest to largest")
    axes.plot(indices, middle, "o", color=_AFTER, label="median")
    axes.axhline(1.0, color="#8a8f98", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    _whole_blocks(axes)


def _panels(
    figure: Figure,
    groups: Mapping[str, Sequence[tuple[int, Values]]],
    draw: Callable[[Axes, Sequence[tuple[int, Values]]], None],
    label: str,
) -> None:
    """A panel for each group, two side by side, with one legend."""
    panels = figure.subplots(-(-len(groups) // 2), 2, squeeze=False).ravel()
    for axes, (name, of_blocks) in zip(panels, groups.items(), strict=False):
        draw(axes, of_blocks)
        axes.set_title(name, loc="left")
    for axes in panels[len(groups) :]:
        axes.remove()
    for axes in panels[max(0, len(groups) - 2) : len(groups)]:
        axes.set_xlabel("block")
    for axes in panels[0 : len(groups) : 2]:
        axes.set_ylabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)


def _exponents(figure: Figure, groups: Mapping[str, Sequence[tuple[int, Values]]], blocks: int) -> None:
    values = np.full((len(groups), blocks), np.nan)
    for row, of_blocks in enumerate(groups.values()):
        for index, group in of_blocks:
            values[row, index] = group["exponent"]
    axes = figure.subplots()
    image = axes.pcolormesh(values, vmin=0.0, vmax=1.0, cmap="viridis", edgecolors="white", linewidth=0.6)
    axes.set_yticks(np.arange(len(groups)) + 0.5, list(groups))
    shown = range(0, blocks, max(1, blocks // 15))
    axes.set_xticks([index + 0.5 for index in shown], [str(index) for index in shown])
    axes.set_xlabel("block")
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axes, label="r", pad=0.01)


def _outside(figure: Figure, groups: Mapping[str, Sequence[tuple[int, Values]]]) -> None:
    axes = figure.subplots()
    axes.set_prop_cycle(color=[_AFTER, _BEFORE, _THIRD, "#cc79a7", "#e69f00", "#56b4e9"])
    for name, of_blocks in groups.items():
        parts = [group["weights_outside"] / max(group["weights"], 1) for _, group in of_blocks]
        axes.plot([index for index, _ in of_blocks], parts, marker="o", label=name)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set(xlabel="block", ylabel="part of the weights")
    axes.set_ylim(bottom=0.0)
    _whole_blocks(axes)
    figure.legend(loc="outside right upper")


def _costs(figure: Figure, blocks: Sequence[Values]) -> None:
    indices = [block["index"] for block in blocks]
    time, memory = figure.subplots(1, 2)
    time.bar(indices, [block["seconds"] for block in blocks], color=_AFTER, width=0.8)
    time.set(xlabel="block", ylabel="seconds")
    memory.bar(indices, [block["peak_memory_bytes"] / 1e6 for block in blocks], color=_THIRD, width=0.8)
    memory.set(xlabel="block", ylabel="peak memory, MB")
    for axes in (time, memory):
        axes.grid(False, axis="x")
        axes.set_axisbelow(True)
        _whole_blocks(axes)


def _pair(axes: Axes, indices: Sequence[int], before: Sequence[float], after: Sequence[float]) -> None:
    axes.plot(indices, before, marker="o", color=_BEFORE, label="rounded to nearest")
    axes.plot(indices, after, marker="s", color=_AFTER, label="as written")
    axes.set_yscale("log")
    _whole_blocks(axes)


def _whole_blocks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _logarithmic(loss: float | None) -> float:
    """A loss where a logarithm can be drawn; a gap elsewhere."""
    return loss if loss else float("nan")
