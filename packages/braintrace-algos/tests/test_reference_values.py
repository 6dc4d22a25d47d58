"""Gradients beside those that other people's programs gave for the same network; `reference_values.json` names them."""

import json
import pathlib

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import ETraceConfig, compile
from braintrace_primitives import matmul

RECORD = json.loads(pathlib.Path(__file__).with_name("reference_values.json").read_text())
PROBLEM = {name: np.array(value) for name, value in RECORD["problem"].items()}
FOREIGN = {name: entry for name, entry in RECORD["gradients"].items() if "algorithm" in entry}


def with_one(v):
    return jnp.concatenate([v, jnp.ones((*v.shape[:-1], 1))], -1)


class Leaky(brainstate.nn.Module):
    """a = (1 - alpha) a + alpha tanh([a, x, 1] W), read out by [a, 1] V."""

    def __init__(self, alpha):
        super().__init__()
        self.alpha = alpha
        W = np.concatenate([PROBLEM["W_rec"], PROBLEM["W_in"], PROBLEM["b_rec"][:, None]], 1).T
        self.W = brainstate.ParamState(jnp.asarray(W))
        self.V = brainstate.ParamState(jnp.asarray(readout_weight(PROBLEM["W_out"])))

    def init_state(self, batch_size=None):
        self.a = brainstate.HiddenState(jnp.zeros((batch_size, self.W.value.shape[1])))

    def update(self, x):
        y = matmul(with_one(jnp.concatenate([self.a.value, x], -1)), self.W.value)
        self.a.value = (1 - self.alpha) * self.a.value + self.alpha * jnp.tanh(y)
        return matmul(with_one(self.a.value), self.V.value)


def readout_weight(W_out):
    return np.concatenate([W_out, PROBLEM["b_out"][:, None]], 1).T


def gradients(alpha, algorithm, feedback=None, **options):
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        xs, ys = (jnp.asarray(PROBLEM[name])[:, None] for name in ("xs", "ys"))
        learner = compile(Leaky(alpha), algorithm, xs[0], batch_size=1, **options)
        if feedback is not None:
            learner.plan = learner.plan._replace(
                feedback={k: {"weight": jnp.asarray(feedback)} for k in learner.plan.feedback}
            )
        grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: 0.5 * ((learner(x) - y) ** 2).sum(), reduction="sum")
        return {path[0]: np.asarray(value) for path, value in grads.items()}


def assert_recorded(found, name):
    entry = RECORD["gradients"][name]
    for key in ("W", "V"):
        np.testing.assert_allclose(found[key], entry[key], rtol=entry.get("tolerance", 1e-9), atol=1e-11)


def distance(found, name):
    expected = np.array(RECORD["gradients"][name]["W"])
    return np.linalg.norm(found["W"] - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("window", [1, 4])
def test_real_time_recurrent_learning(window):
    found = gradients(0.3, "rtrl", window=window)
    assert_recorded(found, "RTRL")
    assert distance(found, "RFLO, symmetric") > 0.05


def test_random_feedback_local_online_learning():
    """RFLO is the point of a trace with random feedback; with symmetric feedback it is the strict rule."""
    config = ETraceConfig(signal="random_feedback", key=jax.random.key(0))
    found = gradients(0.3, config, feedback=readout_weight(PROBLEM["W_FB"]))
    assert_recorded(found, "RFLO")
    assert distance(found, "RFLO, symmetric") > 0.3
    assert_recorded(gradients(0.3, ETraceConfig(signal="symmetric")), "RFLO, symmetric")


def test_unbiased_online_recurrent_optimization():
    """The reference's mean over its draws is, within its own noise, what ours is the mean of: the exact gradient."""
    entry = RECORD["gradients"]["UORO"]
    exact = gradients(1.0, "rtrl")
    assert_recorded(exact, "RTRL, no leak")
    error = np.abs(np.array(entry["W"]) - exact["W"]) / np.array(entry["standard_error"])
    assert error.max() < 4
    assert np.array(entry["standard_error"]).max() < 0.02 * np.abs(exact["W"]).max()
    np.testing.assert_allclose(gradients(1.0, "uoro")["V"], entry["V"], rtol=1e-9)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_released_library_on_a_single_state(name):
    entry = FOREIGN[name]
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in entry["options"].items()}
    found = gradients(entry["alpha"], entry["algorithm"], **options)
    assert_recorded(found, name)
    assert distance(found, "RTRL") > 0.02
