import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import draw

LAYOUT = ("NHWC", "HWIO", "NHWC")


def normal(*shape):
    return draw(shape, jnp.float32)


IMAGE, KERNEL = normal(2, 5, 4, 3), normal(3, 2, 3, 4)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {}),
        ({"strides": 2, "padding": "VALID"}, {"window_strides": (2, 2), "padding": "VALID"}),
        (
            {"strides": (2, np.int64(1)), "padding": np.int32(1)},
            {"window_strides": (2, 1), "padding": [(1, 1), (1, 1)]},
        ),
        ({"padding": (1, 0), "rhs_dilation": (1, 2)}, {"padding": [(1, 1), (0, 0)], "rhs_dilation": (1, 2)}),
        ({"padding": [(1, 2), (0, 1)], "lhs_dilation": 2}, {"padding": [(1, 2), (0, 1)], "lhs_dilation": (2, 2)}),
        ({"padding": "same_lower"}, {"padding": "SAME_LOWER"}),
    ],
)
def test_options_mean_what_jax_means(options, same):
    want = jax.lax.conv_general_dilated(
        IMAGE, KERNEL, dimension_numbers=LAYOUT, **({"window_strides": (1, 1), "padding": "SAME"} | same)
    )
    assert jnp.allclose(bp.conv(IMAGE, KERNEL, dimension_numbers=LAYOUT, **options), want, atol=1e-5)


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_channels_first_is_the_default(spatial):
    x, kernel = normal(2, 3, *(4,) * spatial), normal(5, 3, *(2,) * spatial)
    want = jax.lax.conv(x, kernel, (1,) * spatial, "SAME")
    assert jnp.allclose(bp.conv(x, kernel), want, atol=1e-5)
    assert jnp.allclose(bp.conv(x[0], kernel), want[0], atol=1e-5)


def test_groups():
    x, kernel = normal(2, 5, 4, 6), normal(3, 3, 2, 9)
    options = {"dimension_numbers": LAYOUT, "feature_group_count": 3}
    want = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    assert jnp.allclose(bp.conv(x, kernel, **options), want, atol=1e-5)
    x, kernel = normal(4, 5, 4, 2), normal(3, 3, 2, 6)
    options = {"dimension_numbers": LAYOUT, "batch_group_count": 2}
    want = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)
    assert jnp.allclose(bp.conv(x, kernel, **options), want, atol=1e-5)


def test_batch_axis_anywhere():
    layout = ("HWNC", "HWIO", "HNWC")
    x = normal(5, 4, 2, 3)
    want = jax.lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=layout)
    assert jnp.allclose(bp.conv(x, KERNEL, dimension_numbers=layout), want, atol=1e-5)
    single = bp.conv(x[:, :, 0], KERNEL, dimension_numbers=layout)
    assert jnp.allclose(single, want[:, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (1,), (4, 1), (5, 1, 4), (5, 4, 4), ()])
def test_bias_of_any_broadcastable_shape(shape):
    bias = normal(*shape)
    got = bp.conv(IMAGE, KERNEL, bias, dimension_numbers=LAYOUT)
    assert jnp.allclose(got, bp.conv(IMAGE, KERNEL, dimension_numbers=LAYOUT) + bias, atol=1e-5)


def test_bias_vector_lies_on_the_channel_axis():
    x, kernel, bias = normal(2, 3, 4, 4), normal(4, 3, 2, 2), normal(4)
    assert jnp.allclose(bp.conv(x, kernel, bias), bp.conv(x, kernel) + bias[:, None, None], atol=1e-5)


def test_identity_survives_vmap_over_the_input():
    f = lambda x: bp.conv(x, KERNEL, dimension_numbers=LAYOUT)  # noqa: E731
    eqns = jax.make_jaxpr(jax.vmap(jax.vmap(f)))(normal(2, 2, 5, 4, 3)).eqns
    assert [e.primitive for e in eqns] == [bp.etp_conv_p]
    stacked = normal(2, 2, 5, 4, 3)
    want = jnp.stack([f(x) for x in stacked])
    assert jnp.allclose(jax.vmap(f)(stacked), want, atol=1e-5)


def test_copies_of_a_convolution_without_output():
    x, kernels = jnp.ones((2, 3, 4)), jnp.ones((5, 6, 3, 7))
    assert jax.vmap(lambda k: bp.conv(x, k, padding="VALID"))(kernels).shape == (5, 2, 6, 0)


def test_mixed_dtypes_promote():
    y = bp.conv(IMAGE.astype(jnp.bfloat16), KERNEL, dimension_numbers=LAYOUT)
    assert y.dtype == jnp.float32


def test_a_carried_trace_holds_one_patch_per_output_position():
    x, kernel = normal(2, 6, 3), normal(3, 3, 4)
    call = lambda x, k: bp.conv(x, k, strides=2, dimension_numbers=("NWC", "WIO", "NWC"))  # noqa: E731
    (eqn,) = jax.make_jaxpr(call)(x, kernel).eqns
    rule = bp.get_primitive_spec(eqn.primitive).trace_rule
    y = jax.eval_shape(call, x, kernel)
    size = rule.trace_size(jax.typeof(x), {"weight": kernel}, y, 2, eqn.params)
    assert size == 2 * y.size * 3 * 3


