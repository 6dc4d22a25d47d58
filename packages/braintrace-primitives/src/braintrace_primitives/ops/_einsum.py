"""Einstein summation of an input and a weight."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from braintrace_primitives._errors import OperandError
from braintrace_primitives._primitive import register_primitive

from ._elementwise import add_copies
from ._operands import applied, describe, linear_operands
from ._product import Equation, ProductTraceRule

_WHERE = "einsum(equation, x, weight)"
_EQUATION = re.compile(r"([a-zA-Z]*),([a-zA-Z]*)->([a-zA-Z]*)")


def _einsum(x, weight, *, equation):
    axes = Equation(*equation)
    return jnp.einsum(f"...{axes.x},{axes.weight}->...{axes.y}", x, weight)


def _equation_of(params: Mapping[str, Any]) -> Equation:
    return Equation(*params["equation"])


def einsum_of_copies(operands, axes, params, *, equation: Callable[[Mapping[str, Any]], Equation]):
    """Copies of a product, each with its own weight or bias: one einsum with an axis of copies, and a marked bias.

    `equation` is that of the product, whose operands are (x, weight) or (x, weight, bias).
    """
    (x, w, *bias), (x_axis, w_axis, *bias_axis) = operands, axes
    single = equation(params)
    copies = single.spare()[0]
    lead = x.ndim - len(single.x) - (x_axis is not None)
    x_letters, w_letters = single.x, single.weight
    if x_axis is not None:
        x, x_letters = jnp.moveaxis(x, x_axis, lead), copies + x_letters
    if w_axis is not None:
        w, w_letters = jnp.moveaxis(w, w_axis, 0), copies + w_letters
    many = x_axis is not None or w_axis is not None
    y = etp_einsum_p.bind(x, w, equation=(x_letters, w_letters, copies + single.y if many else single.y))
    for b, axis in zip(bias, bias_axis, strict=True):
        y = add_copies(y if many else jnp.expand_dims(y, lead), b, axis, lead)
    return y, lead


etp_einsum_p = register_primitive(
    "etp_einsum",
    _einsum,
    trainable_invars={"weight": 1},
    trace_rule=functools.partial(ProductTraceRule, equation=_equation_of),
    leading_axes=True,
    of_mapped_weights=functools.partial(einsum_of_copies, equation=_equation_of),
)


def einsum(equation: str, x: Any, weight: Any, *, weight_fn: Callable[[Any], Any] | None = None) -> Any:
    """Marked ``jnp.einsum(equation, x, weight)``.

    The trace keeps each axis of the output and of the weight once, which is exact for axes that are
    contracted, shared between input and output (a batch, heads, time), or both.

    Parameters
    ----------
    equation : str
        ``"bi,io->bo"``: the axes of x, of the weight and of the output, all by name. A letter occurs once per
        operand; every output letter comes from x or the weight.
    x : array or quantity
    weight : array or quantity
    weight_fn : callable, optional
        Applied to `weight` before the product, as ordinary JAX code.

    Returns
    -------
    array or quantity

    Raises
    ------
    OperandError
        If the equation is malformed or the shapes do not fit it.
    OperandTypeError
        If an operand is not an array or has an integer dtype.

    Examples
    --------
    Two heads that share a batch:

    >>> import jax.numpy as jnp
    >>> einsum("bhi,hio->bho", jnp.ones((4, 2, 3)), jnp.ones((2, 3, 5))).shape
    (4, 2, 5)
    """
    axes = _parse(equation)
    x, (w,), _, restore = linear_operands(_WHERE, x, None, weight=applied(weight_fn, weight))
    sizes: dict[str, int] = {}
    for array, letters in ((x, axes.x), (w, axes.weight)):
        fits = array.ndim == len(letters)
        if not fits or any(sizes.setdefault(c, n) != n for c, n in zip(letters, array.shape, strict=True)):
            raise OperandError(
                "The shapes do not fit the equation.",
                where=_WHERE,
                found=describe(x=x, weight=w),
                expected=f"shapes that fit {equation!r}",
            )
    return restore(etp_einsum_p.bind(x, w, equation=tuple(axes)))


def _parse(equation: str) -> Equation:
    match = _EQUATION.fullmatch(equation.replace(" ", ""))
    axes = Equation(*match.groups()) if match else None
    if axes is None or any(len(set(term)) < len(term) for term in axes) or set(axes.y) - set(axes.x + axes.weight):
        raise OperandError(
            "The equation is malformed.",
            where=_WHERE,
            found=repr(equation),
            expected="'<x>,<weight>-><output>', a letter once per term, output letters from x or weight",
            fix="write it like 'bi,io->bo'; name batch axes instead of '...'",
        )
    return axes
