import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_primitives as bp
from braintrace_primitives import _trace_rule
from braintrace_primitives._trace_rule import TraceRule, cast_like, mix, sum_leading
from braintrace_primitives.testing import draw

PARAMS = {"has_bias": True}
RULE = bp.get_primitive_spec(bp.etp_mm_p).trace_rule
WEIGHTS = {"weight": draw((3, 4), jnp.float32), "bias": draw((4,), jnp.float32)}
XS, FACTORS = draw((6, 2, 3), jnp.float32), draw((6, 2, 2, 4), jnp.float32)


def normal(*shape):
    return draw(shape, jnp.float32)


def test_trace_follows_its_recursion_step_by_step():
    blocks, signal = normal(6, 2, 2, 2, 4), normal(2, 2, 4)
    trace = np.zeros((2, 2, 3, 4))
    for d, f, x in zip(*map(np.asarray, (blocks, FACTORS, XS)), strict=True):
        trace = np.einsum("srbo,rbio->sbio", d, trace) + np.einsum("sbo,bi->sbio", f, x)
    want = np.einsum("sbo,sbio->io", signal, trace)

    abstract = jax.ShapeDtypeStruct((2, 3), jnp.float32), WEIGHTS, jax.ShapeDtypeStruct((2, 4), jnp.float32)
    carried = RULE.init(*abstract, 2, PARAMS, jnp.float32)
    assert RULE.trace_size(*abstract, 2, PARAMS) == 2 * 2 * 3 * 4 + 2 * 2 * 4

    @jax.jit
    def step(trace, x, factor, block):
        added = RULE.accumulate(x[None], factor[None], WEIGHTS, PARAMS)
        return jax.tree.map(jnp.add, RULE.decay(trace, block, PARAMS), added)

    for x, factor, block in zip(XS, FACTORS, blocks, strict=True):
        carried = step(carried, x, factor, block)
    got = RULE.contract(carried, signal, WEIGHTS, PARAMS)["weight"]
    assert np.allclose(got, want, rtol=1e-4, atol=1e-4)


def count_dots(function, *args):
    return jax.jit(function).lower(*args).as_text().count("stablehlo.dot_general")


def test_a_window_is_one_contraction_over_time_and_batch():
    pullback = lambda rule: lambda xs, gs: rule.pullback(xs, WEIGHTS, gs, PARAMS)  # noqa: E731
    for rule in (RULE, bp.GenericTraceRule(RULE.fn)):
        assert count_dots(pullback(rule), XS, FACTORS[:, 0]) == 1
    matrix = {"weight": WEIGHTS["weight"]}
    assert count_dots(lambda xs, fs: RULE.accumulate(xs, fs, matrix, PARAMS), XS, FACTORS) == FACTORS.shape[1]


def test_transposing_the_weight_is_one_contraction():
    gradient = lambda x, g: jax.linear_transpose(lambda w: bp.matmul(x, w), WEIGHTS["weight"])(g)  # noqa: E731
    x, g = normal(2, 5, 3), normal(2, 5, 4)
    assert count_dots(gradient, x, g) == 1
    assert jnp.allclose(gradient(x, g)[0], jnp.einsum("abi,abo->io", x, g), atol=1e-5)


def test_the_dense_forward_pass_lowers_to_the_same_program():
    def lowered(function):
        return jax.jit(function).lower(XS[0], *WEIGHTS.values()).as_text().split("\n", 1)[1]

    assert lowered(lambda x, w, b: bp.matmul(x, w, b)) == lowered(lambda x, w, b: x @ w + b)


def test_low_precision_weights_keep_a_precise_trace():
    weights = jax.tree.map(lambda w: w.astype(jnp.bfloat16), WEIGHTS)
    for rule in (RULE, bp.GenericTraceRule(RULE.fn)):
        trace = rule.accumulate(XS, FACTORS, weights, PARAMS)
        assert {leaf.dtype for leaf in jax.tree.leaves(trace)} == {jnp.dtype(jnp.float32)}
        grads = rule.contract(trace, FACTORS[0], weights, PARAMS)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def test_decay_keeps_the_precision_of_the_trace():
    trace = {"weight": jnp.ones((2, 2, 3, 4), jnp.bfloat16), "bias": jnp.ones((2, 2, 4), jnp.bfloat16)}
    decayed = RULE.decay(trace, normal(2, 2, 2, 4), PARAMS)
    assert {leaf.dtype for leaf in jax.tree.leaves(decayed)} == {jnp.dtype(jnp.bfloat16)}


