"""Checks that every operation makes on its operands before JAX sees them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._errors import OperandError, OperandTypeError


def describe(**operands: Any) -> str:
    """``x float32[4,5], weight float32[5,3]``."""
    return ", ".join(f"{name} {jax.typeof(value)}" for name, value in operands.items() if value is not None)


def as_array(value: Any, name: str, where: str) -> Any:
    """`value` as a JAX array.

    Raises
    ------
    OperandTypeError
        If `value` is not an array.
    """
    if isinstance(value, (jax.Array, np.ndarray, np.generic, float, int, complex)):
        return jnp.asarray(value)
    raise OperandTypeError(
        f"{name} is not an array.",
        where=where,
        found=type(value).__name__,
        expected="an array",
        fix=f"pass {name}.value" if hasattr(value, "value") else f"convert {name} with jax.numpy.asarray",
    )


def as_weight(value: Any, name: str, where: str) -> Any:
    """`value` as a trainable array of floating or complex dtype."""
    array = as_array(value, name, where)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise OperandTypeError(
            f"{name} cannot be trained: its dtype has no gradient.",
            where=where,
            found=describe(**{name: array}),
            expected="a floating or complex dtype",
            fix=f"create {name} as floats",
        )
    return array


def as_input(value: Any, name: str, where: str, like: Any) -> Any:
    """`value` as an input of floating or complex dtype; booleans (spikes, masks) become numbers."""
    array = as_array(value, name, where)
    if array.dtype == jnp.bool_:
        return array.astype(like.dtype)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise OperandTypeError(
            f"{name} is of integer type where floats are due.",
            where=where,
            found=describe(**{name: array}),
            expected="a floating, complex or boolean dtype",
            fix=f"convert {name} to floats, or use embedding for indices",
        )
    return array


def misfit(what: str, where: str, expected: str, fix: str | None = None, **operands: Any) -> OperandError:
    """An `OperandError` that shows the operands."""
    return OperandError(what, where=where, found=describe(**operands), expected=expected, fix=fix)
