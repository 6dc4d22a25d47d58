"""All-to-all and one-to-one connections."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn
from braintrace_primitives import is_etp_primitive


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def without_diagonal(weight):
    return weight * (1 - np.eye(*weight.shape))


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("sizes", [(3, 3), (4, 3), (3, 4)])
@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_all_to_all(lead, sizes, include_self, shared):
    weight = np.float32(0.7) if shared else normal(*sizes)
    layer = nn.AllToAll(*sizes, w_init=weight, b_init=0.25, include_self=include_self)
    full = np.broadcast_to(weight, sizes)
    x = normal(*lead, sizes[0], seed=1)
    want = x @ (full if include_self else without_diagonal(full)) + 0.25
    np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-6)
    assert layer.weight.value["weight"].shape == (() if shared else sizes)


@pytest.mark.parametrize("shared", [True, False])
def test_every_parameter_of_all_to_all_is_marked(shared):
    layer = nn.AllToAll(3, 3, w_init=0.5 if shared else normal(3, 3), b_init=0.1, include_self=False)
    eqns = brainstate.transform.make_jaxpr(layer)(jnp.ones((2, 3)))[0].jaxpr.eqns
    assert sum(is_etp_primitive(eqn.primitive) for eqn in eqns) == (2 if shared else 1)
    x = normal(2, 3)
    grads = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.states())()[("weight",)]

    def loss(params):
        return ((x @ (params["weight"] * (1 - jnp.eye(3))) + params["bias"]) ** 2).sum()

    want = jax.grad(loss)(layer.weight.value)
    for name in want:
        np.testing.assert_allclose(grads[name], want[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("lead", [(), (5,)])
def test_one_to_one(shape, lead):
    layer = nn.OneToOne(shape, w_init=normal(*shape), b_init=normal(*shape, seed=1))
    x = normal(*lead, *shape, seed=2)
    np.testing.assert_allclose(layer(x), x * normal(*shape) + normal(*shape, seed=1), rtol=1e-6)
    assert layer.in_size == layer.out_size == shape
    assert set(nn.OneToOne(3).weight.value) == {"weight"}


def test_one_to_one_is_marked_over_the_batch():
    layer = nn.OneToOne(3, b_init=0.0)
    eqns = brainstate.transform.make_jaxpr(layer)(jnp.ones((2, 3)))[0].jaxpr.eqns
    assert [eqn.outvars[0].aval.shape for eqn in eqns if is_etp_primitive(eqn.primitive)] == [(2, 3), (2, 3)]


def test_units():
    x = jnp.ones(3) * u.mV
    for layer in (nn.OneToOne(3, w_init=2.0 * u.siemens), nn.AllToAll(3, 3, w_init=2.0 * u.siemens)):
        want = 2.0 if isinstance(layer, nn.OneToOne) else 6.0
        np.testing.assert_allclose(layer(x).to_decimal(u.mA), np.full(3, want), rtol=1e-6)


@pytest.mark.parametrize("layer", [nn.AllToAll(4, 3), nn.OneToOne(4)])
def test_errors_and_repr(layer):
    with pytest.raises(nn.InputShapeError, match=r"float32\[\.\.\.,4\]"):
        layer(jnp.ones((2, 5)))
    with pytest.raises(nn.InputTypeError, match="int32"):
        layer(jnp.ones(4, "int32"))
    assert "(4,)" in repr(layer)


def test_default_weights():
    np.testing.assert_allclose(nn.AllToAll(400, 300).weight.value["weight"].std(), np.sqrt(2 / 400), rtol=0.02)
    np.testing.assert_allclose(nn.OneToOne(10000).weight.value["weight"].std(), 1.0, rtol=0.05)