def test_broadcast_output_is_traced_per_position():
    rule = bp.get_primitive_spec(bp.etp_elemwise_p).trace_rule.expanded(jnp.array([[0, 0, -1], [1, 1, 0]]))
    weights = {"weight": jnp.array([2.0, 3.0])}
    factors, signal = normal(4, 1, 2, 3).at[:, :, 0, 2].set(0), normal(1, 2, 3)
    trace = rule.accumulate(None, factors, weights, {})
    sensitivity = (signal * factors.sum(0))[0]
    want = [sensitivity[0, :2].sum() + sensitivity[1, 2], sensitivity[1, :2].sum()]
    assert jnp.allclose(rule.contract(trace, signal, weights, {})["weight"], jnp.array(want), atol=1e-5)
    generic = bp.GenericTraceRule(rule.fn)
    reference = generic.accumulate(None, factors, weights, {})
    assert jnp.allclose(generic.contract(reference, signal, weights, {})["weight"], jnp.array(want), atol=1e-5)


def test_helpers():
    assert jnp.allclose(mix(normal(2, 3, 5), normal(3, 5)), jnp.einsum("srj,rj->sj", normal(2, 3, 5), normal(3, 5)))
    assert jnp.allclose(sum_leading(normal(2, 3, 5), 2), normal(2, 3, 5).sum((0, 1)), atol=1e-6)
    assert jnp.allclose(sum_leading(normal(2, 3), 0), normal(2, 3))
    real = cast_like(jnp.array([1 + 2j]), jnp.zeros(1, jnp.float16))
    assert (real.dtype, real.tolist()) == (jnp.float16, [1.0])


def _vmapped_twice(function):
    return jax.jit(jax.vmap(jax.vmap(function, (0, None)), (0, None)))


# Where the sums in question are plain ones, jaxlib 0.10.2 has these tests fail on CPU: see `over_states`.
MANY, FEW = normal(5, 7, 2, 2, 3, 8, 8), normal(2, 2, 3, 8, 8)
WANTED = (np.asarray(MANY, float) * np.asarray(FEW, float)).sum(2)
BIAS = {"weight": jnp.ones((8, 8)), "bias": jnp.ones(8)}
LORA = {"has_bias": True, "alpha": 1.0, "carry_b": True}
DIAGONAL = bp.SparsityPattern(range(8), range(8), (8, 8))
POINTWISE = {
    "has_bias": True,
    "strides": (1, 1),
    "padding": "SAME",
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "feature_group_count": 1,
    "batch_group_count": 1,
    "dimension_numbers": jax.lax.conv_dimension_numbers((1, 3, 8, 8), (1, 1, 8, 8), ("NHWC", "HWIO", "NHWC")),
}


