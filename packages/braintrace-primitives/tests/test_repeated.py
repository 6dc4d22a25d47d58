"""One weight that meets many inputs within a step: one trace for all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_primitives import (
    RegistrationError,
    etp_elemwise_p,
    etp_emb_v_p,
    etp_mm_p,
    etp_mv_p,
    get_primitive_spec,
    is_etp_primitive,
    repeated,
)

T, S, N, B, I, O = 2, 2, 3, 2, 4, 3


def array(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


CASES = {
    "sample": (etp_mv_p, array(T, N, I), {"weight": array(I, O), "bias": array(O)}, (O,), {"has_bias": True}),
    "batch": (etp_mm_p, array(T, N, B, I), {"weight": array(I, O)}, (B, O), {"has_bias": False}),
    "index": (etp_emb_v_p, jnp.arange(T * N).reshape(T, N) % I, {"weight": array(I, O)}, (O,), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_iterations_are_further_time_steps(name):
    """The rules of the repeated op are those of the single one on T x N steps."""
    primitive, xs, weights, y_shape, params = CASES[name]
    single, spec = get_primitive_spec(primitive).trace_rule, get_primitive_spec(repeated(primitive))
    assert is_etp_primitive(repeated(primitive))
    rule = spec.trace_rule
    y = repeated(primitive)(xs[0], *weights.values(), **params)
    np.testing.assert_allclose(y, jnp.stack([primitive(x, *weights.values(), **params) for x in xs[0]]), rtol=1e-6)

    factors = array(T, S, N, *y_shape)
    apart = jnp.moveaxis(factors, 2, 1).reshape(T * N, S, *y_shape)
    flat = xs.reshape(T * N, *xs.shape[2:])
    blocks = jnp.broadcast_to(array(S, S, *y_shape)[:, :, None], (S, S, N, *y_shape))
    signal = jnp.broadcast_to(array(S, *y_shape)[:, None], (S, N, *y_shape))
    trace = rule.accumulate(xs, factors, weights, params)
    expected = single.accumulate(flat, apart, weights, params)
    zero = rule.init(xs[0], weights, y, S, params, jnp.float32)
    pairs = [
        (jax.tree.map(jnp.add, zero, trace), expected),
        (rule.decay(trace, blocks, params), single.decay(expected, blocks[:, :, 0], params)),
        (rule.contract(trace, signal, weights, params), single.contract(expected, signal[:, 0], weights, params)),
        (rule.pullback(xs, weights, factors[:, 0], params), single.pullback(flat, weights, apart[:, 0], params)),
    ]
    assert rule.acts_beside_input(weights) == single.acts_beside_input(weights) == (name not in ("batch", "index"))
    assert rule.fan_in("weight", weights, params) == single.fan_in("weight", weights, params)
    for found, wanted in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, wanted)


def test_an_operation_without_input_is_not_repeated():
    with pytest.raises(RegistrationError, match="no input"):
        repeated(etp_elemwise_p)
