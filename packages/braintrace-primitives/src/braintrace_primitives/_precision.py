"""Traces that are kept in half precision: computed with in single precision, and rounded where they are kept.

XLA's CPU backend takes a slice of bfloat16 numbers by converting the whole array. Loops over the rows of a trace
therefore read the numbers as their bits: those of a bfloat16 are the upper half of the float32 of the same value.
"""

from typing import Any

import jax
import jax.numpy as jnp

BITS = jnp.uint16
"""Dtype of an array of bfloat16 numbers given as their bits."""


def computed_in(dtype: Any) -> Any:
    """The dtype of what is computed with numbers that are kept in `dtype`: in single precision at least.

    Integers, which stand for places and not for numbers, stay what they are.
    """
    if dtype == BITS:
        return jnp.dtype(jnp.float32)
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.inexact) else jnp.dtype(dtype)


def as_bits(values: Any) -> Any:
    """Numbers in bfloat16 as their bits; others as they are."""
    return jax.lax.bitcast_convert_type(values, BITS) if values.dtype == jnp.bfloat16 else values


def of_bits(values: Any, dtype: Any) -> Any:
    """What `as_bits` was given, of dtype `dtype`."""
    return jax.lax.bitcast_convert_type(values, dtype) if values.dtype == BITS else values


def widened(values: Any) -> Any:
    """Numbers, or the bits of numbers, in the precision that they are computed with."""
    if values.dtype == BITS:
        return jax.lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)
    return values.astype(computed_in(values.dtype))


def narrowed(values: Any, dtype: Any) -> Any:
    """Numbers rounded to `dtype`, to the nearest and among two to the even one; their bits where it is `BITS`.

    Examples
    --------
    >>> third = jnp.float32(1 / 3)
    >>> float(widened(narrowed(third, BITS))) == float(third.astype(jnp.bfloat16))
    True
    """
    if dtype != BITS:
        return values.astype(dtype)
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return jnp.where(values == values, nearest, 0x7FC0).astype(BITS)  # a NaN would else become another number
