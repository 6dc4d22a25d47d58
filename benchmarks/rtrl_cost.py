"""What exact real-time recurrent learning costs for each step, by the length of its window.

``python -m benchmarks.rtrl_cost`` measures and writes ``docs/recorded/rtrl_cost.csv`` and its figure.
"""

import csv
import pathlib
import time
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import braintrace
import braintrace.nn

from . import recorded

INPUTS, OUTPUTS, STEPS, ROUNDS = 8, 2, 256, 5
SIZES = (32, 64)
WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Network(brainstate.nn.Module):
    """A vanilla network with a readout; one sample."""

    def __init__(self, hidden: int):
        super().__init__()
        self.cell = braintrace.nn.ValinaRNNCell(INPUTS, hidden, activation=jnp.tanh)
        self.out = braintrace.nn.Linear(hidden, OUTPUTS)

    def update(self, x: Any) -> Any:
        return self.out(self.cell(x))


def gradient(hidden: int, algorithm: str, **options: Any) -> Any:
    """A compiled call that computes the gradient of a sequence."""
    brainstate.random.seed(0)
    return gradient_by(braintrace.compile(Network(hidden), algorithm, jnp.zeros(INPUTS), **options))


def gradient_by(learner: Any, steps: int = STEPS) -> Any:
    """The same for a learner of `INPUTS` inputs and `OUTPUTS` outputs."""
    rng = np.random.default_rng(0)
    xs, ys = (jnp.asarray(rng.normal(size=(steps, n)), jnp.float32) for n in (INPUTS, OUTPUTS))
    face = learner.functional()
    params, state = face.init()

    def loss(out: Any, y: Any) -> Any:
        return ((out - y) ** 2).sum()

    program = jax.jit(lambda params, state: face.fold(params, state, xs, ys, loss=loss)).lower(params, state).compile()
    return lambda: jax.block_until_ready(program(params, state))


def seconds(call: Any) -> float:
    """Of the fastest of some calls."""
    call()
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def measure(folder: pathlib.Path) -> None:
    """Write the table: hidden units, window, microseconds of a step by RTRL and by BPTT over the whole sequence."""
    with (folder / "rtrl_cost.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["hidden", "window", "rtrl_us", "bptt_us"])
        for hidden in SIZES:
            whole = seconds(gradient(hidden, "bptt")) / STEPS
            for window in tqdm(WINDOWS, desc=f"{hidden} units"):
                found = seconds(gradient(hidden, "rtrl", window=window)) / STEPS
                writer.writerow([hidden, window, f"{1e6 * found:.4g}", f"{1e6 * whole:.4g}"])
                file.flush()


def draw(folder: pathlib.Path) -> None:
    """Draw the table, with the law that the first window sets."""
    import matplotlib.pyplot as plt

    table = np.genfromtxt(folder / "rtrl_cost.csv", delimiter=",", names=True)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for colour, hidden in enumerate(SIZES):
        rows = table[table["hidden"] == hidden]
        axes.loglog(rows["window"], rows["rtrl_us"], "o-", color=f"C{colour}", label=f"RTRL, {hidden} units")
        first, last = rows["rtrl_us"][0], rows["rtrl_us"].min()
        law = last + (first - last) / rows["window"]
        axes.loglog(rows["window"], law, ":", color=f"C{colour}", lw=1, label=None if colour else "a / K + b")
        axes.axhline(rows["bptt_us"][0], color=f"C{colour}", ls="--", lw=1, label=f"BPTT, {hidden} units")
        axes.plot(
            hidden, np.interp(hidden, rows["window"], rows["rtrl_us"]), "s", color=f"C{colour}", ms=11, mfc="none"
        )
    axes.set(xlabel="window K (steps; squares: K = number of units)", ylabel="microseconds per step")
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "rtrl_cost.png", dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    recorded.main("rtrl_cost", __doc__, measure, draw, arguments)


if __name__ == "__main__":
    main()
