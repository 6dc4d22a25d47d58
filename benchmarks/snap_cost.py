"""What SnAp-n costs, in memory and in time, by the share of connections that a sparse recurrence has.

``python -m benchmarks.snap_cost`` measures and writes ``docs/recorded/snap_cost.csv`` and its figure.
"""

import csv
import pathlib
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import braintrace
import braintrace.nn

from . import recorded
from .rtrl_cost import INPUTS, OUTPUTS, gradient_by, seconds

HIDDEN, STEPS = 128, 32
DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
ALGORITHMS: dict[str, tuple[str, dict[str, Any]]] = {
    "SnAp-1": ("snap", {"n": 1}),
    "SnAp-2": ("snap", {"n": 2}),
    "SnAp-3": ("snap", {"n": 3}),
    "RTRL": ("rtrl", {}),
}


class Network(brainstate.nn.Module):
    """A leaky network of fixed sparse wiring with a readout; one sample."""

    def __init__(self, density: float):
        super().__init__()
        rng = np.random.default_rng(0)
        wired = rng.random((HIDDEN, HIDDEN)) < density
        self.pattern = braintrace.SparsityPattern.from_dense(np.concatenate([np.ones((INPUTS, HIDDEN), bool), wired]))
        scale = 1 / np.sqrt(1 + density * HIDDEN)
        self.w = brainstate.ParamState(jnp.asarray(scale * rng.normal(size=self.pattern.nnz), jnp.float32))
        self.out = braintrace.nn.Linear(HIDDEN, OUTPUTS)

    def init_state(self) -> None:
        """A silent network."""
        self.h = brainstate.HiddenState(jnp.zeros(HIDDEN))

    def update(self, x: Any) -> Any:
        before: Any = self.h.value
        y = braintrace.sparse_matmul(jnp.concatenate([x, before]), self.w.value, sparse_mat=self.pattern)
        h = self.h.value = 0.5 * before + jnp.tanh(y)
        return self.out(h)


def measure(folder: pathlib.Path) -> None:
    """Write the table: density, algorithm, share of influences kept, bytes carried, microseconds of a step."""
    with (folder / "snap_cost.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["density", "algorithm", "weights", "carried_bytes", "step_us"])
        for density in tqdm(DENSITIES):
            for name, (algorithm, options) in ALGORITHMS.items():
                brainstate.random.seed(0)
                network = Network(density)
                learner = braintrace.compile(network, algorithm, jnp.zeros(INPUTS), **options)
                carried = sum(learner.memory_report().traces.values())
                found = seconds(gradient_by(learner, STEPS)) / STEPS
                writer.writerow([density, name, network.pattern.nnz, carried, f"{1e6 * found:.4g}"])
                file.flush()


def draw(folder: pathlib.Path) -> None:
    """Draw memory and time by density."""
    import matplotlib.pyplot as plt

    with (folder / "snap_cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for name in ALGORITHMS:
        own = [row for row in rows if row["algorithm"] == name]
        densities = [float(row["density"]) for row in own]
        axes[0].loglog(densities, [float(row["carried_bytes"]) / 2**20 for row in own], "o-", label=name)
        axes[1].loglog(densities, [float(row["step_us"]) for row in own], "o-", label=name)
    axes[0].set(xlabel="share of recurrent connections", ylabel="influence carried (MiB)")
    axes[1].set(xlabel="share of recurrent connections", ylabel="microseconds per step")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(folder / "snap_cost.png", dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    recorded.main("snap_cost", __doc__, measure, draw, arguments)


if __name__ == "__main__":
    main()
