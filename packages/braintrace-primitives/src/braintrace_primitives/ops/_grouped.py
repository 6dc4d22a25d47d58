"""Block-diagonal products: G independent dense products side by side."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from braintrace_primitives._primitive import register_primitive, trainables_with_bias

from ._einsum import einsum_of_copies
from ._operands import applied, linear_operands, require_bias, require_rank, require_trailing
from ._product import Equation, ProductTraceRule

_WHERE = "grouped_matmul(x, weight, bias)"


def _grouped_matmul(x, weight, bias=None, *, has_bias):
    y = jnp.einsum("...gk,gkn->...gn", x, weight)
    return y if bias is None else y + bias


def _equation(params: Mapping[str, Any]) -> Equation:
    return Equation("gk", "gkn", "gn")


_register = functools.partial(
    register_primitive,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=functools.partial(ProductTraceRule, equation=_equation),
    of_mapped_weights=functools.partial(einsum_of_copies, equation=_equation),
)

etp_gmm_p = _register("etp_gmm", _grouped_matmul, batched=True, leading_axes=True)
etp_gmv_p = _register("etp_gmv", _grouped_matmul, batched_form=etp_gmm_p)


def grouped_matmul(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    weight_fn: Callable[[Any], Any] | None = None,
    bias_fn: Callable[[Any], Any] | None = None,
) -> Any:
    """Marked block-diagonal product ``y[..., g, :] = x[..., g, :] @ weight[g] + bias[g]``.

    Binds ``etp_gmv`` for one sample and ``etp_gmm`` for any number of leading axes.

    Parameters
    ----------
    x : array or quantity of shape (..., G, K)
    weight : array or quantity of shape (G, K, N)
    bias : array or quantity of shape (G, N), optional
    weight_fn, bias_fn : callable, optional
        Applied to `weight` and `bias` before the product, as ordinary JAX code.

    Returns
    -------
    array or quantity of shape (..., G, N)

    Raises
    ------
    OperandError
        If ranks, sizes or units do not fit.
    OperandTypeError
        If an operand is not an array or has an integer dtype.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> grouped_matmul(jnp.ones((2, 3, 4)), jnp.ones((3, 4, 5))).shape
    (2, 3, 5)
    """
    weight, bias = applied(weight_fn, weight), applied(bias_fn, bias)
    x, (w,), bias, restore = linear_operands(_WHERE, x, bias, weight=weight)
    require_rank(w, 3, "weight", "(G, K, N)", _WHERE)
    require_trailing(x, w.shape[:2], _WHERE, weight=w)
    require_bias(bias, (w.shape[0], w.shape[2]), _WHERE, weight=w)
    primitive = etp_gmv_p if x.ndim == 2 else etp_gmm_p
    operands = (x, w) if bias is None else (x, w, bias)
    return restore(primitive.bind(*operands, has_bias=bias is not None))
