"""Products with a sparse weight of static pattern."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from braintrace_primitives._primitive import register_primitive, trainables_with_bias
from braintrace_primitives._sharding import explicit_sharding, explicit_spec, explicit_specs, in_auto_axes
from braintrace_primitives._sparsity import SparsityPattern
from braintrace_primitives._trace_rule import TraceRule, cast_like, in_precision_of, mix, over_time, sum_leading

from ._elementwise import add_copies
from ._operands import applied, linear_operands, misfit, require_bias, require_trailing

_WHERE = "sparse_matmul(x, data, sparse_mat, bias)"

# Down to this share of stored entries one dense product over the window beats gathering its factors. A trace gathers
# from the product of each sample, so its share times the number of steps must be this share times 32.
_DENSE_SHARE = 1 / 64
_DENSE_STEPS = 32
# From these on a dense product beats gather and scatter: share of entries, samples.
_DENSE_FORWARD = 1 / 24, 8
# Elements of a matrix that stays in cache; a larger one is not made beside the entries, but for a window's gradient.
_LARGEST = 2**22


class SparseTraceRule(TraceRule):
    """Trace (S, ..., nnz): entry k belongs to output ``cols[k]`` and is fed by input ``rows[k]``."""

    def pullback(self, xs, weights, gs, params):
        gradients = functools.partial(_gradients, params=params)
        return in_auto_axes(gradients, explicit_specs(weights), xs, dict(weights), gs)

    def fan_in(self, name, weights, params):
        pattern = params["sparse_mat"]
        return pattern.nnz / max(pattern.shape[1], 1) if name == "weight" else 1

    def init(self, x, weights, y, num_states, params, dtype):
        shapes = {"weight": (*y.shape[:-1], params["sparse_mat"].nnz), "bias": y.shape}
        return {name: jnp.zeros((num_states, *shapes[name]), dtype) for name in weights}

    def accumulate(self, xs, factors, weights, params):
        pattern, xs = params["sparse_mat"], in_precision_of(factors, xs)
        dense = len(xs) * pattern.nnz >= _DENSE_STEPS * _DENSE_SHARE * math.prod(pattern.shape)
        plain = explicit_sharding(factors) is None and factors.size > 0
        way = _by_products if dense and plain and _fits(pattern) else _by_entries
        added = way(pattern, xs, factors)
        return {"weight": added} | ({"bias": sum_leading(factors, 1)} if params["has_bias"] else {})

    def decay(self, trace, blocks, params):
        aligned = {"weight": blocks[..., params["sparse_mat"].cols], "bias": blocks}
        return {name: mix(aligned[name], old).astype(old.dtype) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        aligned = {"weight": signal[..., params["sparse_mat"].cols], "bias": signal}

        def gradient(name, w):
            terms = mix(aligned[name][None], trace[name])[0]
            return cast_like(sum_leading(terms, terms.ndim - 1), w)

        return {name: gradient(name, w) for name, w in weights.items()}


def _gradients(xs, weights, gs, params):
    pattern, data = params["sparse_mat"], weights["weight"]
    gs = gs.astype(jnp.result_type(xs, *weights.values()))
    flat_x, flat_g = (a.reshape(len(a), math.prod(a.shape[1:-1]), a.shape[-1]) for a in (xs, gs))
    if pattern.nnz >= _DENSE_SHARE * pattern.shape[0] * pattern.shape[1]:
        grad = jnp.einsum("tbi,tbo->io", flat_x, flat_g)[pattern.rows, pattern.cols]
    else:
        grad = over_time(lambda x, g: (x.T[pattern.rows] * g.T[pattern.cols]).sum(1), flat_x, flat_g)
    grads = {"weight": cast_like(grad, data)}
    if params["has_bias"]:
        grads["bias"] = cast_like(flat_g.sum((0, 1)), weights["bias"])
    return grads


def _fits(pattern):
    return 0 < math.prod(pattern.shape) <= _LARGEST


def _by_entries(pattern, xs, factors):
    """``sum_t x[t, ..., rows] · factors[t, s, ..., cols]``, step by step."""
    return over_time(lambda x, f: x[..., pattern.rows] * f[..., pattern.cols], xs, factors)


def _by_products(pattern, xs, factors):
    """The same from one dense product over time for each sample."""
    T, S, *lead, size = factors.shape

    def of_sample(pair):
        x, f = pair
        return jnp.einsum("ti,tso->sio", x, f)[:, pattern.rows, pattern.cols]

    by_sample = jnp.moveaxis(xs.reshape(T, -1, xs.shape[-1]), 1, 0), jnp.moveaxis(factors.reshape(T, S, -1, size), 2, 0)
    return jnp.moveaxis(jax.lax.map(of_sample, by_sample), 0, 1).reshape(S, *lead, pattern.nnz)


def _sparse_matmul(x, data, bias=None, *, sparse_mat, has_bias):
    lead = explicit_spec(x)
    out_spec = None if lead is None else PartitionSpec(*lead[:-1], None)
    y = in_auto_axes(functools.partial(_product, sparse_mat), out_spec, x, data)
    return y if bias is None else y + bias


def _product(pattern, x, data):
    share, samples = _DENSE_FORWARD
    if math.prod(x.shape[:-1]) >= samples and pattern.nnz >= share * math.prod(pattern.shape) and _fits(pattern):
        return x @ pattern.todense(data)  # made once where the weights stay the same in a loop
    # Leading axes last: gather and scatter then move contiguous rows.
    gathered = jnp.moveaxis(x, -1, 0)[pattern.rows]
    terms = gathered * jnp.expand_dims(data, range(1, x.ndim))
    y = jnp.zeros((pattern.shape[1], *x.shape[:-1]), terms.dtype).at[pattern.cols].add(terms)
    return jnp.moveaxis(y, 0, -1)


def _of_copies(operands, axes, params):
    """Copies of a product side by side: one product with a pattern of several blocks, and a marked bias."""
    (x, data, *bias), (x_axis, data_axis, *bias_axis) = operands, axes
    pattern, lead = params["sparse_mat"], x.ndim - 1 - (x_axis is not None)
    if x_axis is not None:
        x = jnp.moveaxis(x, x_axis, lead)
    if data_axis is not None:
        rows, columns = pattern.shape
        copies, own = data.shape[data_axis], x_axis is not None
        places = np.arange(copies)[:, None]
        blocks = np.ravel(pattern.rows + places * rows * own), np.ravel(pattern.cols + places * columns)
        pattern = SparsityPattern(*blocks, (rows * (copies if own else 1), columns * copies))
        x, data = x.reshape(*x.shape[:lead], -1), jnp.moveaxis(data, data_axis, 0).reshape(-1)
    primitive = etp_sp_mv_p if x.ndim == 1 else etp_sp_mm_p
    y = primitive.bind(x, data, sparse_mat=pattern, has_bias=False)
    if data_axis is not None:
        y = y.reshape(*y.shape[:lead], copies, columns)
    elif x_axis is None:
        y = jnp.expand_dims(y, lead)
    for b, axis in zip(bias, bias_axis, strict=True):
        y = add_copies(y, b, axis, lead)
    return y, lead


_register = functools.partial(
    register_primitive,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=SparseTraceRule,
    of_mapped_weights=_of_copies,
)

etp_sp_mm_p = _register("etp_sp_mm", _sparse_matmul, batched=True, leading_axes=True)
etp_sp_mv_p = _register("etp_sp_mv", _sparse_matmul, batched_form=etp_sp_mm_p)


def sparse_matmul(
    x: Any,
    data: Any,
    *,
    sparse_mat: Any,
    bias: Any = None,
    weight_fn: Callable[[Any], Any] | None = None,
    bias_fn: Callable[[Any], Any] | None = None,
) -> Any:
    """Marked product ``x @ W + bias`` with a sparse W of static pattern and trainable entries.

    Binds ``etp_sp_mv`` for a vector and ``etp_sp_mm`` for any number of leading axes.

    Parameters
    ----------
    x : array or quantity of shape (..., I)
    data : array or quantity of shape (nnz,)
        The stored entries of W.
    sparse_mat : SparsityPattern or sparse matrix of shape (I, O)
        The pattern: ours, or a BCOO, BCSR, brainevent or SciPy matrix, of which only the positions are read.
        Convert once, with ``SparsityPattern.from_matrix``, where the call is traced often.
    bias : array or quantity of shape (O,), optional
    weight_fn, bias_fn : callable, optional
        Applied to `data` and `bias` before the product, as ordinary JAX code.

    Returns
    -------
    array or quantity of shape (..., O)

    Raises
    ------
    OperandError
        If ranks, sizes or units do not fit.
    OperandTypeError
        If an operand is not an array or has an integer dtype, or the pattern is traced.

    Notes
    -----
    The product is a gather and a scatter of JAX on every backend, the cost of which grows with nnz, and needs no
    optional package. For batches of 8 and more and 1/24 and more of the entries of a matrix of up to 2^22 elements a
    dense product is faster and takes their place; an input that is not finite then reaches, as NaN, outputs that it
    is not connected to. The row kernels of brainevent 0.3.0 were measured against gather and scatter on CPU, where
    they are compiled by numba (300 to 4000 units, 1 to 10 % of entries, forward): 0.8 to 6 times their time for one
    sample in a loop, 3 to 7 times for a batch of 32. So brainevent's matrices are welcome as patterns and its kernels
    are not called.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> pattern = SparsityPattern.from_dense([[1, 0], [1, 1]])
    >>> sparse_matmul(jnp.array([1.0, 10.0]), jnp.array([1.0, 2.0, 3.0]), sparse_mat=pattern).tolist()
    [21.0, 30.0]
    """
    pattern = SparsityPattern.from_matrix(sparse_mat)
    data, bias = applied(weight_fn, data), applied(bias_fn, bias)
    x, (w,), bias, restore = linear_operands(_WHERE, x, bias, data=data)
    if w.shape != (pattern.nnz,):
        raise misfit("data does not fit the pattern.", _WHERE, f"data of shape ({pattern.nnz},) for {pattern}", data=w)
    require_trailing(x, pattern.shape[:1], _WHERE, data=w)
    require_bias(bias, pattern.shape[1:], _WHERE, data=w)
    primitive = etp_sp_mv_p if x.ndim == 1 else etp_sp_mm_p
    operands = (x, w) if bias is None else (x, w, bias)
    return restore(primitive.bind(*operands, sparse_mat=pattern, has_bias=bias is not None))
