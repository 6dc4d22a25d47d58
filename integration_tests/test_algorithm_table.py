"""Every algorithm on every kind of cell, against backpropagation through time.

Exact ones must be exact. Approximations are held from both sides: a gradient that points elsewhere is wrong, and one
that suddenly equals that of backpropagation is not the algorithm it says it is.
"""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace

B, I, H, O, T = 3, 3, 6, 2, 12


class Spiking(brainstate.nn.Module):
    """Recurrent leaky units behind an exponential synapse; `adapting` adds a threshold that rises with spikes."""

    def __init__(self, adapting):
        super().__init__()
        self.adapting = adapting
        self.w = braintrace.nn.Linear(I + H, H)

    def init_state(self, batch_size=None):
        shape = (H,) if batch_size is None else (batch_size, H)
        self.g, self.v = (brainstate.HiddenState(jnp.zeros(shape)) for _ in range(2))
        if self.adapting:
            self.a = brainstate.HiddenState(jnp.zeros(shape))

    def spikes(self, v):
        threshold = 0.2 + (0.5 * self.a.value if self.adapting else 0.0)
        return jax.nn.sigmoid(4.0 * (v - threshold))

    def update(self, x):
        before = self.spikes(self.v.value)
        self.g.value = 0.7 * self.g.value + self.w(jnp.concatenate([x, before], -1))
        self.v.value = 0.9 * self.v.value * (1.0 - before) + self.g.value
        if self.adapting:
            self.a.value = 0.95 * self.a.value + 0.05 * before
        return self.spikes(self.v.value)


CELLS = {
    "vanilla": lambda: braintrace.nn.ValinaRNNCell(I, H, activation=jnp.tanh),
    "GRU": lambda: braintrace.nn.GRUCell(I, H),
    "LSTM": lambda: braintrace.nn.LSTMCell(I, H),
    "MGU": lambda: braintrace.nn.MGUCell(I, H),
    "MiniGRU": lambda: braintrace.nn.MiniGRU(I, H),
    "LRU": lambda: braintrace.nn.LRUCell(I, H),
    "LIF + synapse": lambda: Spiking(adapting=False),
    "ALIF": lambda: Spiking(adapting=True),
}

ALGORITHMS = {
    "d_rtrl": {},
    "d_rtrl, window 4": {"vjp_method": "multi-step", "window": 4},
    "d_rtrl, window T": {"vjp_method": "multi-step", "window": T},
    "eprop": {},
    "eprop, random": {"feedback": "random", "random_feedback_key": jax.random.key(0)},
    "ostl_recurrent": {},
    "ostl_feedforward": {},
    "pp_prop": {"decay_or_rank": 0.8},
    "ottt": {"decay": 0.8},
    "snap": {"n": 1},
    "rtrl": {"window": 4},
    "tbptt": {"window": 4},
}

EXACT_EVERYWHERE = {"rtrl", "d_rtrl, window T"}
EXACT_WITHOUT_MIXING = {"d_rtrl", "d_rtrl, window 4", "snap", "eprop", "ostl_recurrent"}
NO_MIXING = {"MiniGRU", "LRU"}


class Network(brainstate.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell()
        self.out = braintrace.nn.Linear(I if isinstance(self.cell, braintrace.nn.LRUCell) else H, O)

    def update(self, x):
        return self.out(self.cell(x))


def gradient_of_the_cell(model, xs, ys, algorithm, **options):
    learner = braintrace.compile(model, algorithm, xs[0], batch_size=B, vmap=algorithm in ("rtrl", "snap"), **options)
    grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: ((learner(x) - y) ** 2).mean(), reduction="sum")
    leaves = [leaf.ravel() for path, tree in grads.items() if path[0] == "cell" for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


@pytest.fixture(scope="module")
def table():
    """(cell, algorithm) -> relative error and cosine to BPTT."""
    keys = jax.random.split(jax.random.key(0), 2)
    xs, ys = jax.random.normal(keys[0], (T, B, I)), jax.random.normal(keys[1], (T, B, O))
    found = {}
    for name, cell in CELLS.items():
        brainstate.random.seed(0)
        model = Network(cell)
        reference = gradient_of_the_cell(model, xs, ys, "bptt")
        for label, options in ALGORITHMS.items():
            got = gradient_of_the_cell(model, xs, ys, label.split(",")[0], **options)
            error = np.linalg.norm(got - reference) / np.linalg.norm(reference)
            cosine = got @ reference / (np.linalg.norm(got) * np.linalg.norm(reference))
            found[name, label] = float(error), float(cosine)
    width = max(map(len, ALGORITHMS))
    print("\n" + " " * width, *(f"{name:>14}" for name in CELLS))
    for label in ALGORITHMS:
        cells = (found[name, label] for name in CELLS)
        print(label.ljust(width), *(f"{error:8.1e} {cosine:5.2f}" for error, cosine in cells))
    return found


@pytest.mark.slow
def test_exact_algorithms_are_exact(table):
    for (cell, label), (error, _) in table.items():
        if label in EXACT_EVERYWHERE or (cell in NO_MIXING and label in EXACT_WITHOUT_MIXING):
            assert error < 2e-5, (cell, label, error)


@pytest.mark.slow
def test_approximations_stay_approximations_that_point_the_right_way(table):
    for (cell, label), (error, cosine) in table.items():
        if label in EXACT_EVERYWHERE or (cell in NO_MIXING and label in EXACT_WITHOUT_MIXING):
            continue
        assert error > 1e-4, (cell, label, error)
        if "random" not in label:
            assert cosine > 0.2, (cell, label, cosine)
