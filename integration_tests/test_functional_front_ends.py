"""Models of Equinox and of Flax learn online by the functional face, in plain JAX loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace

B, I, H, O, T = 3, 4, 5, 2, 6
KEYS = jax.random.split(jax.random.key(0), 4)
WEIGHTS = {
    "inwards": 0.5 * jax.random.normal(KEYS[0], (I, H)),
    "outwards": 0.5 * jax.random.normal(KEYS[1], (H, O)),
}
XS, YS = jax.random.normal(KEYS[2], (T, B, I)), jax.random.normal(KEYS[3], (T, B, O))


def leaky(model, h, x):
    """Leaky units without mixing, where the strict rule is exact."""
    h = 0.8 * h + jnp.tanh(braintrace.matmul(x, model.inwards[...]))
    return h, braintrace.matmul(h, model.outwards[...])


def equinox_model():
    eqx = pytest.importorskip("equinox")

    class Cell(eqx.Module):
        inwards: jax.Array
        outwards: jax.Array

    return Cell(**WEIGHTS), leaky


def flax_model():
    nnx = pytest.importorskip("flax.nnx")

    class Cell(nnx.Module):
        def __init__(self):
            self.inwards, self.outwards = nnx.Param(WEIGHTS["inwards"]), nnx.Param(WEIGHTS["outwards"])

    graph, params = nnx.split(Cell())
    return params, lambda params, h, x: leaky(nnx.merge(graph, params), h, x)


def loss(out, y):
    return ((out - y) ** 2).mean()


def backpropagation(model, step):
    def total(model):
        def body(h, xy):
            h, out = step(model, h, xy[0])
            return h, loss(out, xy[1])

        return jax.lax.scan(body, jnp.zeros((B, H)), (XS, YS))[1].mean()

    return jax.tree.leaves(jax.grad(total)(model))


@pytest.mark.parametrize("make", [equinox_model, flax_model])
def test_the_functional_face_of_a_foreign_model(make):
    model, step = make()
    expected = backpropagation(model, step)
    module = braintrace.StepModule(step, model, lambda batch: jnp.zeros((batch or 1, H)))
    face = braintrace.compile(module, "d_rtrl", XS[0], batch_size=B).functional()
    params, state = face.init()
    assert len(params) == len(expected) == 2

    def by_steps(carry, xy):
        state, total = carry

        def objective(params):
            out, new = face.step(params, state, xy[0])
            return loss(out, xy[1]), new

        grads, new = jax.grad(objective, has_aux=True)(params)
        return (new, jax.tree.map(lambda a, g: a + g / T, total, grads)), None

    @jax.jit
    def gradients(params, state):
        folded, _, _ = face.fold(params, state, XS, YS, loss=loss)
        (_, stepped), _ = jax.lax.scan(by_steps, (state, jax.tree.map(jnp.zeros_like, params)), (XS, YS))
        return folded, stepped

    for found in gradients(params, state):
        for got, want in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert min(float(jnp.abs(want).max()) for want in expected) > 1e-3
