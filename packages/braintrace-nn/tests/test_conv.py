"""Convolutions against explicit loops, batched and single."""

import itertools

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_nn as nn
from braintrace_primitives import BraintraceError, etp_conv_p

LAYERS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
SCALED = [nn.ScaledWSConv1d, nn.ScaledWSConv2d, nn.ScaledWSConv3d]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def valid(x, kernel, stride=1, dilation=1, groups=1):
    """One sample, channels last, no padding: the sum written out place by place."""
    spatial, size = x.shape[:-1], kernel.shape[:-2]
    out = tuple((n - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(spatial, size, strict=True))
    y = np.zeros((*out, kernel.shape[-1]))
    inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    for p, q in itertools.product(np.ndindex(*out), np.ndindex(*size)):
        place = tuple(stride * a + dilation * b for a, b in zip(p, q, strict=True))
        for g in range(groups):
            channels = slice(g * outputs, (g + 1) * outputs)
            y[p][channels] += x[place][g * inputs : (g + 1) * inputs] @ kernel[q][:, channels]
    return y


@pytest.mark.parametrize(
    ("dims", "options"),
    [(1, {"rhs_dilation": 2}), (1, {"groups": 2}), (2, {"stride": 2}), (2, {"groups": 2}), (3, {})],
    ids=str,
)
def test_the_sum_place_by_place(dims, options):
    in_size = (*(5, 4, 3)[:dims], 2)
    layer = LAYERS[dims - 1](in_size, 4, 2, padding="VALID", b_init=0.5, **options)
    kernel = np.asarray(layer.weight.value["weight"])
    assert kernel.shape == (*(2,) * dims, 2 // options.get("groups", 1), 4)
    xs = normal(2, *in_size)
    names = {"stride": "stride", "rhs_dilation": "dilation", "groups": "groups"}
    want = np.stack([valid(x, kernel, **{names[k]: v for k, v in options.items()}) for x in xs]) + 0.5
    layer_in_one = brainstate.transform.jit(layer)
    np.testing.assert_allclose(layer_in_one(xs), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer_in_one(xs[0]), want[0], rtol=1e-4, atol=1e-5)
    assert layer.out_size == want.shape[1:]


@pytest.mark.parametrize("dims", [1, 2])
def test_channels_first_is_the_same_convolution(dims):
    spatial = (5, 4, 3)[:dims]
    last = LAYERS[dims - 1]((*spatial, 2), 3, 2, b_init=normal(3))
    first = LAYERS[dims - 1]((2, *spatial), 3, 2, b_init=normal(3), channel_first=True)
    first.weight.value = last.weight.value
    x = normal(2, *spatial, 2)
    y = first(np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(np.moveaxis(y, 1, -1), last(x), rtol=1e-5, atol=1e-6)
    assert first.out_size == (3, *spatial)
    assert first(np.moveaxis(x[0], -1, 0)).shape == first.out_size


@pytest.mark.parametrize(
    ("padding", "low"), [("SAME", 1), (1, 1), ((1, 1), 1), (((1, 1), (1, 1)), 1), ("VALID", 0)], ids=str
)
def test_paddings(padding, low):
    layer = nn.Conv2d((5, 5, 1), 2, 3, padding=padding)
    x = normal(5, 5, 1)
    want = valid(np.pad(x, ((low, low), (low, low), (0, 0))), np.asarray(layer.weight.value["weight"]))
    np.testing.assert_allclose(layer(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [None, 2])
def test_one_marked_operation(batch):
    layer = nn.Conv2d((4, 4, 2), 3, 2, b_init=0.0)
    x = jnp.ones((4, 4, 2)) if batch is None else jnp.ones((2, 4, 4, 2))
    eqns = brainstate.transform.make_jaxpr(layer)(x)[0].jaxpr.eqns
    assert [eqn.primitive for eqn in eqns].count(etp_conv_p) == 1
    assert {k: v.shape for k, v in layer.weight.value.items()} == {"weight": (2, 2, 2, 3), "bias": (3,)}


def test_masked_entries_are_silent_and_get_no_gradient():
    mask = np.zeros((3, 2, 4))
    mask[1] = 1
    layer = nn.Conv1d((6, 2), 4, 3, w_mask=mask)
    x = normal(6, 2)
    kernel = np.asarray(layer.weight.value["weight"])
    np.testing.assert_allclose(layer(x), x @ kernel[1], rtol=1e-5, atol=1e-6)
    grads = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.states())()[("weight",)]["weight"]
    np.testing.assert_array_equal(grads != 0, mask != 0)


@pytest.mark.parametrize(("dims", "gain"), [(1, True), (2, False), (3, True)])
def test_standardised_kernels(dims, gain):
    in_size = (*(4, 4, 3)[:dims], 2)
    layer = SCALED[dims - 1](in_size, 3, 2, padding="VALID", b_init=0.5, ws_gain=gain)
    params = dict(layer.weight.value)
    assert ("gain" in params) == gain
    if gain:
        assert params["gain"].shape == (1,) * (dims + 1) + (3,)
        params["gain"] = jnp.asarray(normal(3).reshape(params["gain"].shape))
        layer.weight.value = params
    kernel = np.asarray(params["weight"])
    flat = kernel.reshape(-1, 3)
    scaled = (flat - flat.mean(0)) / np.sqrt(np.maximum(len(flat) * flat.var(0), 1e-4)) * (normal(3) if gain else 1)
    x = normal(*in_size)
    np.testing.assert_allclose(layer(x), valid(x, scaled.reshape(kernel.shape)) + 0.5, rtol=1e-4, atol=1e-5)
    loss = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.states())
    grads = brainstate.transform.jit(loss)()[("weight",)]
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(("channel_first", "shape"), [(False, (1, 3)), (True, (1, 3, 1))])
def test_bias_of_the_shape_that_older_models_saved(channel_first, shape):
    layer = nn.Conv1d((2, 4) if channel_first else (4, 2), 3, 2, b_init=normal(3), channel_first=channel_first)
    x = normal(2, *layer.in_size)
    want = layer(x)
    layer.weight.value = layer.weight.value | {"bias": jnp.asarray(normal(3).reshape(shape))}
    np.testing.assert_array_equal(layer(x), want)


def test_xavier_by_default():
    layer = nn.Conv2d((4, 4, 60), 80, 5)
    np.testing.assert_allclose(layer.weight.value["weight"].std(), np.sqrt(2 / (25 * 140)), rtol=0.02)
    assert "bias" not in layer.weight.value


def test_half_precision():
    with brainstate.environ.context(precision="bf16"):
        layer = nn.ScaledWSConv1d((6, 2), 3, 2, b_init=0.0)
    assert layer(jnp.ones((6, 2), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "options",
    [
        {"in_size": (4, 2)},
        {"kernel_size": (2, 2, 2)},
        {"stride": 0},
        {"out_channels": 0},
        {"groups": 3},
        {"padding": "LOOSE"},
        {"w_mask": np.ones((5, 5))},
    ],
    ids=str,
)
def test_impossible_convolutions(options):
    arguments = {"in_size": (4, 4, 2), "out_channels": 3, "kernel_size": 2} | options
    with pytest.raises(BraintraceError):
        nn.Conv2d(**arguments)


def test_input_errors():
    layer = nn.Conv1d((6, 2), 3, 2)
    with pytest.raises(nn.InputShapeError, match=r"float32\[\.\.\.,6,2\]"):
        layer(jnp.ones((6, 3)))
    with pytest.raises(nn.InputShapeError, match="one time step at a time"):
        layer(jnp.ones((5, 2, 6, 2)))
    with pytest.raises(nn.InputTypeError, match="int32"):
        layer(jnp.ones((6, 2), "int32"))


def test_repr_tells_sizes():
    text = repr(nn.Conv2d((4, 4, 2), 3, 2))
    assert "(4, 4, 2)" in text
    assert "kernel_size=(2, 2)" in text
