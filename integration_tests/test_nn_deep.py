"""Deep models: stacks, residuals, normalisation, dropout, convolutions, masks, against backpropagation through time."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from online import assert_close, dotted, precision
from oracles import relative_error

import braintrace
import braintrace_nn as nn

T, B, I, H = 5, 3, 4, 6


class Residual(brainstate.nn.Module):
    """Layers of which each adds to what it is given."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = layers

    def update(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


class Memory(brainstate.nn.Module):
    """Leaky units: all the memory that a model of exact layers has."""

    def __init__(self, *size):
        super().__init__()
        self.size = size

    def init_state(self, batch_size=None):
        self.v = brainstate.HiddenState(jnp.zeros((*(() if batch_size is None else (batch_size,)), *self.size)))

    def update(self, x):
        self.v.value = 0.8 * self.v.value + jnp.tanh(x)
        return self.v.value


def read_out():
    return nn.Linear(H, 2)


EXACT = {
    "normalised input": (
        (I,),
        lambda: nn.Sequential(nn.LayerNorm(I, use_scale=False, use_bias=False), nn.Linear(I, H), Memory(H), read_out()),
    ),
    "normalised output": ((I,), lambda: nn.Sequential(nn.Linear(I, H), Memory(H), nn.RMSNorm(H), read_out())),
    "dropout before": ((I,), lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(I, H), Memory(H), read_out())),
    "dropout between": ((I,), lambda: nn.Sequential(nn.Linear(I, H), nn.Dropout(0.5), Memory(H), read_out())),
    "residual readout": ((I,), lambda: nn.Sequential(nn.Linear(I, H), Memory(H), Residual(nn.Linear(H, H)))),
    "residual memories": ((I,), lambda: nn.Sequential(nn.Linear(I, H), Memory(H), Residual(Memory(H), Memory(H)))),
    "convolution": (
        (6, I),
        lambda: nn.Sequential(
            nn.Conv1d((6, I), H, 3, b_init=0.1, padding="VALID"),
            nn.ReLU(),
            Memory(4, H),
            nn.Flatten(-2),
            nn.Linear(24, 2),
        ),
    ),
    "single convolution, standardised": (
        (4, 4, 1),
        lambda: nn.Sequential(nn.ScaledWSConv2d((4, 4, 1), 3, 2, b_init=0.1, stride=2), Memory(2, 2, 3)),
    ),
    "standardised": ((I,), lambda: nn.Sequential(nn.ScaledWSLinear(I, H), Memory(H), read_out())),
    "masked": ((I,), lambda: nn.Sequential(nn.ScaledWSLinear(I, H, w_mask=np.eye(I, H)), Memory(H), read_out())),
}
STACKS = {
    "cells": (
        (I,),
        lambda: nn.Sequential(
            nn.GRUCell(I, H), nn.LayerNorm(H, use_scale=False, use_bias=False), nn.LSTMCell(H, H), read_out()
        ),
    ),
    "residual cells": ((I,), lambda: nn.Sequential(nn.Linear(I, H), Residual(nn.MiniGRU(H, H), nn.MGUCell(H, H)))),
    "dropout between cells": (
        (I,),
        lambda: nn.Sequential(nn.ValinaRNNCell(I, H), nn.Dropout(0.5), nn.MiniLSTM(H, H), read_out()),
    ),
    "convolution and cell": (
        (6, I),
        lambda: nn.Sequential(
            nn.Conv1d((6, I), 2, 3, b_init=0.1), nn.MaxPool1d(2, 2), nn.Flatten(-2), nn.GRUCell(6, H), read_out()
        ),
    ),
}


@pytest.fixture(autouse=True)
def doubles():
    with precision("float64"), brainstate.environ.context(fit=True):
        yield


