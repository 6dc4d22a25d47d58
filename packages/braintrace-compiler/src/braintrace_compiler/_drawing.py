"""The graph as a picture: weights on the left, hidden groups on the right."""

import pathlib
from collections.abc import Sequence
from typing import Any

from ._errors import NotSupportedError


def draw_report(
    groups: Sequence[dict[str, Any]], operations: Sequence[dict[str, Any]], path: str | pathlib.Path
) -> pathlib.Path:
    """Write the picture of a report to `path`, in the format of its suffix."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotSupportedError(
            "Drawing needs matplotlib.", found="no matplotlib", fix='pip install "braintrace-compiler[draw]"'
        ) from error
    rows = max(len(groups), len(operations), 1)
    figure = Figure(figsize=(9, 0.7 * rows + 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(-0.6, rows - 0.4))
    axes.axis("off")
    group_at = {g["index"]: _height(k, len(groups), rows) for k, g in enumerate(groups)}
    for g in groups:
        _box(
            axes,
            0.8,
            group_at[g["index"]],
            f"group {g['index']}: {', '.join(g['states'])}\n{g['positions']}",
            "#dcebf7",
        )
    for k, o in enumerate(operations):
        y = _height(k, len(operations), rows)
        colour = "#e2f2dd" if o["strict"] == "exact" else "#fbeed5"
        _box(axes, 0.22, y, f"{o['operation']} {', '.join(o['weights'])}\n{o['strict']}", colour)
        for index in o["groups"]:
            arrow = {"arrowstyle": "->", "color": "0.4"}
            axes.annotate("", (0.64, group_at[index]), (0.43, y), arrowprops=arrow)
    path = pathlib.Path(path)
    figure.savefig(path)
    return path


def _height(k: int, count: int, rows: int) -> float:
    return rows - 1 - (k + 0.5) * rows / max(count, 1) + 0.5


def _box(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    style = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "0.5"}
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=style)
