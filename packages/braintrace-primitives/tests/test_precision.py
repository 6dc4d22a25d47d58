import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braintrace_primitives._precision import BITS, as_bits, computed_in, narrowed, of_bits, widened

ODD = [0.0, -0.0, 1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.39e38, 1e-40, float("inf"), -float("inf"), float("nan")]


def bfloat16_of(values):
    return np.asarray(values, np.float32).astype(jnp.bfloat16)


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=64))
def test_bits_are_rounded_as_numbers_are(values):
    values = np.asarray(ODD + values, np.float32)
    with np.errstate(all="ignore"):
        expected = bfloat16_of(values).astype(np.float32)
    found = widened(narrowed(jnp.asarray(values), BITS))
    np.testing.assert_array_equal(found, expected)
    assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


def test_bits_of_a_nan_stay_one():
    quiet = jnp.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], jnp.uint32)  # those that rounding would carry over
    assert jnp.isnan(widened(narrowed(jax.lax.bitcast_convert_type(quiet, jnp.float32), BITS))).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_numbers_are_computed_with_in_single_precision_at_least(dtype):
    values = jnp.array([0.5, 2.0], dtype)
    wide = widened(as_bits(values))
    assert wide.dtype == computed_in(dtype) == widened(values).dtype == jnp.result_type(dtype, jnp.float32)
    assert (wide == values).all()
    assert narrowed(wide, values.dtype).dtype == of_bits(as_bits(values), dtype).dtype == dtype