@pytest.mark.parametrize(
    ("primitive", "weights", "params"),
    [
        (bp.etp_elemwise_p, {"weight": jnp.ones((3, 8, 8))}, {}),
        (bp.etp_mm_p, BIAS, PARAMS),
        (bp.etp_lora_mm_p, {"B": jnp.ones((8, 1)), "A": jnp.ones((1, 8)), "bias": jnp.ones(8)}, LORA),
        (bp.etp_sp_mm_p, {"weight": jnp.ones(8), "bias": jnp.ones(8)}, {"has_bias": True, "sparse_mat": DIAGONAL}),
        (bp.etp_conv_p, {"weight": jnp.ones((1, 1, 8, 8)), "bias": jnp.ones(8)}, POINTWISE),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_steps_are_summed_whatever_the_number_of_axes(primitive, weights, params):
    rule = bp.get_primitive_spec(primitive).trace_rule

    def last(many, few):
        trace = rule.accumulate(jnp.ones((2, 3, 8, 8)), many * few, weights, params)
        return trace["bias" if "bias" in trace else "weight"]

    assert np.allclose(_vmapped_twice(last)(MANY, FEW), WANTED, atol=1e-4)


def test_an_operation_of_one_s_own_is_summed_whatever_the_number_of_axes():
    """With jaxlib 0.10.2 sums over all axes at once end in a segmentation fault on CPU."""
    rule, weights = bp.GenericTraceRule(lambda x, weights, params: x * weights["gain"]), {"gain": jnp.ones((2, 3))}
    xs, factors = normal(4, 7, 5, 2, 3), normal(4, 7, 5, 2, 2, 3)
    added = jax.vmap(jax.vmap(lambda xs, factors: rule.accumulate(xs, factors, weights, {})["gain"]))
    want = np.einsum("abtij,abtsij,ik,jl->absijkl", xs, factors, np.eye(2), np.eye(3))
    assert np.allclose(jax.jit(added)(xs, factors), want, atol=1e-4)


def test_states_are_summed_whatever_the_number_of_axes():
    rule, weights = bp.get_primitive_spec(bp.etp_elemwise_p).trace_rule, {"weight": jnp.ones((2, 3, 8, 8))}

    def total(trace, signal):
        return rule.contract({"weight": trace}, signal, weights, {})["weight"]

    assert np.allclose(_vmapped_twice(total)(MANY, FEW), WANTED, atol=1e-4)


def test_the_bare_rule_leaves_the_trace_to_its_subclasses():
    rule = TraceRule(lambda x, weights, params: x * weights["weight"])
    assert (
        rule.pullback(jnp.ones((2, 3)), {"weight": jnp.ones(3)}, jnp.ones((2, 3)), {})["weight"].tolist() == [2.0] * 3
    )
    for method, count in ((rule.init, 6), (rule.accumulate, 4), (rule.decay, 3), (rule.contract, 4)):
        with pytest.raises(NotImplementedError):
            method(*[None] * count)


def temporaries_of_turns(weights, trace, xs, factors, signal, blocks):
    """Bytes that XLA needs besides what it is given, to fold windows into a trace again and again."""

    def window(held, steps):
        trace, total = held
        gradient, trace = RULE.turn(trace, signal, blocks, *steps, weights, PARAMS)
        return (trace, jax.tree.map(jnp.add, total, gradient)), None

    folded = jax.jit(lambda trace, xs, factors: jax.lax.scan(window, (trace, weights), (xs, factors))[0])
    return folded.lower(trace, xs, factors).compile().memory_analysis().temp_size_in_bytes


def test_a_large_trace_is_not_copied(monkeypatch):
    n, I, O, K = 8, 64, 160, 8
    weights = {"weight": jnp.ones((I, O)), "bias": jnp.ones(O)}
    trace = {"weight": jnp.ones((1, n, I, O)), "bias": jnp.ones((1, n, O))}
    xs, factors = jnp.ones((2, K, n, I)), jnp.ones((2, K, 1, n, O))
    operands = weights, trace, xs, factors, jnp.ones((1, n, O)), jnp.ones((1, 1, n, O))
    in_place = temporaries_of_turns(*operands)
    monkeypatch.setattr(_trace_rule, "_LARGE", 2**40)
    copied = temporaries_of_turns(*operands)
    assert copied - in_place > 0.8 * trace["weight"].nbytes


def test_a_rule_without_one_of_its_methods_names_it():
    class Half(TraceRule):
        pass

    rule, x = Half(lambda x, weights, params: x * weights["gain"]), jnp.ones(3)
    calls = {
        "init": lambda: rule.init(x, {}, x, 1, {}, x.dtype),
        "accumulate": lambda: rule.accumulate(x, x, {}, {}),
        "decay": lambda: rule.decay({}, x, {}),
        "contract": lambda: rule.contract({}, x, {}, {}),
    }
    for method, call in calls.items():
        with pytest.raises(NotImplementedError, match=f"Half has no `{method}`"):
            call()
