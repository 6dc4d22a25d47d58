"""Table look-up: ``y = weight[indices]``."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from braintrace_primitives._errors import OperandTypeError
from braintrace_primitives._primitive import register_primitive
from braintrace_primitives._sharding import explicit_spec, in_auto_axes
from braintrace_primitives._trace_rule import TraceRule, cast_like, mix, sum_leading
from braintrace_primitives._units import join, split

from ._operands import applied, as_array, as_weight, describe, require_rank

_WHERE = "embedding(indices, weight)"


class EmbeddingTraceRule(TraceRule):
    """Gradients by scatter; a table per sample only where a trace must be carried.

    Within a window the gradient adds ``gs[t]`` to the rows that were looked up, in one scatter over time and
    samples. A carried trace has shape ``(S, *indices, N, D)``: every row looked up so far keeps decaying.
    """

    def init(self, x, weights, y, num_states, params, dtype):
        rows, features = weights["weight"].shape
        return {"weight": jnp.zeros((num_states, *y.shape[:-1], rows, features), dtype)}

    def accumulate(self, xs, factors, weights, params):
        rows, features = weights["weight"].shape
        times, states, samples = *factors.shape[:2], math.prod(xs.shape[1:])

        def table(xs, factors):
            values = jnp.moveaxis(factors, 1, 0).reshape(states, times, samples, features)
            zeros = jnp.zeros((states, samples, rows, features), factors.dtype)
            filled = zeros.at[:, jnp.arange(samples), xs.reshape(times, samples)].add(values)
            return filled.reshape(states, *xs.shape[1:], rows, features)

        spec = explicit_spec(factors)
        out_spec = None if spec is None else PartitionSpec(*spec[1:-1], None, spec[-1])
        return {"weight": in_auto_axes(table, out_spec, xs, factors)}

    def decay(self, trace, blocks, params):
        old = trace["weight"]
        return {"weight": mix(blocks[..., None, :], old).astype(old.dtype)}

    def contract(self, trace, signal, weights, params):
        terms = mix(signal[None, ..., None, :], trace["weight"])[0]
        return {"weight": cast_like(sum_leading(terms, terms.ndim - 2), weights["weight"])}

    def acts_beside_input(self, weights):
        return False

    def addend(self, x, weights):
        """Which row was looked up, by ones and zeros: indices do not add up."""
        rows, dtype = weights["weight"].shape[0], weights["weight"].dtype
        return jax.nn.one_hot(jnp.where(x < 0, x + rows, x), rows, dtype=dtype)

    def pullback_of_sums(self, sums, weights, gs, params):
        of_table = jnp.einsum("...n,...d->nd", sums, gs.astype(sums.dtype))
        return {"weight": cast_like(of_table, weights["weight"])}


def _embedding(indices, weight):
    lead, table = explicit_spec(indices), explicit_spec(weight)
    out_spec = None if lead is None or table is None else PartitionSpec(*lead, *table[1:])
    return in_auto_axes(lambda i, w: w.at[i].get(mode="fill", fill_value=jnp.nan), out_spec, indices, weight)


def _of_copies(operands, axes, params):
    """One look-up for each copy: all rows of all tables would have a trace wherever tables were joined."""
    parts = [a if axis is None else jnp.moveaxis(a, axis, 0) for a, axis in zip(operands, axes, strict=True)]
    copies = operands[1].shape[axes[1]]
    primitive = etp_emb_v_p if operands[0].ndim == (axes[0] is not None) else etp_emb_p
    pick = [[a if axis is None else a[k] for a, axis in zip(parts, axes, strict=True)] for k in range(copies)]
    return jnp.stack([primitive.bind(*chosen) for chosen in pick]), 0


_register = functools.partial(
    register_primitive,
    trainable_invars={"weight": 1},
    trace_rule=EmbeddingTraceRule,
    of_mapped_weights=_of_copies,
)

etp_emb_p = _register("etp_emb", _embedding, batched=True, leading_axes=True)
etp_emb_v_p = _register("etp_emb_v", _embedding, batched_form=etp_emb_p)


def embedding(indices: Any, weight: Any, *, weight_fn: Callable[[Any], Any] | None = None) -> Any:
    """Marked look-up of rows, ``weight[indices]``.

    Binds ``etp_emb_v`` for a single index and ``etp_emb`` for an array of them.

    Parameters
    ----------
    indices : integer array of any shape
        Negative indices count from the end; rows of indices beyond the table are NaN.
    weight : array or quantity of shape (N, D)
    weight_fn : callable, optional
        Applied to `weight` before the look-up, as ordinary JAX code.

    Returns
    -------
    array or quantity of shape ``(*indices, D)``
        In the unit of `weight`.

    Raises
    ------
    OperandError
        If `weight` is not a matrix.
    OperandTypeError
        If `indices` are not integers or `weight` is not an array of floating or complex dtype.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> embedding(jnp.array([2, 0]), jnp.arange(6.0).reshape(3, 2)).tolist()
    [[4.0, 5.0], [0.0, 1.0]]
    """
    part = split(applied(weight_fn, weight))
    w = as_weight(part.mantissa, "weight", _WHERE)
    indices = as_array(indices, "indices", _WHERE)
    require_rank(w, 2, "weight", "(N, D)", _WHERE)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise OperandTypeError(
            "Indices must be integers.",
            where=_WHERE,
            found=describe(indices=indices),
            expected="an integer dtype",
            fix="use matmul for a floating input",
        )
    if indices.dtype.itemsize < 4:  # JAX computes with the number of rows in the dtype of the indices
        indices = indices.astype(jnp.int32)
    primitive = etp_emb_v_p if indices.ndim == 0 else etp_emb_p
    return join(primitive.bind(indices, w), part.unit, part.kind)
