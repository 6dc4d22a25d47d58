"""Gradients whose windows are done partly ahead of the loop and behind it, against loops that are left whole."""

import brainstate
import jax
import jax.numpy as jnp
import pytest
from online import precision
from oracles import relative_error

import braintrace
from braintrace_algos import _plan

T, B, I, H = 9, 2, 3, 4


class Spiking(brainstate.nn.Module):
    """A layer with a synapse, products of input and spikes of their own, and a current that is noisy."""

    def __init__(self):
        super().__init__()
        self.w_in = brainstate.ParamState(brainstate.random.normal(size=(I, H)))
        self.w_rec = brainstate.ParamState(brainstate.random.normal(size=(H, H)))

    def init_state(self, batch_size=None):
        self.i = brainstate.HiddenState(jnp.zeros((batch_size, H)))
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, H)))

    def update(self, x):
        spikes = jax.nn.sigmoid(4 * (self.v.value - 0.5))
        current = braintrace.matmul(x, self.w_in.value) + braintrace.matmul(spikes, self.w_rec.value)
        self.i.value = 0.8 * self.i.value + current
        self.v.value = 0.9 * self.v.value + self.i.value - spikes + 0.1 * brainstate.random.normal(size=(B, H))
        return self.v.value


class JoinedLIF(brainstate.nn.Module):
    """Synapse, membrane with a reset and adaptation, driven by one product of the input joined to the spikes."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(brainstate.random.normal(size=(I + H, H)))

    def init_state(self, batch_size=None):
        self.i, self.v, self.a = (brainstate.HiddenState(jnp.zeros((batch_size, H))) for _ in range(3))

    def update(self, x):
        spikes = jax.nn.sigmoid(4 * (self.v.value - self.a.value - 0.5))
        self.i.value = 0.8 * self.i.value + braintrace.matmul(jnp.concatenate([x, spikes], -1), self.w.value)
        self.v.value = 0.9 * self.v.value * (1 - spikes) + self.i.value
        self.a.value = 0.95 * self.a.value + 0.1 * spikes
        return self.v.value


class WithReadout(brainstate.nn.Module):
    """A cell, and a readout that is a parameter without a mark."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.readout = cell, brainstate.ParamState(brainstate.random.normal(size=(H, 2)))

    def update(self, x):
        return self.cell(x) @ self.readout.value


@pytest.mark.parametrize(
    ("make", "algorithm", "options"),
    [
        (lambda: braintrace.nn.ValinaRNNCell(I, H, activation="tanh"), "pp_prop", {"decay_or_rank": 0.9}),
        (lambda: braintrace.nn.GRUCell(I, H), "d_rtrl", {}),
        (lambda: braintrace.nn.GRUCell(I, H), "d_rtrl", {"vjp_method": "multi-step", "window": 4}),
        (Spiking, "d_rtrl", {}),
        (Spiking, "d_rtrl", {"vjp_method": "multi-step", "window": T}),
        pytest.param(JoinedLIF, "d_rtrl", {}, id="LIF with a joined input, single steps"),
        pytest.param(
            JoinedLIF, "d_rtrl", {"vjp_method": "multi-step", "window": 4}, id="LIF with a joined input, windows"
        ),
    ],
)
def test_gradients_are_those_of_whole_loops(make, algorithm, options, monkeypatch):
    with precision("float64"):
        brainstate.random.seed(0)
        net = WithReadout(make())
        learner = braintrace.compile(net, algorithm, jnp.zeros((B, I)), batch_size=B, **options)
        xs, ys = brainstate.random.normal(size=(T, B, I)), brainstate.random.normal(size=(T, B, 2))

        def run():
            def loss(x, y):
                return jnp.mean((learner(x) - y) ** 2)

            brainstate.random.seed(1)
            learner.reset_state()
            return learner.etrace_grad(xs, ys, step_fn=loss, return_value=True, fold=5)

        split = run()
        assert learner.plan.splits(4)
        monkeypatch.setattr(_plan, "_HELD", 0)
        assert relative_error(split, run()) < 1e-12
