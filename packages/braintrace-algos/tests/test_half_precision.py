"""Traces in bfloat16: kept so, computed with in single precision."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from braintrace_algos import compile
from braintrace_primitives import _rows, matmul

T, B, I, H = 120, 2, 3, 4
LEAK = 0.99
"""Nearest in bfloat16 is 0.98828: a memory of 85 steps in place of 100."""


class Slow(brainstate.nn.Module):
    """Units that forget slowly, at a rate that depends on the state or does not."""

    def __init__(self, constant):
        super().__init__()
        self.constant = constant
        self.w = brainstate.ParamState(0.3 * jax.random.normal(jax.random.key(0), (I, H)))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((H,) if batch_size is None else (batch_size, H)))

    def update(self, x):
        h = self.h.value
        leak = LEAK if self.constant else LEAK - 1e-6 * jnp.tanh(h)
        self.h.value = leak * h + matmul(x, self.w.value)
        return jnp.tanh(0.05 * self.h.value)


def carried(algorithm, constant, trace_dtype, **options):
    """The gradient of one late step, which comes from what is carried but for a hundredth."""
    xs = jax.random.normal(jax.random.key(1), (T, B, I))
    learner = compile(Slow(constant), algorithm, xs[0], batch_size=B, fold=1, trace_dtype=trace_dtype, **options)
    found = learner.etrace_grad(
        xs, step_fn=lambda x: (learner(x) ** 2).sum(), mask=jnp.zeros(T).at[-1].set(1), reduction="sum"
    )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(learner.etraces.value) if leaf.ndim > 1}
    assert jnp.dtype(trace_dtype or jnp.float32) in dtypes
    return found


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("d_rtrl", {}),
        ("d_rtrl", {"vjp_method": "multi-step", "window": 2}),
        ("pp_prop", {"decay_or_rank": LEAK}),
        ("rtrl", {}),
        ("snap", {"n": 1}),
    ],
)
def test_what_is_forgotten_is_not_rounded(algorithm, options, constant, distance):
    expected = carried(algorithm, constant, None, **options)
    assert distance(carried(algorithm, constant, jnp.bfloat16, **options), expected) < 0.015


def test_learning_at_every_step(distance, monkeypatch):
    monkeypatch.setattr(_rows, "_LEAST", 1)
    xs, ys = jax.random.normal(jax.random.key(1), (30, B, I)), jax.random.normal(jax.random.key(2), (30, B, H))

    def trained(trace_dtype):
        learner = compile(Slow(False), "d_rtrl", xs[0], batch_size=B, trace_dtype=trace_dtype)
        history = learner.etrace_train(
            xs, ys, step_fn=lambda x, y: ((learner(x) - y) ** 2).mean(), optimizer=optax.sgd(0.01)
        )
        return learner, [s.value for s in learner.param_states.values()], history.losses

    start = Slow(False).w.value
    _, expected, losses = trained(None)
    learner, found, rounded = trained(jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(learner.etraces.value)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_allclose(rounded, losses, rtol=0.01)
    learned = jax.tree.map(lambda new, old: new - old, expected, [start])
    assert distance(jax.tree.map(lambda new, old: new - old, found, [start]), learned) < 0.005
