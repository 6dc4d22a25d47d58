import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_primitives as bp
from braintrace_primitives import _rows
from braintrace_primitives._precision import BITS, widened
from braintrace_primitives._trace_rule import unpacked
from braintrace_primitives.testing import draw

CASES = {
    "dense with bias": (bp.etp_mm_p, {"has_bias": True}, (5, 3), {"weight": (3, 4), "bias": (4,)}, (5, 4)),
    "two leading axes": (bp.etp_mm_p, {"has_bias": False}, (2, 3, 3), {"weight": (3, 4)}, (2, 3, 4)),
    "grouped": (bp.etp_gmm_p, {"has_bias": False}, (5, 2, 3), {"weight": (2, 3, 4)}, (5, 2, 4)),
}


def einsum_case():
    """Free axes of y in another order, an axis of x that is summed, and one of the weight."""
    x, w = draw((2, 5, 3, 6), jnp.float32), draw((3, 4, 7), jnp.float32)
    eqn = jax.make_jaxpr(lambda x, w: bp.einsum("abix,iov->boa", x, w))(x, w).eqns[0]
    return eqn.primitive, eqn.params, x.shape, {"weight": w.shape}, eqn.outvars[0].aval.shape


def problem(name, states, steps, dtype=jnp.float32):
    primitive, params, x, weights, y = einsum_case() if name == "einsum" else CASES[name]
    rule = bp.get_primitive_spec(primitive).trace_rule
    weights = {n: draw(shape, jnp.float32) for n, shape in weights.items()}
    abstract = jax.ShapeDtypeStruct(x, jnp.float32), weights, jax.ShapeDtypeStruct(y, jnp.float32)
    trace = jax.tree.map(lambda v: draw(v.shape, dtype), rule.init(*abstract, states, params, dtype))
    shapes = (states, *y), (states, states, *y), (steps, *x), (steps, states, *y)
    operands = trace, *(draw(shape, dtype) for shape in shapes)
    trace, signal, *window = operands

    def contract(trace, signal):
        return rule.contract(trace, signal, weights, params)

    def advance(trace, *window):
        return rule.advance_in_place(trace, *window, weights, params)

    return (contract, trace, signal), (advance, trace, *window)


@pytest.mark.parametrize(
    ("name", "states", "steps", "dtype"),
    [
        ("dense with bias", 1, 2, "float32"),
        ("dense with bias", 3, 2, "float32"),
        ("two leading axes", 2, 1, "float32"),
        ("grouped", 2, 1, "float32"),
        ("einsum", 2, 3, "float32"),
        ("dense with bias", 2, 1, "complex64"),
    ],
)
def test_by_rows_as_in_whole(name, states, steps, dtype, monkeypatch):
    for function, *operands in problem(name, states, steps, jnp.dtype(dtype)):
        monkeypatch.undo()
        expected = function(*operands)
        monkeypatch.setattr(_rows, "_LEAST", 1)
        loops = function.__name__ == "contract" or states > 1
        assert ("scan[" in str(jax.make_jaxpr(function)(*operands))) is loops
        found = jax.jit(function)(*operands)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def in_half_precision(rule_of, trace):
    """The trace rounded to bfloat16, as numbers and as `packed` gives it, and in single precision."""
    rounded = jax.tree.map(lambda v: v.astype(jnp.bfloat16), trace)
    packed = rule_of.packed(rounded)
    assert packed["weight"].dtype == BITS
    jax.tree.map(np.testing.assert_array_equal, unpacked(packed, rounded), rounded)
    return rounded, packed, jax.tree.map(lambda v: v.astype(jnp.float32), rounded)


@pytest.mark.parametrize("least", [1, 2**40], ids=["by rows", "in whole"])
@pytest.mark.parametrize(
    ("name", "states", "steps"), [("dense with bias", 1, 2), ("dense with bias", 3, 2), ("einsum", 2, 3)]
)
def test_half_precision_is_rounded_where_it_is_kept_and_nowhere_else(name, states, steps, least, monkeypatch):
    monkeypatch.setattr(_rows, "_LEAST", least)
    (contract, trace, signal), (advance, _, *window) = problem(name, states, steps)
    primitive = einsum_case()[0] if name == "einsum" else CASES[name][0]
    *kept, wide = in_half_precision(bp.get_primitive_spec(primitive).trace_rule, trace)
    gradient = contract(wide, signal)
    expected = jax.tree.map(lambda v: v.astype(jnp.bfloat16).astype(jnp.float32), advance(wide, *window))
    for held in kept:
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, jax.jit(contract)(held, signal), gradient)
        new = jax.jit(advance)(held, *window)
        assert jax.tree.map(lambda v: v.dtype, new) == jax.tree.map(lambda v: v.dtype, held)
        found = jax.tree.map(widened, new)
        # A last bit may differ where a sum in another order lies between two numbers.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2.0**-7, atol=1e-5), found, expected)
        equal = [np.mean(np.asarray(found[leaf]) == np.asarray(expected[leaf])) for leaf in found]
        assert min(equal) > 0.95


def test_half_precision_is_read_without_a_wider_copy(monkeypatch):
    monkeypatch.setattr(_rows, "_LEAST", 1)
    rule = bp.get_primitive_spec(bp.etp_mm_p).trace_rule
    trace = {"weight": jnp.zeros((1, 16, 64, 128), jnp.bfloat16)}
    weights, signal = {"weight": jnp.zeros((64, 128))}, jnp.ones((1, 16, 128))

    def temporaries(trace):
        run = jax.jit(lambda trace, signal: rule.contract(trace, signal, weights, {"has_bias": False}))
        return run.lower(trace, signal).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(rule.packed(trace)) < trace["weight"].nbytes // 4
    assert temporaries(trace) < 1.5 * trace["weight"].nbytes


@pytest.mark.parametrize("states", [1, 2])
def test_a_loop_holds_one_copy_of_the_trace(states):
    S, B, I, O = states, 8, 128, 256
    trace = {"weight": jnp.zeros((S, B, I, O))}
    rule = bp.get_primitive_spec(bp.etp_mm_p).trace_rule

    def run(trace, w, x, factor, signal):
        def step(held, _):
            trace, w = held
            blocks = jnp.broadcast_to(jnp.tanh(w[0]), (S, S, B, O))
            added = factor * w[0]  # differs from step to step, or XLA makes an array of what is added before the loop
            gradient, trace = rule.turn(trace, signal, blocks, x, added, {"weight": w}, {"has_bias": False})
            return (trace, w - gradient["weight"]), None

        return jax.lax.scan(step, (trace, w), length=3)[0]

    arguments = trace, jnp.ones((I, O)), jnp.ones((1, B, I)), jnp.ones((1, S, B, O)), jnp.ones((S, B, O))
    memory = jax.jit(run, donate_argnums=0).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.8 * trace["weight"].nbytes