@pytest.mark.parametrize(
    ("x", "kernel", "options", "text"),
    [
        (IMAGE, KERNEL[0, 0], {}, "one to three spatial axes"),
        (IMAGE[0, 0], KERNEL, {}, "x of 4 axes, or 3 for one sample"),
        (IMAGE[..., :2], KERNEL, {}, "3 channels in x"),
        (IMAGE, KERNEL, {"dimension_numbers": None}, r"read as NCHW, OIHW[\s\S]*give dimension_numbers"),
        (IMAGE[..., :2], KERNEL, {}, "read as NHWC, HWIO"),
        (IMAGE, KERNEL, {"strides": (1, 1, 1)}, "strides does not fit"),
        (IMAGE, KERNEL, {"strides": 0}, "strides does not fit"),
        (IMAGE, KERNEL, {"strides": 1.5}, "strides does not fit"),
        (IMAGE, KERNEL, {"rhs_dilation": (1.5, 1)}, r"rhs_dilation does not fit[\s\S]*\(1.5, 1\)"),
        (IMAGE, KERNEL, {"padding": (1, 1.5)}, "padding does not fit"),
        (IMAGE, KERNEL, {"feature_group_count": 1.0}, "groups do not fit"),
        (IMAGE, KERNEL, {"padding": "HALF"}, "padding does not fit"),
        (IMAGE, KERNEL, {"padding": "SAME", "lhs_dilation": 2}, "'SAME' with lhs_dilation"),
        (IMAGE, KERNEL, {"padding": [(1, 1, 1)] * 2}, "padding does not fit"),
        (IMAGE, KERNEL, {"dimension_numbers": "NHWC"}, "dimension numbers are malformed"),
        (IMAGE, KERNEL, {"feature_group_count": 3}, "9 channels in x"),
        (IMAGE, KERNEL[..., :3], {"batch_group_count": 2}, "multiple of 2"),
        (IMAGE[:1], KERNEL, {"batch_group_count": 2}, "batch does not divide"),
        (IMAGE[0], KERNEL, {"batch_group_count": 2}, "batch does not divide"),
        (IMAGE, KERNEL, {"batch_group_count": 2, "feature_group_count": 3}, "groups do not fit"),
        (IMAGE, KERNEL, {"bias": jnp.ones(3)}, r"\(4,\) or a shape that broadcasts to \(5, 4, 4\)"),
        (IMAGE, KERNEL, {"bias": jnp.ones((2, 5, 4, 4))}, "bias does not fit"),
    ],
)
def test_misfits(x, kernel, options, text):
    with pytest.raises(bp.OperandError, match=text):
        bp.conv(x, kernel, **({"dimension_numbers": LAYOUT} | options))


