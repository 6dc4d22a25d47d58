"""How long the compiler takes, by the number of equations of a step.

``python -m benchmarks.compile_time`` measures and writes ``docs/recorded/compile_time.csv`` and its figure.
"""

import csv
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np

import braintrace

from . import recorded

UNITS = 4
LAYERS = (10, 30, 100, 200, 400, 700)
STAGES = ("extract_module_info", "find_hidden_groups_from_minfo", "find_relations", "perturb")


class Deep(brainstate.nn.Module):
    """A stack of recurrent layers of 14 equations each."""

    def __init__(self, layers: int):
        super().__init__()
        self.w = [brainstate.ParamState(jnp.full((2 * UNITS, UNITS), 0.1)) for _ in range(layers)]
        self.h = [brainstate.HiddenState(jnp.zeros(UNITS)) for _ in range(layers)]

    def update(self, x: Any) -> Any:
        for w, h in zip(self.w, self.h, strict=True):
            before: Any = h.value
            z = 0.9 * before + jnp.tanh(braintrace.matmul(jnp.concatenate([x, before]), w.value))
            for _ in range(3):
                z = jnp.sin(z) + 0.1 * z
            h.value = x = z
        return x


def compile_once(layers: int) -> tuple[int, dict[str, float]]:
    """Equations of the step, and CPU seconds until each stage is done, and in all."""
    done: dict[str, float] = {}
    model = Deep(layers)
    began = time.process_time()
    graph = braintrace.compile_etrace_graph(
        model, jnp.zeros(UNITS), callback=lambda stage, _: done.update({stage: time.process_time() - began})
    )
    done["all"] = time.process_time() - began
    return len(graph.module_info.jaxpr.eqns), done


def measure(folder: pathlib.Path, layers: Sequence[int] = LAYERS) -> None:
    """Write the table: layers, equations, CPU seconds of each stage and of all."""
    compile_once(2)
    with (folder / "compile_time.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layers", "equations", *STAGES, "all"])
        for count in layers:
            equations, done = compile_once(count)
            ends = [0.0, *(done[stage] for stage in STAGES)]
            writer.writerow([count, equations, *(f"{t:.3f}" for t in [*np.diff(ends), done["all"]])])
            file.flush()


def draw(folder: pathlib.Path) -> None:
    """Draw the table, with a line through the origin and its last point."""
    from matplotlib.figure import Figure

    table = np.genfromtxt(folder / "compile_time.csv", delimiter=",", names=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(table["equations"], table["all"], "o-", color="k", label="all")
    for stage in STAGES:
        axes.plot(table["equations"], table[stage], ".-", lw=1, label=stage)
    slope = table["all"][-1] / table["equations"][-1]
    axes.plot(
        [0, table["equations"][-1]], [0, table["all"][-1]], "k:", lw=1, label=f"{1e3 * slope:.2g} ms per equation"
    )
    axes.set(xlabel="equations of a step", ylabel="CPU seconds to compile", xlim=0, ylim=0)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "compile_time.png", dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    layers = {"type": int, "nargs": "+", "default": LAYERS}
    recorded.main("compile_time", __doc__, measure, draw, arguments, layers=layers)


if __name__ == "__main__":
    main()
