"""Operations inside calls that JAX makes: the gradient is that of the operation by itself."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import matmul

I, H, T = 2, 3, 4


@jax.custom_jvp
def with_jvp(x: Any, w: Any) -> Any:
    return matmul(x, w)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]))


@jax.custom_vjp
def with_vjp(x: Any, w: Any) -> Any:
    return matmul(x, w)


with_vjp.defvjp(lambda x, w: (matmul(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, jnp.outer(saved[0], g)))


@jax.custom_vjp
def surrogate(v: Any) -> Any:
    return (v > 0).astype(v.dtype)


surrogate.defvjp(lambda v: (surrogate(v), v), lambda v, g: (g / (1 + jnp.abs(v)) ** 2,))

WAYS = {
    "jit": jax.jit(matmul),
    "jit in checkpoint": jax.checkpoint(jax.jit(matmul)),
    "checkpoint with a policy": jax.checkpoint(matmul, policy=jax.checkpoint_policies.nothing_saveable),
    "named call": jax.named_call(matmul, name="layer"),
    "custom_jvp": with_jvp,
    "custom_vjp": jax.jit(with_vjp),
    "vmap": lambda x, w: jax.vmap(matmul, (0, None))(x[None], w)[0],
    "vmap over weights": lambda x, w: jax.vmap(matmul, (None, 1), -1)(x, w[:, :, None])[0],
    "nested vmaps": lambda x, w: jax.vmap(jax.vmap(jax.checkpoint(matmul), (0, None)), (0, None))(x[None, None], w)[
        0, 0
    ],
}


class Spiking(brainstate.nn.Module):
    """A recurrent layer of spiking neurons; its product is `way(x, w)`."""

    def __init__(self, way: Any):
        super().__init__()
        self._way = way
        self.w = brainstate.ParamState(jnp.asarray(np.random.default_rng(0).normal(size=(I + H, H)), jnp.float32))

    def init_state(self, batch_size: int | None = None) -> None:
        self.v = brainstate.HiddenState(jnp.zeros(H))

    def update(self, x: Any) -> Any:
        spikes = surrogate(self.v.value - 0.5)
        read = jnp.concatenate([x, spikes])
        self.v.value = 0.9 * self.v.value * (1 - spikes) + jax.checkpoint(jnp.tanh)(self._way(read, self.w.value))
        return self.v.value


def gradient(way: Any) -> Any:
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(T, I)), jnp.float32)
    learner = braintrace.compile(Spiking(way), "d_rtrl", xs[0])
    return learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum")["w",]


@pytest.fixture(scope="module")
def expected() -> Any:
    return gradient(matmul)


@pytest.mark.parametrize("name", WAYS)
def test_the_gradient_is_that_of_the_operation(name, expected):
    np.testing.assert_allclose(gradient(WAYS[name]), expected, rtol=1e-5)
