"""Steps that wait to be added to a trace: no number changes, and the trace is in memory once."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from braintrace_algos import D_RTRL, _train, compile
from braintrace_algos._waiting import Waiting
from braintrace_primitives import _rows, matmul


class Units(brainstate.nn.Module):
    """A synapse and a membrane, with a weight into the synapse from the input and the membrane's past."""

    def __init__(self, kind, inputs, units):
        super().__init__()
        self.kind, self.units = kind, units
        values = [0.5 * jax.random.normal(jax.random.key(k), (inputs + units, units)) for k in (0, 1)]
        self.w = brainstate.ParamState({"weight": values[0], "bias": values[1][0]})
        self.out = brainstate.ParamState(values[1][:units])

    def init_state(self, batch_size=None):
        shape = (self.units,) if batch_size is None else (batch_size, self.units)
        self.g, self.v = (brainstate.HiddenState(jnp.zeros(shape)) for _ in range(2))

    def update(self, x):
        w, b = self.w.value["weight"], self.w.value["bias"]
        if self.kind == "chain":
            w = w / jnp.sqrt((w**2).sum(0))
        y = matmul(jnp.concatenate([x, jnp.tanh(self.v.value)], -1), w, b)
        if self.kind == "two uses":
            y = y + jnp.tanh(matmul(jnp.concatenate([x**2, jnp.sin(self.v.value)], -1), w, b))
        self.g.value = 0.7 * self.g.value + (y if self.kind == "factored" else jnp.tanh(y))
        self.v.value = (0.9 - 0.3 * jax.nn.sigmoid(self.v.value)) * self.v.value + self.g.value
        return jnp.tanh(self.v.value) @ self.out.value


class Phases(brainstate.nn.Module):
    """Two real states that a complex operation drives."""

    def __init__(self, kind, inputs, units):
        super().__init__()
        re, im = (0.5 * jax.random.normal(jax.random.key(k), (inputs, units)) for k in (0, 1))
        self.units, self.w = units, brainstate.ParamState(jax.lax.complex(re, im))

    def init_state(self, batch_size=None):
        self.a, self.b = (brainstate.HiddenState(jnp.zeros((batch_size, self.units))) for _ in range(2))

    def update(self, x):
        y, a, b = matmul(x.astype(self.w.value.dtype), self.w.value), self.a.value, self.b.value
        self.a.value = 0.8 * jnp.tanh(a) + 0.3 * b + y.real
        self.b.value = 0.7 * b - 0.2 * jnp.sin(a) + y.imag
        return self.a.value + self.b.value


def trained(kind, T, sizes, options):
    """A learner, the traces and parameters that `etrace_train` leaves, and the losses of the steps."""
    B, inputs, units = sizes
    xs, ys = (jax.random.normal(jax.random.key(k), (T, B, n)) for k, n in ((2, inputs), (3, units)))
    model = (Phases if kind == "complex" else Units)(kind, inputs, units)
    learner = compile(model, D_RTRL, xs[0], batch_size=B, **options.get("compile", {}))

    def step(x, y):
        return ((learner(x) - y) ** 2).mean()

    history = learner.etrace_train(xs, ys, step_fn=step, optimizer=optax.adam(0.03), mask=options.get("mask"))
    return learner, (learner.etraces.value, [s.value for s in learner.param_states.values()]), history.losses


def steps_of(learner, T, every=1):
    return Waiting(learner.plan, learner.etraces.value, every, T).steps


@pytest.mark.parametrize(
    ("kind", "T", "steps", "options"),
    [
        ("factored", 7, 4, {}),
        ("states", 9, 3, {}),
        ("two uses", 5, 2, {"compile": {"vjp_method": "multi-step", "window": 1}}),
        ("complex", 7, 4, {}),
        ("chain", 6, 3, {"mask": jnp.array([1.0, 0, 2, 0, 0, 1])}),
    ],
)
def test_training_as_without_waiting(kind, T, steps, options, distance, monkeypatch):
    learner, expected, losses = trained(kind, T, (3, 2, 5), options)
    assert steps_of(learner, T) == 1
    monkeypatch.setattr(_rows, "_LEAST", 1)
    learner, found, waited = trained(kind, T, (3, 2, 5), options)
    assert steps_of(learner, T) == steps
    assert steps_of(learner, T, every=2) == 2
    np.testing.assert_allclose(waited, losses, rtol=1e-5)
    assert distance(found, expected) < 1e-4


def test_no_step_waits_for_mapped_copies(monkeypatch):
    monkeypatch.setattr(_rows, "_LEAST", 1)
    learner = compile(Units("states", 2, 5), D_RTRL, jnp.zeros((3, 2)), batch_size=3, vmap=True)
    assert steps_of(learner, 8) == 1


@pytest.mark.parametrize(("kind", "states", "T"), [("factored", 1, 5), ("states", 2, 8)])
def test_a_trace_is_held_once(kind, states, T, monkeypatch):
    found = []

    class Measured(_train.TrainingDriver):
        def __call__(self, sequences, mask):
            program = self.run.lower(*self.driver.read(), [s.value for s in self.rule.states], sequences, mask)
            found.append(program.compile().memory_analysis().temp_size_in_bytes)
            return super().__call__(sequences, mask)

    monkeypatch.setattr(_train, "TrainingDriver", Measured)
    B, inputs, units = 16, 128, 128
    trained(kind, T, (B, inputs, units), {})
    assert found[0] < states * B * (inputs + units) * units * 4
