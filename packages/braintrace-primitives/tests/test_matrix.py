"""Every family in every precision and at empty and size-one axes: values, gradients and trace rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import check_primitive, draw

WAVE, IMAGE = ("NWC", "WIO", "NWC"), ("NCHW", "OIHW", "NCHW")


def pattern(rows, cols, share=0.5):
    return bp.SparsityPattern.from_dense(np.random.default_rng(0).random((rows, cols)) < share)


def sparse(rows, cols, share=0.5):
    matrix = pattern(rows, cols, share)

    def plain(x, data, bias):
        dense = jnp.zeros((rows, cols), data.dtype).at[matrix.rows, matrix.cols].add(data)
        return x @ dense + bias

    marked = lambda x, d, b: bp.sparse_matmul(x, d, sparse_mat=matrix, bias=b)  # noqa: E731
    return marked, plain, (matrix.nnz,), (cols,)


def lora(x, b, a, bias):
    return bp.lora_matmul(x, b, a, alpha=0.5, bias=bias)


def conv(layout, **options):
    window = {"window_strides": (1,), "padding": "SAME"} | options
    marked = {"strides" if k == "window_strides" else k: v for k, v in window.items()}
    spatial = len(layout[0]) - 2
    window["window_strides"] = window["window_strides"] * spatial
    shape = [-1 if c == "C" else 1 for c in layout[2]]

    def plain(x, kernel, bias):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **window) + bias.reshape(shape)

    return lambda x, k, b: bp.conv(x, k, b, dimension_numbers=layout, **marked), plain


def heads(x, w):
    return bp.einsum("bhi,hio->bho", x, w)


def plain_heads(x, w):
    return jnp.einsum("bhi,hio->bho", x, w)


# name: marked operation, the same in plain JAX, shapes of x (None: no input; a list: indices) and of the weights
FAMILIES = {
    "dense": (bp.matmul, lambda x, w, b: x @ w + b, (2, 3), ((3, 4), (4,))),
    "dense, one sample": (bp.matmul, lambda x, w, b: x @ w + b, (3,), ((3, 4), (4,))),
    "elementwise": (bp.element_wise, lambda w: w, None, ((3, 2),)),
    "grouped": (bp.grouped_matmul, lambda x, w, b: plain_heads(x, w) + b, (2, 3, 4), ((3, 4, 2), (3, 2))),
    "einsum": (heads, plain_heads, (2, 3, 4), ((3, 4, 2),)),
    "embedding": (bp.embedding, lambda i, w: w[i], [2, 0, 2], ((4, 3),)),
    "sparse": (*sparse(3, 4)[:2], (2, 3), sparse(3, 4)[2:]),
    "lora": (lora, lambda x, b, a, bias: 0.5 * (x @ b @ a) + bias, (2, 3), ((3, 2), (2, 4), (4,))),
    "conv 1d": (*conv(WAVE), (2, 4, 3), ((3, 3, 2), (2,))),
    "conv 2d, groups": (*conv(IMAGE, window_strides=(2,), feature_group_count=2), (2, 4, 3, 3), ((2, 2, 2, 2), (2,))),
}
DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64, jnp.complex128)


def inputs(shape, dtype):
    if shape is None:
        return ()
    return (jnp.array(shape, jnp.int32),) if isinstance(shape, list) else (draw(shape, dtype, 7),)


def hold(marked, plain, x, weights, tolerance):
    """Value, gradients and trace rule of a marked operation against the plain one."""

    def everything(*operands):
        y, pull = jax.vjp(lambda *w: marked(*operands[: len(x)], *w), *operands[len(x) :])
        want, plain_pull = jax.vjp(lambda *w: plain(*operands[: len(x)], *w), *operands[len(x) :])
        g = draw(y.shape, y.dtype, 3)
        return (y, pull(g)), (want, plain_pull(g)), traced(marked, operands, len(x))

    got, want, (swept, contracted, decayed) = jax.jit(everything)(*x, *weights)
    same(got, want, tolerance)
    same(contracted, swept, tolerance)
    same(decayed, jax.tree.map(lambda leaf: 2 * leaf, contracted), tolerance)
    assert got[0].dtype == want[0].dtype
    assert [g.dtype for g in got[1]] == [w.dtype for w in weights]


def traced(marked, operands, num_inputs):
    """Window gradient; the same through a trace; the same through a trace that a transition doubles."""
    jaxpr = jax.make_jaxpr(marked)(*operands)
    (eqn,) = (e for e in jaxpr.eqns if bp.is_etp_primitive(e.primitive))
    spec, params, y = bp.get_primitive_spec(eqn.primitive), eqn.params, eqn.outvars[0].aval
    positions = spec.trainable_invars(params)
    weights = {name: draw(eqn.invars[i].aval.shape, eqn.invars[i].aval.dtype, i) for name, i in positions.items()}
    xs = jnp.stack([operands[0], jnp.roll(operands[0], 1)]) if num_inputs else None
    factors, signal = draw((2, 2, *y.shape), y.dtype), draw((2, *y.shape), y.dtype, 1)
    rule = spec.trace_rule
    swept = rule.pullback(xs, weights, jnp.einsum("ts...,s...->t...", factors, signal), params)
    trace = rule.accumulate(xs, factors, weights, params)
    abstract = None if xs is None else jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    start = rule.init(abstract, weights, y, 2, params, y.dtype)
    trace = jax.tree.map(jnp.add, start, trace)
    doubled = rule.decay(trace, 2 * jnp.eye(2, dtype=y.dtype).reshape(2, 2, *(1,) * y.ndim) * jnp.ones(y.shape), params)
    return swept, rule.contract(trace, signal, weights, params), rule.contract(doubled, signal, weights, params)


def same(got, want, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
        a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
        assert np.abs(a - b).max(initial=0) <= tolerance * np.abs(b).max(initial=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_precision(family, dtype):
    marked, plain, shape, weights = FAMILIES[family]
    with jax.enable_x64(jnp.finfo(dtype).bits == 64):
        operands = [draw(w, dtype, k) for k, w in enumerate(weights)]
        hold(marked, plain, inputs(shape, dtype), operands, 30 * float(jnp.finfo(dtype).eps))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_conformance(family, dtype):
    marked, _, shape, weights = FAMILIES[family]
    with jax.enable_x64(jnp.finfo(dtype).bits == 64):
        operands = [*inputs(shape, dtype), *(draw(w, dtype, k) for k, w in enumerate(weights))]
        (eqn,) = (e for e in jax.make_jaxpr(marked)(*operands).eqns if bp.is_etp_primitive(e.primitive))
        operands = [o.reshape(v.aval.shape) for o, v in zip(operands, eqn.invars, strict=True)]
        check_primitive(eqn.primitive, *operands, **eqn.params)


def sizes(family, x, *weights):
    return pytest.param(FAMILIES[family][:2], x, weights, id=f"{family} {x} {weights}")


@pytest.mark.parametrize(
    ("functions", "x", "weights"),
    [
        sizes("dense", (0, 3), (3, 4), (4,)),
        sizes("dense", (2, 0), (0, 4), (4,)),
        sizes("dense", (2, 3), (3, 0), (0,)),
        sizes("dense", (1, 1), (1, 1), (1,)),
        sizes("dense, one sample", (0,), (0, 4), (4,)),
        sizes("elementwise", None, (0,)),
        sizes("elementwise", None, (1,)),
        sizes("elementwise", None, ()),
        sizes("grouped", (0, 3, 4), (3, 4, 2), (3, 2)),
        sizes("grouped", (2, 0, 4), (0, 4, 2), (0, 2)),
        sizes("grouped", (2, 3, 0), (3, 0, 2), (3, 2)),
        sizes("grouped", (2, 3, 4), (3, 4, 0), (3, 0)),
        sizes("grouped", (1, 1, 1), (1, 1, 1), (1, 1)),
        sizes("einsum", (0, 3, 4), (3, 4, 2)),
        sizes("einsum", (2, 0, 4), (0, 4, 2)),
        sizes("einsum", (2, 3, 0), (3, 0, 2)),
        sizes("einsum", (2, 3, 4), (3, 4, 0)),
        sizes("einsum", (1, 1, 1), (1, 1, 1)),
        sizes("embedding", [], (4, 3)),
        sizes("embedding", [2, 0, 2], (4, 0)),
        sizes("embedding", [0], (1, 1)),
        pytest.param(sparse(3, 4)[:2], (0, 3), sparse(3, 4)[2:], id="sparse, no sample"),
        pytest.param(sparse(3, 4, 0)[:2], (2, 3), sparse(3, 4, 0)[2:], id="sparse, no entry"),
        pytest.param(sparse(0, 4)[:2], (2, 0), sparse(0, 4)[2:], id="sparse, no input"),
        pytest.param(sparse(3, 0)[:2], (2, 3), sparse(3, 0)[2:], id="sparse, no output"),
        pytest.param(sparse(1, 1, 1)[:2], (1, 1), sparse(1, 1, 1)[2:], id="sparse, size one"),
        sizes("lora", (0, 3), (3, 2), (2, 4), (4,)),
        sizes("lora", (2, 0), (0, 2), (2, 4), (4,)),
        sizes("lora", (2, 3), (3, 0), (0, 4), (4,)),
        sizes("lora", (2, 3), (3, 2), (2, 0), (0,)),
        sizes("lora", (1, 1), (1, 1), (1, 1), (1,)),
        sizes("conv 1d", (0, 4, 3), (3, 3, 2), (2,)),
        sizes("conv 1d", (2, 0, 3), (3, 3, 2), (2,)),
        sizes("conv 1d", (2, 4, 0), (3, 0, 2), (2,)),
        sizes("conv 1d", (2, 4, 3), (3, 3, 0), (0,)),
        sizes("conv 1d", (1, 1, 1), (1, 1, 1), (1,)),
        sizes("conv 2d, groups", (0, 4, 3, 3), (2, 2, 2, 2), (2,)),
        sizes("conv 2d, groups", (1, 2, 1, 1), (2, 1, 1, 1), (2,)),
    ],
)
def test_empty_and_size_one_axes(functions, x, weights):
    hold(*functions, inputs(x, jnp.float32), [draw(w, jnp.float32, k) for k, w in enumerate(weights)], 1e-5)


def test_a_window_of_no_steps_adds_nothing():
    for name in ("dense", "grouped", "einsum", "embedding", "sparse", "lora", "conv 1d", "conv 2d, groups"):
        marked, _, shape, weights = FAMILIES[name]
        operands = *inputs(shape, jnp.float32), *(draw(w, jnp.float32) for w in weights)
        (eqn,) = (e for e in jax.make_jaxpr(marked)(*operands).eqns if bp.is_etp_primitive(e.primitive))
        spec, y = bp.get_primitive_spec(eqn.primitive), eqn.outvars[0].aval
        positions = spec.trainable_invars(eqn.params)
        named = {key: jnp.ones(eqn.invars[i].aval.shape) for key, i in positions.items()}
        xs = jnp.zeros((0, *operands[0].shape), operands[0].dtype)
        swept = spec.trace_rule.pullback(xs, named, jnp.zeros((0, *y.shape)), eqn.params)
        trace = spec.trace_rule.accumulate(xs, jnp.zeros((0, 2, *y.shape)), named, eqn.params)
        assert not any(leaf.any() for leaf in jax.tree.leaves((swept, trace))), name
        assert {k: g.shape for k, g in swept.items()} == {k: w.shape for k, w in named.items()}
