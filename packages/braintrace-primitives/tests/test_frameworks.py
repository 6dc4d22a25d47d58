"""Models of other frameworks use the operations and train as they do with their own layers."""

import jax
import jax.numpy as jnp
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import draw

IMAGES, TARGETS = draw((4, 6, 6, 2), jnp.float32), draw((4, 3), jnp.float32)
LAYOUT = ("NHWC", "HWIO", "NHWC")


def losses(model, predict, value_and_grad, update):
    """Five steps of gradient descent on the squared error."""
    history = []
    for _ in range(5):
        loss, grads = value_and_grad(lambda model: jnp.mean((predict(model, IMAGES) - TARGETS) ** 2))(model)
        model = update(model, grads)
        history.append(float(loss))
    return history


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv, self.linear = nnx.Conv(2, 3, (3, 3), rngs=rngs), nnx.Linear(6 * 6 * 3, 3, rngs=rngs)

        def __call__(self, x):
            return self.linear(jax.nn.relu(self.conv(x)).reshape(len(x), -1))

    def marked(model, x):
        conv, linear = model.conv, model.linear
        x = jax.nn.relu(bp.conv(x, conv.kernel[...], conv.bias[...], dimension_numbers=LAYOUT))
        return bp.matmul(x.reshape(len(x), -1), linear.kernel[...], linear.bias[...])

    def descend(model, grads):
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(model, nnx.Param), grads))
        return model

    own = losses(Model(), lambda model, x: model(x), nnx.value_and_grad, descend)
    got = losses(Model(), marked, nnx.value_and_grad, descend)
    assert got == pytest.approx(own, rel=1e-5)
    assert got[-1] < 0.9 * got[0]


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        conv: eqx.Module
        linear: eqx.Module

        def __call__(self, x):
            return self.linear(jax.nn.relu(self.conv(x)).ravel())

    one, two = jax.random.split(jax.random.key(0))
    model = Model(eqx.nn.Conv2d(2, 3, 3, key=one), eqx.nn.Linear(4 * 4 * 3, 3, key=two))

    def marked(model, x):
        x = jax.nn.relu(bp.conv(x, model.conv.weight, model.conv.bias, padding="VALID"))
        return bp.matmul(x.ravel(), model.linear.weight.T, model.linear.bias)

    def batched(predict):
        return lambda model, x: jax.vmap(lambda x: predict(model, x.transpose(2, 0, 1)))(x)

    def descend(model, grads):
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads))

    own = losses(model, batched(lambda model, x: model(x)), eqx.filter_value_and_grad, descend)
    got = losses(model, batched(marked), eqx.filter_value_and_grad, descend)
    assert got == pytest.approx(own, rel=1e-5)
    assert got[-1] < 0.9 * got[0]
