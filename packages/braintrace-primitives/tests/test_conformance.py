"""Every family goes through the public conformance check; broken primitives do not pass it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import conv_dimension_numbers

import braintrace_primitives as bp
from braintrace_primitives.testing import ConformanceError, check_primitive, draw

BIAS, NO_BIAS = {"has_bias": True}, {"has_bias": False}
PATTERN = bp.SparsityPattern.from_dense(np.random.default_rng(0).random((5, 4)) < 0.4)
THIN_PATTERN = bp.SparsityPattern([0, 3, 3], [1, 1, 0], (20, 16))


def normal(*shapes, dtype=jnp.float32):
    return tuple(draw(shape, dtype, seed) for seed, shape in enumerate(shapes))


def window(layout, strides=1, padding="SAME", lhs=1, rhs=1, features=1, batches=1, has_bias=True):
    spatial = len(layout[0]) - 2
    return {
        "strides": (strides,) * spatial,
        "padding": padding,
        "lhs_dilation": (lhs,) * spatial,
        "rhs_dilation": (rhs,) * spatial,
        "feature_group_count": features,
        "batch_group_count": batches,
        "dimension_numbers": conv_dimension_numbers(*((1,) * len(layout[0]),) * 2, layout),
        "has_bias": has_bias,
    }


GROUPED, BATCH_GROUPED = "conv1d, one sample, groups, strides, dilation", "conv2d, batch groups"
CASES = {
    "mm": (bp.etp_mm_p, normal((2, 3), (3, 4), (4,)), BIAS),
    "mm, two leading axes": (bp.etp_mm_p, normal((2, 3, 2), (2, 3)), NO_BIAS),
    "mm, size one": (bp.etp_mm_p, normal((1, 1), (1, 1), (1,)), BIAS),
    "mm, no sample": (bp.etp_mm_p, normal((0, 3), (3, 2), (2,)), BIAS),
    "mm, no input": (bp.etp_mm_p, normal((2, 0), (0, 2), (2,)), BIAS),
    "mv": (bp.etp_mv_p, normal((3,), (3, 4)), NO_BIAS),
    "elemwise": (bp.etp_elemwise_p, normal((3, 2)), {}),
    "gmm": (bp.etp_gmm_p, normal((2, 3, 2), (3, 2, 4), (3, 4)), BIAS),
    "gmv": (bp.etp_gmv_p, normal((3, 2), (3, 2, 4)), NO_BIAS),
    "einsum, heads": (bp.etp_einsum_p, normal((2, 3, 2), (3, 2, 4)), {"equation": ("bhi", "hio", "bho")}),
    "einsum, summed weight axis": (bp.etp_einsum_p, normal((2, 3), (3, 4, 2)), {"equation": ("bi", "iok", "ob")}),
    "einsum, shared axis": (bp.etp_einsum_p, normal((2, 3, 3), (3, 4)), {"equation": ("bti", "io", "bto")}),
    "emb": (bp.etp_emb_p, (jnp.array([[2, 0, 2], [1, -1, 0]]), *normal((4, 3))), {}),
    "emb_v": (bp.etp_emb_v_p, (jnp.array(2), *normal((4, 3))), {}),
    "sp_mm": (bp.etp_sp_mm_p, normal((2, 5), (PATTERN.nnz,), (4,)), {"sparse_mat": PATTERN, **BIAS}),
    "sp_mv, thin": (bp.etp_sp_mv_p, normal((20,), (3,)), {"sparse_mat": THIN_PATTERN, **NO_BIAS}),
    "lora_mm": (bp.etp_lora_mm_p, normal((2, 5), (5, 2), (2, 4), (4,)), {"alpha": 0.5, "carry_b": True, **BIAS}),
    "lora_mv": (bp.etp_lora_mv_p, normal((5,), (5, 2), (2, 4)), {"alpha": 2.0, "carry_b": True, **NO_BIAS}),
    "conv1d": (bp.etp_conv_p, normal((2, 5, 3), (3, 3, 4), (1, 4)), window(("NWC", "WIO", "NWC"))),
    GROUPED: (
        bp.etp_conv_p,
        normal((4, 7), (6, 2, 3)),
        window(("NCW", "OIW", "NCW"), 2, ((1, 2),), rhs=2, features=2, has_bias=False),
    ),
    BATCH_GROUPED: (
        bp.etp_conv_p,
        normal((4, 3, 3, 2), (2, 2, 2, 4), (4,)),
        window(("NHWC", "HWIO", "NHWC"), padding=((0, 0),) * 2, batches=2),
    ),
    "conv2d, places in another order": (
        bp.etp_conv_p,
        normal((2, 3, 4, 2), (3, 2, 2, 3)),
        window(("NHWC", "WHIO", "NHCW"), padding=((1, 0), (2, 1)), has_bias=False),
    ),
    "conv3d, layout changed, dilated input": (
        bp.etp_conv_p,
        normal((1, 2, 2, 2, 2), (2, 2, 2, 2, 1), (1, 1, 1, 1)),
        window(("NCDHW", "OIDHW", "NDHWC"), padding=((0, 0),) * 3, lhs=2),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_family_conforms(case):
    primitive, operands, params = CASES[case]
    assert max(check_primitive(primitive, *operands, **params).values()) < 1e-5


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("mm", jnp.float16),
        ("mm", jnp.bfloat16),
        ("mm", jnp.complex64),
        ("sp_mm", jnp.bfloat16),
        ("lora_mm", jnp.complex64),
        ("conv1d", jnp.float16),
        ("conv1d", jnp.complex64),
        ("emb", jnp.bfloat16),
    ],
)
def test_family_conforms_in_other_precisions(case, dtype):
    primitive, operands, params = CASES[case]
    operands = [o.astype(dtype) if jnp.issubdtype(o.dtype, jnp.inexact) else o for o in operands]
    check_primitive(primitive, *operands, **params)


@pytest.mark.parametrize("case", ["lora_mm", "conv1d"])
def test_family_conforms_in_double_precision(case):
    primitive, operands, params = CASES[case]
    with jax.enable_x64(True):
        deviations = check_primitive(primitive, *(o.astype(jnp.float64) for o in operands), **params)
    assert max(deviations.values()) < 1e-13


@pytest.mark.parametrize(
    "dtypes",
    [
        (jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.float32),
        (jnp.complex64, jnp.float32, jnp.float32),
        (jnp.float32, jnp.complex64, jnp.float32),
    ],
)
def test_dense_conforms_with_mixed_dtypes(dtypes):
    operands = [o.astype(dtype) for o, dtype in zip(CASES["mm"][1], dtypes, strict=True)]
    check_primitive(bp.etp_mm_p, *operands, **BIAS)


def test_single_state_and_single_step():
    primitive, operands, params = CASES["conv1d"]
    check_primitive(primitive, *operands, num_states=1, num_steps=1, **params)


@pytest.mark.parametrize("case", ["elemwise", "einsum, shared axis", "emb", "sp_mm", "lora_mm"])
def test_second_derivatives_are_those_of_plain_jax(case):
    primitive, operands, params = CASES[case]
    places = [i for i, o in enumerate(operands) if jnp.issubdtype(o.dtype, jnp.inexact)]
    start = {i: operands[i] for i in places}

    def second(f):
        def energy(moved):
            return jnp.sum(jnp.sin(f(*(moved.get(i, o) for i, o in enumerate(operands)), **params)))

        gradient = jax.grad(energy)
        norm = jax.grad(lambda moved: sum(jnp.sum(g**3) for g in gradient(moved).values()))
        return norm(start), jax.jvp(gradient, (start,), (start,))[1]

    got, want = jax.jit(lambda: (second(primitive.bind), second(primitive.evaluate)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), got, want)


class WrongDecay(bp.GenericTraceRule):
    def decay(self, trace, blocks, params):
        return trace


class WrongScale(bp.GenericTraceRule):
    def contract(self, trace, signal, weights, params):
        return {name: 2 * value for name, value in super().contract(trace, signal, weights, params).items()}


class WrongPullback(bp.GenericTraceRule):
    def pullback(self, xs, weights, gs, params):
        return super().pullback(xs[:1], weights, gs[:1], params)


class WrongLayout(bp.GenericTraceRule):
    def init(self, *abstract):
        return {name: zeros[..., None] for name, zeros in super().init(*abstract).items()}


class WrongSize(bp.GenericTraceRule):
    def trace_size(self, *abstract):
        return 0


@pytest.mark.parametrize("rule", [WrongDecay, WrongScale, WrongPullback, WrongLayout, WrongSize])
def test_a_wrong_trace_rule_is_found(rule):
    primitive = bp.register_primitive(f"test_{rule.__name__}", lambda x, weight: x * weight, trace_rule=rule)
    with pytest.raises(ConformanceError):
        check_primitive(primitive, jnp.arange(3.0), jnp.ones(3))


def test_a_wrong_batching_is_found():
    mapped = bp.register_primitive("test_mapped", lambda x, weight: 2 * x * weight, leading_axes=True)
    primitive = bp.register_primitive("test_unmapped", lambda x, weight: x * weight, batched_form=mapped)
    with pytest.raises(ConformanceError, match="vmap over operands"):
        check_primitive(primitive, jnp.arange(3.0), jnp.ones(3))


def test_a_function_that_is_not_linear_is_found():
    primitive = bp.register_primitive("test_cubic", lambda x, weight: x * weight**3)
    with pytest.raises(ConformanceError, match="not linear in weight"):
        check_primitive(primitive, jnp.arange(3.0), jnp.ones(3))


def test_a_hidden_nonlinearity_is_found():
    primitive = bp.register_primitive("test_saturating", lambda x, weight: x * jnp.where(weight > 0.5, 0.5, weight))
    with pytest.raises(ConformanceError, match=r"derivative along weight|not linear"):
        check_primitive(primitive, jnp.arange(3.0), jnp.ones(3))


def test_deviation_beyond_the_tolerance_is_found():
    primitive, operands, params = CASES["mm"]
    with pytest.raises(ConformanceError, match="relative deviation"):
        check_primitive(primitive, *operands, tolerance=0.0, **params)


COPIED = ["emb", "emb_v", "sp_mm", "lora_mm", "lora_mv", "conv1d", GROUPED, BATCH_GROUPED]


@pytest.mark.parametrize(
    ("case", "axes"),
    [
        *itertools.product(COPIED, [(None, 0, None), (-1, 1, 0)]),
        *((case, (None, None, 0)) for case in ("sp_mm", "lora_mm", "conv1d", BATCH_GROUPED)),
    ],
)
def test_copies_of_a_weight_keep_their_mark(case, axes):
    primitive, operands, params = CASES[case]
    names = [None, *bp.get_primitive_spec(primitive).trainable_invars(params)]
    axes = [axes[(name is not None) + (name == "bias")] for name in names]
    copies = [a if i is None else jnp.stack([a, -a - 1, a + 1], i) for a, i in zip(operands, axes, strict=True)]

    @jax.jit
    def both(*copies):
        return [jax.vmap(lambda *o, f=f: f(*o, **params), axes)(*copies) for f in (primitive.bind, primitive.evaluate)]

    got, plain = both(*copies)
    assert np.allclose(got, plain, 1e-4, 1e-5)
    assert any(bp.is_etp_primitive(e.primitive) for e in jax.make_jaxpr(both)(*copies).eqns[0].params["jaxpr"].eqns)
