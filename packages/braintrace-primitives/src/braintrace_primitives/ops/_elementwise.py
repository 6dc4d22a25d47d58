"""Element-wise parameters: ``y = weight``, marked, with one trace element per state and position."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives._primitive import register_primitive
from braintrace_primitives._sharding import sum_over_replicas
from braintrace_primitives._trace_rule import TraceRule, cast_like, mix, over_states, sum_leading, take
from braintrace_primitives._units import join, split

from ._operands import applied, as_weight

_WHERE = "element_wise(weight, fn)"


class ElementwiseTraceRule(TraceRule):
    """Trace (S, *y): every element of y is one element of the weight."""

    def expanded(self, index):
        return ElementwiseTraceRule(lambda x, weights, params: take(self.fn(x, weights, params), index))

    def init(self, x, weights, y, num_states, params, dtype):
        return {"weight": jnp.zeros((num_states, *y.shape), dtype)}

    def accumulate(self, xs, factors, weights, params):
        return {"weight": sum_leading(factors, 1)}

    def decay(self, trace, blocks, params):
        return {"weight": mix(blocks, trace["weight"]).astype(trace["weight"].dtype)}

    def contract(self, trace, signal, weights, params):
        w = weights["weight"]
        total = sum_over_replicas(over_states(signal * trace["weight"], 0), w)
        like = jax.ShapeDtypeStruct(w.shape, total.dtype)
        transpose = jax.linear_transpose(lambda w: self.fn(None, {"weight": w}, params), like)
        return {"weight": cast_like(transpose(total)[0], w)}


def _identity(weight):
    return weight


def _stacked(operands, axes, params):
    """The weights of all copies are one weight."""
    return etp_elemwise_p.bind(jnp.moveaxis(operands[0], axes[0], 0)), 0


etp_elemwise_p = register_primitive(
    "etp_elemwise",
    _identity,
    trainable_invars={"weight": 0},
    x_invar_index=None,
    trace_rule=ElementwiseTraceRule,
    of_mapped_weights=_stacked,
)


def add_copies(y: Any, bias: Any, axis: int | None, lead: int) -> Any:
    """`y` of shape (*lead, copies, ...) plus a bias that is mapped along `axis`, or the same for all copies: marked."""
    marked = etp_elemwise_p.bind(bias if axis is None else jnp.moveaxis(bias, axis, 0))
    if axis is not None:
        marked = jnp.expand_dims(marked, range(1, y.ndim - lead - marked.ndim + 1))
    return y + marked


def element_wise(
    weight: Any,
    fn: Callable[[Any], Any] | None = None,
    *,
    weight_fn: Callable[[Any], Any] | None = None,
) -> Any:
    """Marked parameter that acts position by position: a decay, a gain, a threshold.

    The result is ordinary JAX: combine it with states by broadcasting, a shape of (1,) included.

    Parameters
    ----------
    weight : array or quantity of any shape
    fn, weight_fn : callable, optional
        Applied to `weight` before the mark, as ordinary JAX code; two names of one argument.

    Returns
    -------
    array or quantity
        ``fn(weight)``, with its unit.

    Raises
    ------
    OperandTypeError
        If the value to mark is not an array of floating or complex dtype.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> element_wise(jnp.zeros(3), jax.nn.sigmoid).tolist()
    [0.5, 0.5, 0.5]
    """
    part = split(applied(fn, applied(weight_fn, weight)))
    y = etp_elemwise_p.bind(as_weight(part.mantissa, "weight", _WHERE))
    return join(y, part.unit, part.kind)