WINDOWS = {
    "plain": {},
    "strides": {"strides": 2, "padding": "VALID"},
    "strides that leave a rest": {"strides": (2, 3)[:1], "padding": ((1, 2),)},
    "same with strides": {"strides": 3, "padding": "SAME"},
    "same lower": {"strides": 2, "padding": "SAME_LOWER"},
    "cropped": {"padding": ((-1, 0),)},
    "dilated kernel": {"rhs_dilation": 2, "padding": ((2, 1),)},
    "dilated input": {"lhs_dilation": 2, "padding": ((1, 0),), "strides": 3},
    "channel groups": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": 4, "strides": 2},
    "batch groups": {"batch_group_count": 2, "strides": 2},
}
LAYOUTS = {
    "1d last": ("NWC", "WIO", "NWC"),
    "2d first": ("NCHW", "OIHW", "NCHW"),
    "2d odd": ("HNCW", "IWOH", "WHCN"),
    "3d last": ("NDHWC", "DHWIO", "NDHWC"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_the_gradient_of_a_window_is_that_of_reverse_mode(options, layout):
    spatial = len(layout[0]) - 2
    options = options | {"dimension_numbers": layout}
    if isinstance(options.get("padding"), tuple):
        options["padding"] = options["padding"] * spatial
    groups = options.get("feature_group_count", 1)
    sizes = dict(zip("DHW", (5, 6, 4), strict=True)), dict(zip("DHW", (1, 3, 2), strict=True))
    xs = normal(3, *(({"N": 4, "C": 4} | sizes[0])[c] for c in layout[0]))
    kernel = normal(*(({"I": 4 // groups, "O": 8} | sizes[1])[c] for c in layout[1]))
    bias = normal(8)
    (eqn,) = (e for e in jax.make_jaxpr(lambda x: bp.conv(x, kernel, bias, **options))(xs[0]).eqns if "conv" in str(e))
    rule, params = bp.get_primitive_spec(eqn.primitive).trace_rule, eqn.params
    xs = jnp.moveaxis(xs, layout[0].index("N") + 1, 1)
    weights = {"weight": kernel, "bias": normal(*eqn.invars[2].aval.shape)}
    gs = normal(3, *eqn.outvars[0].aval.shape)
    want = jax.vjp(lambda w: jax.vmap(lambda x: rule.fn(x, w, params))(xs), weights)[1](gs)[0]
    got = rule.pullback(xs, weights, gs, params)
    for name, w in weights.items():
        assert jnp.allclose(got[name], want[name], rtol=1e-4, atol=1e-4), name
        assert jnp.abs(got[name]).max() > 0.1 * jnp.sqrt(gs.size / w.size)


def test_the_gradient_of_a_window_of_single_and_mapped_samples():
    params = jax.make_jaxpr(lambda x: bp.conv(x, KERNEL, dimension_numbers=LAYOUT))(IMAGE).eqns[0].params
    rule = bp.get_primitive_spec(bp.etp_conv_p).trace_rule
    xs, gs, weights = normal(3, 5, 2, 5, 4, 3), normal(3, 5, 2, 5, 4, 4), {"weight": KERNEL}
    want = rule.pullback(xs.reshape(15, 2, 5, 4, 3), weights, gs.reshape(15, 2, 5, 4, 4), params)["weight"]
    single = rule.pullback(xs.reshape(30, 5, 4, 3), weights, gs.reshape(30, 5, 4, 4), params)["weight"]
    mapped = rule.pullback(xs, weights, gs, params)["weight"]
    assert jnp.allclose(mapped, want, atol=1e-4)
    assert jnp.allclose(single, want, atol=1e-4)
    assert rule.pullback(xs[:, :, :0], weights, gs[:, :, :0], params)["weight"].tolist() == (0 * KERNEL).tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2, "feature_group_count": 2}, {"lhs_dilation": 2, "padding": 1}, {"batch_group_count": 2}],
    ids=str,
)
def test_derivatives_of_all_orders_and_of_copies_are_those_of_jax(options):
    groups = options.get("feature_group_count", 1)
    x, kernel, tangent = normal(2, 4, 3, 2), normal(2, 2, 2 // groups, 2), normal(2, 2, 2 // groups, 2) + 1
    (eqn,) = jax.make_jaxpr(lambda *pair: bp.conv(*pair, dimension_numbers=LAYOUT, **options))(x, kernel).eqns

    def energy(convolve):
        return lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel, **eqn.params)))

    def derivatives(energy):
        gradient = jax.grad(energy, (0, 1))
        norm = jax.grad(lambda x, kernel: sum(jnp.sum(g**3) for g in gradient(x, kernel)), (0, 1))
        along = jax.jvp(lambda kernel: gradient(x, kernel), (kernel,), (tangent,))[1]
        copies = jax.vmap(gradient, (0, None))(jnp.stack([x, x + 1]), kernel)
        both = jax.vmap(gradient)(jnp.stack([x, x + 1]), jnp.stack([kernel, tangent]))
        return gradient(x, kernel), norm(x, kernel), along, copies, both

    got, want = jax.jit(lambda: [derivatives(energy(f)) for f in (bp.etp_conv_p.bind, bp.etp_conv_p.evaluate)])()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, want)


def test_reverse_mode_takes_the_gradient_of_the_kernel_as_windows_do():
    """XLA's own is up to a hundred times slower inside a loop on CPU."""

    def convolutions(f):
        text = jax.jit(jax.grad(lambda kernel: jnp.sum(f(IMAGE, kernel) ** 2))).lower(KERNEL).as_text()
        return [line.split("dim_numbers = ")[1].split(",")[0] for line in text.splitlines() if "convolution" in line]

    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    ours, theirs = (convolutions(functools.partial(f, dimension_numbers=LAYOUT)) for f in (bp.conv, plain))
    assert ours[0] == theirs[0]
    assert ours[1:] != theirs[1:]


def test_an_infinite_input_reaches_the_traces_of_its_neighbourhood_alone():
    (eqn,) = jax.make_jaxpr(lambda x, k: bp.conv(x, k, dimension_numbers=LAYOUT))(IMAGE, KERNEL).eqns
    rule, weights = bp.get_primitive_spec(bp.etp_conv_p).trace_rule, {"weight": KERNEL}
    factors = jnp.ones((1, 1, *eqn.outvars[0].aval.shape))
    trace = rule.accumulate(IMAGE.at[0, 0, 0, 0].set(jnp.inf)[None], factors, weights, eqn.params)["weight"]
    finite = rule.accumulate(IMAGE[None], factors, weights, eqn.params)["weight"]
    apart = jnp.isinf(trace)
    assert not jnp.isnan(trace).any()
    assert int(apart.sum()) == 2 * 4  # the rows -1 ... 1 of the kernel, columns 0 and 1: two of them see the corner
    assert jnp.array_equal(jnp.where(apart, 0, trace), jnp.where(apart, 0, finite))