def gradients(model, algorithm, batch=(B,), vmap=False, **options):
    """Gradient of a quadratic loss; parameters and random numbers are the same for every algorithm."""
    size, make = model
    brainstate.random.seed(0)
    model, rng = make(), np.random.default_rng(0)
    for state in model.states(brainstate.ParamState).values():
        state.value = jax.tree.map(lambda v: jnp.asarray(v + 0.3 * rng.normal(size=v.shape)), state.value)
    xs = jnp.asarray(rng.normal(size=(T, *batch, *size)))
    learner = braintrace.compile(model, algorithm, xs[0], batch_size=batch[0] if batch else None, vmap=vmap, **options)
    brainstate.random.seed(1)
    learner.reset_state()
    grads = learner.etrace_grad(xs, step_fn=lambda x: ((learner(x) - 0.5) ** 2).mean())
    return learner, {dotted(path): value for path, value in grads.items()}


@pytest.mark.parametrize("name", EXACT)
def test_models_without_recurrent_weights_are_exact(name):
    learner, strict = gradients(EXACT[name], "d_rtrl")
    assert all(certificate.exact for certificate in learner.graph.certificates())
    assert_close(strict, gradients(EXACT[name], "bptt")[1])
    assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(strict))


def test_a_scale_before_the_memory_is_told_and_learns_within_the_step():
    scaled = (I,), lambda: nn.Sequential(nn.LayerNorm(I), nn.Linear(I, H), Memory(H), read_out())
    with pytest.warns(braintrace.CompilationWarning, match=r"PLAIN_PARAMETER_TEMPORAL: parameter \('layers', 0"):
        strict = gradients(scaled, "d_rtrl")[1]
    with pytest.warns(braintrace.CompilationWarning):
        full = gradients(scaled, "bptt")[1]
    within = strict.pop("layers.0.weight"), full.pop("layers.0.weight")
    assert relative_error(*within) > 0.01
    assert all(abs(leaf).max() > 0 for leaf in jax.tree.leaves(within[0]))
    assert_close(strict, full)


@pytest.mark.parametrize("name", STACKS)
def test_one_window_of_a_stack_is_bptt(name):
    learner, found = gradients(STACKS[name], "d_rtrl", vjp_method="multi-step", window=T)
    full = gradients(STACKS[name], "bptt")[1]
    assert_close(found, full)
    strict = gradients(STACKS[name], "d_rtrl")[1]
    assert max(relative_error(strict[key], full[key]) for key in full) > 0.01
    last = max(full)
    assert last.startswith("layers")
    assert relative_error(strict[last], full[last]) < 1e-10 or "Residual" in repr(learner.model)


@pytest.mark.parametrize("name", ["convolution", "single convolution, standardised", "standardised", "masked"])
def test_single_samples_and_mapped_ones_learn_as_batches(name):
    single, full = (gradients(EXACT[name], algorithm, ())[1] for algorithm in ("d_rtrl", "bptt"))
    assert_close(single, full)
    assert_close(gradients(EXACT[name], "d_rtrl", vmap=True)[1], gradients(EXACT[name], "bptt")[1])


def test_dropout_draws_anew_at_every_step():
    size, make = EXACT["dropout before"]
    model = make()
    brainstate.nn.init_all_states(model, batch_size=B)
    xs = jnp.ones((T, B, *size))
    first = brainstate.transform.for_loop(model.layers[0], xs)
    assert len({np.asarray(x).tobytes() for x in first}) == T
    with brainstate.environ.context(fit=False):
        np.testing.assert_array_equal(model.layers[0](xs[0]), xs[0])


def test_one_call_makes_and_resets_all_states():
    _, make = STACKS["cells"]
    model = make()
    brainstate.nn.init_all_states(model, batch_size=B)
    states = model.states(brainstate.HiddenState)
    model(jnp.ones((B, I)))
    assert all(abs(state.value).max() > 0 for state in states.values())
    brainstate.nn.reset_all_states(model, batch_size=2)
    assert {state.value.shape for state in states.values()} == {(2, H)}
    assert all(abs(state.value).max() == 0 for state in states.values())
