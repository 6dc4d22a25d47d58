"""Dense layers of one sign, or standardised."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_nn as nn
from braintrace_primitives import etp_mm_p, etp_mv_p


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def gradients(layer, x):
    return brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.states())()[("weight",)]


def marks(layer, x):
    eqns = brainstate.transform.make_jaxpr(layer)(x)[0].jaxpr.eqns
    return [eqn.primitive for eqn in eqns if eqn.primitive in (etp_mm_p, etp_mv_p)]


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("sign", [None, np.sign(normal(4, 3, seed=1)), np.array([[1], [1], [-1], [-1]])])
def test_signs_are_kept(lead, sign):
    layer = nn.SignedWLinear(4, 3, w_init=normal(4, 3), w_sign=sign)
    x = normal(*lead, 4, seed=2)
    effective = np.abs(normal(4, 3)) * (1 if sign is None else sign)
    np.testing.assert_allclose(layer(x), x @ effective, rtol=1e-5, atol=1e-6)
    assert marks(layer, x) == [etp_mm_p if lead else etp_mv_p]
    want = jax.grad(lambda w: ((x @ (abs(w) * (1 if sign is None else sign))) ** 2).sum())(normal(4, 3))
    np.testing.assert_allclose(gradients(layer, x), want, rtol=1e-4, atol=1e-5)


def test_signs_that_do_not_fit():
    with pytest.raises(nn.ConfigurationError, match="w_sign"):
        nn.SignedWLinear(4, 3, w_sign=np.ones((3, 4)))


def standardised(weight, gain=1.0, eps=1e-4):
    """Column by column, in NumPy's own words."""
    columns = [(c - c.mean()) / np.sqrt(max(c.size * c.var(), eps)) for c in weight.T]
    return gain * np.stack(columns, axis=1)


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)])
def test_standardised_weights(lead):
    layer = nn.ScaledWSLinear(4, 3, w_init=normal(4, 3), b_init=0.5)
    x = normal(*lead, 4, seed=2)
    np.testing.assert_allclose(layer(x), x @ standardised(normal(4, 3)) + 0.5, rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in layer.weight.value.items()} == {"weight": (4, 3), "bias": (3,), "gain": (1, 3)}
    assert marks(layer, x) == [etp_mm_p if lead else etp_mv_p]


def test_standardisation_is_that_of_brainstate():
    want = brainstate.nn.weight_standardization(jnp.asarray(normal(4, 3)), 1e-4, jnp.full((1, 3), 1.5))
    layer = nn.ScaledWSLinear(4, 3, w_init=normal(4, 3), b_init=None)
    layer.weight.value = layer.weight.value | {"gain": jnp.full((1, 3), 1.5)}
    np.testing.assert_allclose(layer(np.eye(4, dtype="float32")), want, rtol=1e-4, atol=1e-6)


def test_gain_mask_and_options():
    mask = np.eye(4, 3)
    layer = nn.ScaledWSLinear(4, 3, w_init=normal(4, 3), w_mask=mask)
    x = normal(2, 4, seed=2)
    np.testing.assert_allclose(layer(x), x @ (standardised(normal(4, 3)) * mask), rtol=1e-4, atol=1e-5)
    grads = gradients(layer, x)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    bare = nn.ScaledWSLinear(4, 3, ws_gain=False, b_init=None)
    assert set(bare.weight.value) == {"weight"}


def test_a_constant_column_stays_finite():
    layer = nn.ScaledWSLinear(4, 3, w_init=1.0, b_init=None)
    np.testing.assert_array_equal(layer(jnp.ones(4)), np.zeros(3))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients(layer, jnp.ones(4))))


@pytest.mark.parametrize("kind", [nn.SignedWLinear, nn.ScaledWSLinear])
def test_errors_and_repr(kind):
    layer = kind(4, 3)
    with pytest.raises(nn.InputShapeError, match=r"float32\[\.\.\.,4\]"):
        layer(jnp.ones(5))
    with pytest.raises(nn.InputTypeError, match="int32"):
        layer(jnp.ones(4, "int32"))
    with pytest.raises(nn.ConfigurationError):
        kind((2, 4), (3, 3))
    assert kind.__name__ in repr(layer)
    assert "(4,)" in repr(layer)


@pytest.mark.parametrize("kind", [nn.SignedWLinear, nn.ScaledWSLinear])
def test_half_precision(kind):
    with brainstate.environ.context(precision="bf16"):
        layer = kind(4, 3)
    y = layer(jnp.ones(4, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert jnp.isfinite(y).all()
