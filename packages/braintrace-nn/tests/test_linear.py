"""The dense layer."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn
from braintrace_primitives import etp_mm_p, etp_mv_p


def marks(layer, x):
    return [eqn.primitive for eqn in brainstate.transform.make_jaxpr(layer)(x)[0].jaxpr.eqns]


@pytest.mark.parametrize("lead", [(), (2,), (5, 2)])
@pytest.mark.parametrize("bias", [0.5, None])
def test_the_last_axis_is_mapped(lead, bias):
    layer = nn.Linear(4, 3, b_init=bias)
    x = np.random.default_rng(0).normal(size=(*lead, 4)).astype("float32")
    want = x @ np.asarray(layer.weight.value["weight"]) + (bias or 0)
    np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-6)
    assert set(layer.weight.value) == ({"weight", "bias"} if bias else {"weight"})
    assert layer.states().keys() == {("weight",)}


def test_nothing_but_the_marked_product():
    layer = nn.Linear(4, 3)
    assert marks(layer, jnp.ones(4)) == [etp_mv_p]
    assert marks(layer, jnp.ones((2, 4))) == [etp_mm_p]


@pytest.mark.parametrize("mask", [np.eye(4, 3), np.eye(4, 3, dtype=bool), np.array([1, 0, 1])])
def test_masked_entries_are_silent_and_get_no_gradient(mask):
    layer = nn.Linear(4, 3, w_mask=mask, b_init=None)
    x = jnp.arange(1.0, 5.0)
    np.testing.assert_allclose(layer(x), x @ (np.asarray(layer.weight.value["weight"]) * mask), rtol=1e-5)
    grads = brainstate.transform.grad(lambda: layer(x).sum(), layer.states())()[("weight",)]["weight"]
    np.testing.assert_array_equal(grads != 0, np.broadcast_to(mask, (4, 3)) != 0)


def test_a_mask_can_be_drawn_and_prints_its_size():
    layer = nn.Linear(4, 3, w_mask=brainstate.nn.init.ZeroInit())
    np.testing.assert_array_equal(layer(jnp.ones(4)), np.zeros(3))
    assert "w_mask=float32[4,3]" in repr(layer)


def test_leading_sizes():
    layer = nn.Linear((2, 4), (2, 3))
    assert layer.weight.value["weight"].shape == (4, 3)
    assert layer(jnp.ones((7, 2, 4))).shape == (7, 2, 3)


def test_units_multiply():
    layer = nn.Linear(4, 3, w_init=2.0 * u.siemens, b_init=1.0 * u.mA)
    y = layer(jnp.ones(4) * u.mV)
    np.testing.assert_allclose(y.to_decimal(u.mA), np.full(3, 9.0), rtol=1e-6)


def test_complex_weights():
    layer = nn.Linear(2, 1, w_init=np.array([[1j], [2.0]], "complex64"), b_init=None)
    np.testing.assert_allclose(layer(jnp.ones(2)), [2 + 1j])


def test_kaiming_and_zero_by_default():
    params = nn.Linear(400, 300).weight.value
    np.testing.assert_allclose(params["weight"].std(), np.sqrt(2 / 400), rtol=0.02)
    np.testing.assert_array_equal(params["bias"], np.zeros(300))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", jnp.bfloat16), (16, jnp.float16), (64, jnp.float64)])
def test_precision_of_the_environment(precision, dtype):
    with jax.enable_x64(precision == 64), brainstate.environ.context(precision=precision):
        layer = nn.Linear(4, 3, w_mask=np.ones((4, 3)), w_init=brainstate.nn.init.Orthogonal())
        assert layer(jnp.ones(4, dtype)).dtype == dtype
        assert layer.weight.value["weight"].dtype == dtype


def test_numbers_and_arrays_as_initial_values():
    for weight in (np.arange(6.0), np.arange(6), jnp.arange(6, dtype="int32")):
        for w_init in (weight.reshape(2, 3), lambda shape, w=weight: w.reshape(shape)):
            layer = nn.Linear(2, 3, w_init=w_init, b_init=1)
            np.testing.assert_allclose(layer(jnp.ones(2)), [4, 6, 8])
            assert isinstance(layer.weight.value["weight"], jax.Array)


def test_another_class_of_parameter():
    class Frozen(brainstate.ParamState):
        pass

    assert isinstance(nn.Linear(2, 3, param_type=Frozen).weight, Frozen)


@pytest.mark.parametrize("x", [np.ones(5, "float32"), np.ones((4, 5), "float32"), np.float32(1)])
def test_wrong_feature_size(x):
    with pytest.raises(nn.InputShapeError, match=r"float32\[\.\.\.,4\]") as caught:
        nn.Linear(4, 3, name="out")(x)
    assert "Linear 'out' (in_size=(4,), out_size=(3,))" in str(caught.value)


def test_integers_are_refused_and_spikes_are_not():
    layer = nn.Linear(4, 3)
    with pytest.raises(nn.InputTypeError, match=r"int32\[4\]"):
        layer(jnp.ones(4, "int32"))
    np.testing.assert_array_equal(layer(jnp.ones(4, bool)), layer(jnp.ones(4)))


@pytest.mark.parametrize("mask", [np.ones((3, 4)), np.ones((1, 4, 3)), np.ones((4, 2))])
def test_masks_that_do_not_fit(mask):
    with pytest.raises(nn.ConfigurationError, match="w_mask"):
        nn.Linear(4, 3, w_mask=mask)


def test_sizes_that_do_not_fit():
    with pytest.raises(nn.ConfigurationError, match="last axis only"):
        nn.Linear((2, 4), (3, 3))
