"""The graph as a picture: weights on the left, hidden groups on the right."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

from ._errors import NotSupportedError
from ._report import CompilationReport, trace_of
from ._tables import readable_bytes

_LINE, _GAP = 0.2, 0.3
_EXACT, _APPROXIMATE, _GROUP = "#e2f2dd", "#fbeed5", "#dcebf7"


def draw_report(report: CompilationReport, path: str | pathlib.Path) -> pathlib.Path:
    """Write the picture of a report to `path`, in the format of its suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotSupportedError(
            "Drawing needs matplotlib.", found="no matplotlib", fix='pip install "braintrace-compiler[draw]"'
        ) from error
    weights = [
        _wrapped(f"{o['operation']} {', '.join(o['weights'])}", o["strict"], f"trace: {trace_of(o)}")
        for o in report.operations
    ]
    groups = [
        _wrapped(f"group {g['index']}: {', '.join(g['states'])}", f"{g['positions']}, own memory: {g['memory']}")
        for g in report.groups
    ]
    height = max(_height(weights), _height(groups)) + 0.5
    figure = Figure(figsize=(9, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9), ylim=(0, height))
    axes.axis("off")
    group_at = dict(zip((g["index"] for g in report.groups), _centres(groups, height), strict=True))
    for g, text in zip(report.groups, groups, strict=True):
        _box(axes, 5.5, group_at[g["index"]], text, "left", _GROUP)
    for o, text, y in zip(report.operations, weights, _centres(weights, height), strict=True):
        _box(axes, 3.9, y, text, "right", _EXACT if o["strict"] == "exact" else _APPROXIMATE)
        for index in o["groups"]:
            arrow = {"arrowstyle": "->", "color": "0.4"}
            axes.annotate("", (5.4, group_at[index]), (4.0, y), arrowprops=arrow)
    totals = ", ".join(f"{c['carry']} {readable_bytes(c['bytes'])}" for c in report.carries if c["bytes"])
    axes.text(4.5, 0.18, f"carried: {totals or 'nothing'}", ha="center", va="center", fontsize=8, color="0.3")
    path = pathlib.Path(path)
    figure.savefig(path)
    return path


def _wrapped(*lines: str) -> str:
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 46))


def _size(text: str) -> float:
    return _LINE * (text.count("\n") + 1) + _GAP


def _height(texts: Sequence[str]) -> float:
    return sum(map(_size, texts))


def _centres(texts: Sequence[str], height: float) -> list[float]:
    """Heights of boxes below each other, in the middle of what there is above the last line."""
    top = height - (height - 0.5 - _height(texts)) / 2
    centres = []
    for text in texts:
        centres.append(top - _size(text) / 2)
        top -= _size(text)
    return centres


def _box(axes: Any, x: float, y: float, text: str, side: str, colour: str) -> None:
    style = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "0.5"}
    axes.text(x, y, text, ha=side, ma="center", va="center", fontsize=8, bbox=style)
