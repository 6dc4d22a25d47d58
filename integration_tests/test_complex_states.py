"""Complex hidden states, learnt online: exact gradients in JAX's convention, whether the step is holomorphic or not."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import element_wise, matmul

I, H, T, B = 2, 3, 5, 2


def array(*shape: int, imaginary: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(shape)
    real = 0.6 * rng.normal(size=shape)
    return real + 1j * imaginary * rng.normal(size=shape) if imaginary else real


def linear_recurrence(p: Any, h: Any, x: Any) -> Any:
    """The linear recurrent unit: a complex decay of real parameters."""
    decay = jnp.exp(-jnp.exp(element_wise(p["nu"])) + 1j * element_wise(p["theta"]))
    v = decay * h["v"] + matmul(x, p["w"])
    return {"v": v}, jnp.stack([v.real, v.imag])


def of_moduli(p: Any, h: Any, x: Any) -> Any:
    """Not holomorphic: the decay depends on the modulus, a real state on both parts."""
    size = jnp.abs(h["v"]) + 0.1
    v = (0.5 + 0.6j) * h["v"] * jax.nn.sigmoid(size) / size + matmul(x, p["w"])
    u = 0.8 * h["u"] + v.real * v.imag
    return {"v": v, "u": u}, u + v.real


def complex_weights(p: Any, h: Any, x: Any) -> Any:
    """A weight and a gain that all units share."""
    v = h["v"].conj() * jnp.tanh(element_wise(p["gain"])) + matmul(x.astype(complex), p["w"])
    return {"v": v}, jnp.stack([v.real, v.imag])


CASES = {
    "linear recurrence": (
        linear_recurrence,
        {"w": array(I, H), "nu": array(H), "theta": array(1)},
        {"v": array(B, H, imaginary=0.5)},
    ),
    "of moduli": (of_moduli, {"w": array(I, H)}, {"v": array(B, H, imaginary=0.5), "u": array(B, H)}),
    "complex weights": (
        complex_weights,
        {"w": array(I, H, imaginary=0.5), "gain": array(1, imaginary=0.5)},
        {"v": array(B, H, imaginary=0.5)},
    ),
}


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def backpropagation(step: Any, params: Any, hidden: Any, xs: Any) -> Any:
    def total(params: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            h, out = step(params, h, x)
            return h, jnp.sum(out**2)

        return jax.lax.scan(body, hidden, xs)[1].sum()

    return jax.grad(total)(params)


@pytest.mark.parametrize(
    ("algorithm", "options"), [("d_rtrl", {}), ("d_rtrl", {"fold": 1}), ("rtrl", {}), ("snap", {"n": 2})]
)
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_backpropagation(name, algorithm, options):
    step, params, hidden = CASES[name]
    params, hidden = jax.tree.map(jnp.asarray, (params, hidden))
    xs = jnp.asarray(array(T, B, I))
    learner = braintrace.compile(braintrace.StepModule(step, params, hidden), algorithm, xs[0], **options)
    assert all(c.exact for c in learner.graph.certificates())
    found = learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum")
    for key, expected in backpropagation(step, params, hidden, xs).items():
        np.testing.assert_allclose(found["params", key], expected, rtol=1e-9)
