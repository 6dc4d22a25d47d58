"""Dense products: ``y = x @ weight + bias`` with any number of leading axes on x."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from braintrace_primitives._primitive import register_primitive, trainables_with_bias

from ._einsum import einsum_of_copies
from ._operands import applied, linear_operands, require_bias, require_rank, require_trailing
from ._product import Equation, ProductTraceRule

_WHERE = "matmul(x, weight, bias)"


def _matmul(x, weight, bias=None, *, has_bias):
    y = x @ weight
    return y if bias is None else y + bias


def _equation(params: Mapping[str, Any]) -> Equation:
    return Equation("i", "io", "o")


_register = functools.partial(
    register_primitive,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=functools.partial(ProductTraceRule, equation=_equation),
    of_mapped_weights=functools.partial(einsum_of_copies, equation=_equation),
)

etp_mm_p = _register("etp_mm", _matmul, batched=True, leading_axes=True)
etp_mv_p = _register("etp_mv", _matmul, batched_form=etp_mm_p)


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
    weight, bias = applied(weight_fn, weight), applied(bias_fn, bias)
    x, (w,), bias, restore = linear_operands(_WHERE, x, bias, weight=weight)
    require_rank(w, 2, "weight", "(I, O)", _WHERE)
    require_trailing(x, w.shape[:1], _WHERE, weight=w)
    require_bias(bias, w.shape[1:], _WHERE, weight=w)
    primitive = etp_mv_p if x.ndim == 1 else etp_mm_p
    operands = (x, w) if bias is None else (x, w, bias)
    return restore(primitive.bind(*operands, has_bias=bias is not None))
