"""Dense products: ``y = x @ weight + bias`` with any number of leading axes on x."""

import functools
from collections.abc import Callable
from typing import Any

from braintrace_primitives._primitive import register_primitive, trainables_with_bias
from braintrace_primitives._units import in_unit, join, product, split

from ._operands import as_input, as_weight, misfit
from ._product import Equation, ProductTraceRule

_WHERE = "matmul(x, weight, bias)"


def _matmul(x, weight, bias=None, *, has_bias):
    y = x @ weight
    return y + bias if has_bias else y


_trace_rule = functools.partial(ProductTraceRule, equation=lambda params: Equation("i", "io", "o"))

etp_mm_p = register_primitive(
    "etp_mm",
    _matmul,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=_trace_rule,
    batched=True,
    leading_axes=True,
)
etp_mv_p = register_primitive(
    "etp_mv",
    _matmul,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=_trace_rule,
    batched_form=etp_mm_p,
)


def matmul(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    weight_fn: Callable[[Any], Any] | None = None,
    bias_fn: Callable[[Any], Any] | None = None,
) -> Any:
    """Marked product ``x @ weight + bias``.

    Binds ``etp_mv`` for a vector and ``etp_mm`` for any number of leading axes.

    Parameters
    ----------
    x : array or quantity of shape (..., I)
        Booleans (spikes) are taken as numbers.
    weight : array or quantity of shape (I, O)
    bias : array or quantity of shape (O,), optional
        Its unit must be that of ``x @ weight``.
    weight_fn, bias_fn : callable, optional
        Applied to `weight` and `bias` before the product, as ordinary JAX code.

    Returns
    -------
    array or quantity of shape (..., O)
        The unit is the product of the units of `x` and `weight`.

    Raises
    ------
    OperandError
        If ranks, sizes or units do not fit.
    OperandTypeError
        If an operand is not an array or has an integer dtype.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.ones(4)).shape
    (2, 4)
    """
    weight = weight if weight_fn is None else weight_fn(weight)
    bias = bias if bias is None or bias_fn is None else bias_fn(bias)
    x_part, weight_part = split(x), split(weight)
    unit, kind = product(x_part, weight_part)
    w = as_weight(weight_part.mantissa, "weight", _WHERE)
    x = as_input(x_part.mantissa, "x", _WHERE, like=w)
    operands = [x, w]
    if w.ndim != 2:
        raise misfit(
            "The weight of matmul must be a matrix.", _WHERE, "weight of shape (I, O)", x=x, weight=w
        )
    if x.ndim == 0:
        raise misfit(
            "matmul needs at least a vector.", _WHERE, f"x of shape (..., {w.shape[0]})", x=x, weight=w
        )
    if x.shape[-1] != w.shape[0]:
        raise misfit(
            "The last axis of x does not fit the first axis of the weight.",
            _WHERE,
            f"x of shape (..., {w.shape[0]}) or weight of shape ({x.shape[-1]}, {w.shape[1]})",
            x=x,
            weight=w,
        )
    if bias is not None:
        bias = as_weight(in_unit(bias, unit, kind, name="bias", where=_WHERE), "bias", _WHERE)
        if bias.shape != w.shape[1:]:
            raise misfit(
                "The bias does not fit the weight.",
                _WHERE,
                f"bias of shape ({w.shape[1]},)",
                weight=w,
                bias=bias,
            )
        operands.append(bias)
    primitive = etp_mv_p if x.ndim == 1 else etp_mm_p
    y = primitive.bind(*operands, has_bias=bias is not None)
    return join(y, unit, kind)
