"""Dense products: ``y = x @ weight + bias`` with any number of leading axes on x."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from braintrace_primitives._primitive import register_primitive, trainables_with_bias
from braintrace_primitives._trace_rule import TraceRule, cast_like, in_precision_of, mix
from braintrace_primitives._units import in_unit, join, product, split
from ._operands import as_input, as_weight, misfit

_WHERE = "matmul(x, weight, bias)"


class DenseTraceRule(TraceRule):
    """Trace (S, ..., I, O) for the weight and (S, ..., O) for the bias, ``...`` being the leading axes of x.

    Output o depends on column o of the weight only, so the trace of a position is ``F ⊗ x``.
    """

    def init(self, x, weights, y, num_states, params, dtype):
        lead, out = y.shape[:-1], y.shape[-1:]
        shapes = {"weight": (*lead, x.shape[-1], *out), "bias": y.shape}
        return {name: jnp.zeros((num_states, *shapes[name]), dtype) for name in weights}

    def accumulate(self, xs, factors, weights, params):
        trace = {"weight": jnp.einsum("t...i,ts...o->s...io", in_precision_of(factors, xs), factors)}
        return trace | {"bias": factors.sum(0)} if "bias" in weights else trace

    def decay(self, trace, blocks, params):
        aligned = {"weight": blocks[..., None, :], "bias": blocks}
        return {name: mix(aligned[name], old) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        aligned = {"weight": signal[..., None, :], "bias": signal}

        def total(name, w):
            terms = aligned[name] * trace[name]
            return cast_like(terms.sum(tuple(range(terms.ndim - w.ndim))), w)

        return {name: total(name, w) for name, w in weights.items()}


def _matmul(x, weight, bias=None, *, has_bias):
    y = x @ weight
    return y + bias if has_bias else y


etp_mm_p = register_primitive(
    "etp_mm",
    _matmul,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=DenseTraceRule,
    batched=True,
    leading_axes=True,
)
etp_mv_p = register_primitive(
    "etp_mv",
    _matmul,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=DenseTraceRule,
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

    Binds ``etp_mv`` for a vector and ``etp_mm`` for a batch of vectors; further leading axes are folded into
    one.

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
    if x.ndim > 2:
        operands[0] = x.reshape(-1, x.shape[-1])
    y = primitive.bind(*operands, has_bias=bias is not None)
    if x.ndim > 2:
        y = y.reshape(*x.shape[:-1], w.shape[1])
    return join(y, unit, kind)
