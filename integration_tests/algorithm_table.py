"""Every algorithm on every kind of cell: how far its gradient is from that of backpropagation through time.

``python integration_tests/algorithm_table.py FILE`` writes the table that the documentation shows.
"""

import csv
import pathlib
import sys
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

import braintrace
import braintrace.nn

B, I, H, O, T = 2, 3, 4, 2, 12
DRAWS = 300
ONE_DRAW, MEAN = "uoro, one draw", f"uoro, mean of {DRAWS}"

CELLS = {
    "vanilla": lambda: braintrace.nn.ValinaRNNCell(I, H, activation=jnp.tanh),
    "GRU": lambda: braintrace.nn.GRUCell(I, H),
    "LSTM": lambda: braintrace.nn.LSTMCell(I, H),
    "MGU": lambda: braintrace.nn.MGUCell(I, H),
    "MiniGRU": lambda: braintrace.nn.MiniGRU(I, H),
    "LRU": lambda: braintrace.nn.LRUCell(H, H),
    "LIF, synapse": lambda: braintrace.nn.LIFCell(I, H, spk_fun=braintrace.nn.sigmoid_spike),
    "ALIF": lambda: braintrace.nn.ALIFCell(I, H, beta=0.3, tau_a=30.0 * u.ms, spk_fun=braintrace.nn.sigmoid_spike),
}

ALGORITHMS: dict[str, dict[str, Any]] = {
    "d_rtrl": {},
    "d_rtrl, window 1": {"vjp_method": "multi-step", "window": 1},
    "d_rtrl, window 4": {"vjp_method": "multi-step", "window": 4},
    "d_rtrl, window T": {"vjp_method": "multi-step", "window": T},
    "eprop": {},
    "eprop, random feedback": {"feedback": "random", "random_feedback_key": jax.random.PRNGKey(0)},
    "eprop, filtered": {"kappa_filter_decay": 0.5},
    "ostl_recurrent": {},
    "ostl_feedforward": {},
    "pp_prop": {"decay_or_rank": 0.8},
    "ottt": {"decay": 0.8},
    "three_factor": {"modulator": 1.0},
    "snap": {"n": 1, "vmap": True},
    ONE_DRAW: {"vmap": True},
    MEAN: {"vmap": True},
    "dni": {"window": 4},
    "tbptt": {"window": 4},
    "rtrl": {"window": 4, "vmap": True},
}


class Network(brainstate.nn.Module):
    """A cell and a readout, with weights that do not depend on anybody's initialiser."""

    def __init__(self, name: str):
        super().__init__()
        self.cell = CELLS[name]()
        self.out = braintrace.nn.Linear(H, O)
        rng = np.random.default_rng(1)
        for path, state in brainstate.graph.states(self, brainstate.ParamState).items():
            if name != "LRU" or path[0] != "cell" or path[1][:2] in ("B_", "C_"):
                state.value = jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape) / np.sqrt(2.0)), state.value)

    def update(self, x: Any) -> Any:
        return self.out(self.cell(x))


class Agreement(NamedTuple):
    """A gradient beside that of backpropagation: relative error and cosine, and of a mean its standard error."""

    error: float
    cosine: float
    noise: float = 0.0


def gradients_of(name: str, algorithm: str, draws: int = 1) -> np.ndarray:
    """Gradients of the cell's parameters, flat: shape (draws, parameters)."""
    options, kind = ALGORITHMS.get(algorithm, {}), algorithm.split(",")[0]
    rng = np.random.default_rng(0)
    xs, ys = (jnp.asarray(rng.normal(size=(T, B, size))) for size in (H if name == "LRU" else I, O))
    brainstate.random.seed(0)
    learner = braintrace.compile(Network(name), kind, xs[0], batch_size=B, **options)

    def draw(_: Any) -> Any:
        learner.reset_state()
        grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: ((learner(x) - y) ** 2).mean(), reduction="sum")
        return jnp.concatenate(
            [leaf.ravel() for p, g in grads.items() if p[0] == "cell" for leaf in jax.tree.leaves(g)]
        )

    return np.asarray(brainstate.transform.for_loop(draw, jnp.arange(draws)))


def agreements(name: str) -> dict[str, Agreement]:
    """All algorithms on one cell."""
    with jax.enable_x64(True), brainstate.environ.context(precision=64, dt=1.0 * u.ms):
        (reference,) = gradients_of(name, "bptt")
        found = {}
        for algorithm in ALGORITHMS:
            if algorithm != MEAN:
                draws = gradients_of(name, algorithm, DRAWS if algorithm == ONE_DRAW else 1)
                found[algorithm] = agreement(draws[:1], reference)
            if algorithm == ONE_DRAW:
                found[MEAN] = agreement(draws, reference)
        return found


def agreement(draws: np.ndarray, reference: np.ndarray) -> Agreement:
    """The mean of some draws beside the reference."""
    mean, size = draws.mean(0), np.linalg.norm(reference)
    noise = np.sqrt(draws.var(0).sum() / len(draws)) / size
    cosine = mean @ reference / (np.linalg.norm(mean) * size)
    return Agreement(float(np.linalg.norm(mean - reference) / size), float(cosine), float(noise))


def rows(table: dict[str, dict[str, Agreement]]) -> list[list[str]]:
    """The table as text, a header first: relative error and cosine in each cell."""
    body = [
        [algorithm, *(f"{cell[algorithm].error:.3f} / {cell[algorithm].cosine:.3f}" for cell in table.values())]
        for algorithm in ALGORITHMS
    ]
    return [["algorithm", *table], *body]


if __name__ == "__main__":
    with pathlib.Path(sys.argv[1]).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows({name: agreements(name) for name in CELLS}))
