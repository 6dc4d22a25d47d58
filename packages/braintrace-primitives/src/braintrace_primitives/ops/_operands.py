"""What every operation does with its operands before JAX sees them: strip units, convert, check."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._errors import OperandError, OperandTypeError
from braintrace_primitives._units import in_unit, join, product, split


def linear_operands(where: str, x: Any, bias: Any, **weights: Any) -> tuple[Any, list[Any], Any, Callable[[Any], Any]]:
    """Operands of ``x · weights + bias`` as plain arrays.

    Returns
    -------
    x, list of weights, bias, restore
        ``restore(y)`` puts the unit of the result on.
    """
    parts = {name: split(weight) for name, weight in weights.items()}
    x_part = split(x)
    unit, kind = product(x_part, *parts.values())
    arrays = [as_weight(part.mantissa, name, where) for name, part in parts.items()]
    x = as_input(x_part.mantissa, "x", where, like=arrays[0])
    if bias is not None:
        bias = as_weight(in_unit(bias, unit, kind, name="bias", where=where), "bias", where)
    return x, arrays, bias, lambda y: join(y, unit, kind)


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


def require_rank(array: Any, rank: int, name: str, expected: str, where: str) -> None:
    """Raise `OperandError` unless `array` has `rank` axes."""
    if array.ndim != rank:
        raise misfit(f"{name} has the wrong number of axes.", where, f"{name} of shape {expected}", **{name: array})


def require_trailing(x: Any, trailing: tuple[int, ...], where: str, **weights: Any) -> None:
    """Raise `OperandError` unless the shape of `x` ends with `trailing`, which the weights ask for."""
    if x.shape[x.ndim - len(trailing) :] != trailing or x.ndim < len(trailing):
        sizes = ", ".join(map(str, ("...", *trailing)))
        raise misfit("x does not fit the weight.", where, f"x of shape ({sizes})", x=x, **weights)


def require_bias(bias: Any, shape: tuple[int, ...], where: str, **weights: Any) -> None:
    """Raise `OperandError` unless `bias` is None or of shape `shape`."""
    if bias is not None and bias.shape != shape:
        raise misfit("The bias does not fit the weight.", where, f"bias of shape {shape}", **weights, bias=bias)


def misfit(what: str, where: str, expected: str, fix: str | None = None, **operands: Any) -> OperandError:
    """An `OperandError` that shows the operands."""
    return OperandError(what, where=where, found=describe(**operands), expected=expected, fix=fix)


def applied(fn: Callable[[Any], Any] | None, value: Any) -> Any:
    """``fn(value)`` where both are given, else `value`."""
    if fn is None or value is None:
        return value
    if not callable(fn):
        raise OperandTypeError(
            "What is applied to a weight must be a function.", found=type(fn).__name__, expected="a callable, or None"
        )
    return fn(value)
