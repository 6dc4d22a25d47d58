"""Operations inside calls that JAX makes: the gradient is that of the operation by itself."""

from types import MappingProxyType
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


class Ensemble(brainstate.nn.Module):
    """Copies of a convolution, a sparse and a low-rank product and a table, each with weights of its own."""

    pattern = braintrace.SparsityPattern([0, 1, 1], [2, 0, 2], (I, H))
    shapes = MappingProxyType({"kernel": (2, 1, I), "data": (3,), "B": (I, 1), "A": (1, H), "table": (4, H)})

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(2)
        for name, shape in self.shapes.items():
            setattr(self, name, brainstate.ParamState(jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)))

    def init_state(self, batch_size: int | None = None) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((2, H)))
        self.u = brainstate.HiddenState(jnp.zeros((2, I, I)))

    def update(self, x: Any) -> Any:
        def drive(data, b, a, table, x=x):
            index = (x[1] > 0).astype(jnp.int32)
            sparse = braintrace.sparse_matmul(x, data, sparse_mat=self.pattern)
            return sparse + braintrace.lora_matmul(x, b, a) + braintrace.embedding(index, table)

        weights = [getattr(self, name).value for name in ("data", "B", "A", "table")]
        self.v.value = 0.9 * self.v.value + jnp.tanh(jax.vmap(drive)(*weights))
        layout = {"dimension_numbers": ("NWC", "WIO", "NWC")}
        images = jax.vmap(lambda kernel: braintrace.conv(x[:, None], kernel, **layout))(self.kernel.value)
        self.u.value = 0.8 * self.u.value + jnp.tanh(images)
        return jnp.concatenate([self.v.value.ravel(), self.u.value.ravel()])


def test_copies_with_weights_of_their_own_are_traced():
    """An ensemble by `jax.vmap`."""
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(T, I)), jnp.float32)
    strict, exact = (braintrace.compile(Ensemble(), algorithm, xs[0], fold=2) for algorithm in ("d_rtrl", "bptt"))
    assert all(c.exact for c in strict.graph.certificates())
    grads, expected = (
        learner.etrace_grad(xs, step_fn=lambda x, f=learner: jnp.sum(f(x) ** 2), reduction="sum")
        for learner in (strict, exact)
    )
    for path, value in expected.items():
        np.testing.assert_allclose(grads[path], value, rtol=1e-4, atol=1e-6)
        assert np.abs(value).max() > 0.1, path
