"""What a certificate says is left out is left out: without it the gradient is that of backpropagation through time."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import Omission, lora_matmul, matmul

I, H, T = 4, 3, 5


class Layered(brainstate.nn.Module):
    """Two states, two weights, and a step ``update(model, x)``."""

    def __init__(self, step: Any):
        super().__init__()
        self._step = step
        rng = np.random.default_rng(0)
        self.w = brainstate.ParamState(jnp.asarray(rng.normal(size=(I, H)), jnp.float32))
        self.u = brainstate.ParamState(jnp.asarray(rng.normal(size=(H, H)), jnp.float32))

    def init_state(self, batch_size: int | None = None) -> None:
        self.v = brainstate.HiddenState(jnp.zeros(H))
        self.g = brainstate.HiddenState(jnp.zeros(H))

    def update(self, x: Any) -> Any:
        return self._step(self, x)


def recurrent(m: Any, x: Any) -> Any:
    m.v.value = 0.9 * m.v.value + jnp.tanh(matmul(x, m.w.value) + matmul(m.v.value, m.u.value))
    return m.v.value


def stacked(m: Any, x: Any) -> Any:
    m.v.value = 0.9 * m.v.value + jnp.tanh(matmul(x, m.w.value))
    m.g.value = jax.nn.sigmoid(m.g.value) * m.g.value + jnp.tanh(matmul(m.v.value, m.u.value))
    return m.g.value


def gated(m: Any, x: Any) -> Any:
    m.v.value = 0.9 * m.v.value + matmul(jnp.tanh(matmul(x, m.w.value)), m.u.value)
    return m.v.value


def mixing(m: Any, x: Any) -> Any:
    m.v.value = 2 * jax.nn.softmax(m.v.value) + jnp.tanh(matmul(x, m.w.value))
    return m.v.value


def also_unmarked(m: Any, x: Any) -> Any:
    m.v.value = 0.9 * m.v.value + jnp.tanh(matmul(x, m.w.value)) + jnp.sin(x @ m.w.value)
    return m.v.value


def varying(m: Any, x: Any) -> Any:
    y = matmul(x, jnp.cos(x.sum()) * m.w.value)
    m.v.value = 0.9 * m.v.value + jnp.tanh(y + matmul(jnp.tile(x, H)[:H], m.u.value))
    return m.v.value


def thrifty(m: Any, x: Any) -> Any:
    m.v.value = 0.9 * m.v.value + jnp.tanh(lora_matmul(x, m.w.value, m.u.value, carry_b=False))
    return m.v.value


def alone(m: Any, x: Any) -> Any:
    m.v.value = 0.9 * m.v.value + jnp.tanh(matmul(x, m.w.value))
    return matmul(jnp.tanh(m.v.value), m.u.value)


OMITS = {
    Omission.RECURRENT_MIXING: recurrent,
    Omission.DOWNSTREAM_MEMORY: stacked,
    Omission.THROUGH_ANOTHER_OP: gated,
    Omission.POSITION_MIXING: mixing,
    Omission.TIME_VARYING_WEIGHT: varying,
    Omission.NOT_CARRIED: thrifty,
    Omission.UNTRACED_USE: also_unmarked,
    Omission.OLDER_STEPS: alone,
}
OPTIONS = {Omission.OLDER_STEPS: {"carry": braintrace.Truncate(1)}}


def gradient(step: Any, algorithm: str, **options: Any) -> tuple[Any, Any]:
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(T, I)), jnp.float32)
    learner = braintrace.compile(Layered(step), algorithm, xs[0], **options)
    return learner, learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum")["w",]


def error(step: Any, **options: Any) -> tuple[Any, float]:
    learner, found = gradient(step, "d_rtrl", fold=1, **options)  # all credit beyond a step goes through the traces
    expected = gradient(step, "bptt")[1]
    (certificate,) = [c for c in learner.plan.certificates() if c.operation.weight_path == ("w",)]
    return certificate, float(np.abs(found - expected).max() / np.abs(expected).max())


def test_every_omission_has_a_model():
    assert set(OMITS) == set(Omission)


@pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")
@pytest.mark.parametrize("omission", OMITS)
def test_what_is_omitted_is_missing(omission):
    certificate, missing = error(OMITS[omission], **OPTIONS.get(omission, {}))
    assert certificate.omissions == (omission,)
    assert missing > 1e-2


@pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")
def test_where_nothing_is_omitted_nothing_is_missing():
    certificate, missing = error(alone)
    assert certificate.exact
    assert missing < 1e-5


@pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")
def test_a_bias_beside_a_weight_that_varies_is_exact():
    def step(m: Any, x: Any) -> Any:
        y = matmul(jnp.tile(x, H)[:H], m.u.value * jnp.cos(x.sum()), m.w.value[0])
        m.v.value = 0.9 * m.v.value + jnp.tanh(y)
        return m.v.value

    certificate, missing = error(step)
    assert certificate.exact
    assert missing < 1e-5
