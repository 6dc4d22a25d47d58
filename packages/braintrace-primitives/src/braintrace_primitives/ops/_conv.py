"""Convolutions over one to three spatial axes."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives._primitive import register_primitive, trainables_with_bias
from braintrace_primitives._trace_rule import TraceRule, cast_like, in_precision_of, mix, sum_leading

from ._conv_window import batch_first, check_groups, padding_of, per_axis, sample_bias, spatial_rank
from ._conv_window import dimension_numbers as layout_of
from ._operands import applied, linear_operands

_WHERE = "conv(x, kernel, bias)"


class ConvTraceRule(TraceRule):
    """Trace per output position and kernel element, (S, positions, groups, M, O/groups).

    An output of channel o at one position depends on the M kernel elements of that channel through the patch
    of the input beneath it. Positions enumerate samples and spatial places together. Only a carry needs this:
    within a window the gradient is the transposed convolution of `pullback`.
    """

    def init(self, x, weights, y, num_states, params, dtype):
        *places, outputs = jax.eval_shape(lambda y: _align(y, 0, params), y).shape
        size = math.prod(weights["weight"].shape[i] for i in params["dimension_numbers"].rhs_spec[1:])
        shapes = {"weight": (*places, size, outputs), "bias": y.shape}
        return {name: jnp.zeros((num_states, *shapes[name]), dtype) for name in weights}

    def accumulate(self, xs, factors, weights, params):
        patches = in_precision_of(factors, _patches(xs, weights["weight"].shape, params))
        aligned = _align(factors, 2, params)
        trace = {"weight": jax.vmap(lambda f: jnp.einsum("tpgm,tpgo->pgmo", patches, f), in_axes=1)(aligned)}
        return trace | {"bias": factors.sum(0)} if "bias" in weights else trace

    def decay(self, trace, blocks, params):
        aligned = {"weight": _align(blocks, 2, params)[..., None, :], "bias": blocks}
        return {name: mix(aligned[name], old).astype(old.dtype) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        kernel = weights["weight"]
        total = sum_leading(mix(_align(signal, 1, params)[None, ..., None, :], trace["weight"])[0], 1)
        grads = {"weight": cast_like(_to_kernel(total, kernel.shape, params), kernel)}
        if "bias" in weights:
            bias = weights["bias"]
            terms = mix(signal[None], trace["bias"])[0]
            terms = terms.sum(tuple(range(terms.ndim - bias.ndim)))
            ones = tuple(i for i, size in enumerate(bias.shape) if size == 1)
            grads["bias"] = cast_like(terms.sum(ones, keepdims=True), bias)
        return grads


def _align(values, front, params):
    """Values (*front, *y) as (*front, positions, groups, O/groups)."""
    groups = params["feature_group_count"] * params["batch_group_count"]
    spec = params["dimension_numbers"].out_spec
    values = jnp.moveaxis(values, spec[1] - len(spec), -1)
    *places, channels = values.shape[front:]
    return values.reshape(*values.shape[:front], math.prod(places), groups, channels // groups)


def _patches(xs, kernel_shape, params):
    """Inputs (T, *x) as (T, positions, groups, M): what each output position sees."""
    numbers, features = params["dimension_numbers"], params["feature_group_count"]
    rank = len(kernel_shape) - 1
    lead, sample = xs.shape[:-rank], xs.shape[-rank:]
    patches = jax.lax.conv_general_dilated_patches(
        xs.reshape(math.prod(lead), *sample),
        tuple(kernel_shape[i] for i in numbers.rhs_spec[2:]),
        params["strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=numbers,
    )
    patches = jnp.moveaxis(patches, numbers.out_spec[1], -1)
    places, size = math.prod(patches.shape[1:-1]), patches.shape[-1] // features
    batches = params["batch_group_count"]
    outer, samples = (lead[1:-1], lead[-1] // batches) if batches > 1 else (lead[1:], 1)
    patches = patches.reshape(lead[0], math.prod(outer), batches, samples, places, features, size)
    positions = math.prod(outer) * samples * places
    return jnp.moveaxis(patches, 2, 4).reshape(lead[0], positions, batches * features, size)


def _to_kernel(total, kernel_shape, params):
    """Gradient (groups, M, O/groups) in the layout of the kernel."""
    spec = params["dimension_numbers"].rhs_spec
    channels, *rest = (kernel_shape[i] for i in spec)
    ordered = jnp.moveaxis(total, 1, 2).reshape(channels, *rest)
    return ordered.transpose([spec.index(i) for i in range(len(spec))])


def _conv(x, kernel, bias=None, *, has_bias, strides, **window):
    dtype = jnp.result_type(x, kernel)
    y = _convolve(x.astype(dtype), kernel.astype(dtype), window_strides=strides, **window)
    return y if bias is None else y + bias


def _convolve(x, kernel, **window):
    if x.ndim < kernel.ndim:
        return _convolve(x[None], kernel, **window)[0]
    if x.ndim > kernel.ndim:
        return jax.vmap(lambda x: _convolve(x, kernel, **window))(x)
    return jax.lax.conv_general_dilated(x, kernel, **window)


etp_conv_p = register_primitive(
    "etp_conv",
    _conv,
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=ConvTraceRule,
    leading_axes=True,
)


def conv(
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] | Sequence[tuple[int, int]] = "SAME",
    lhs_dilation: int | Sequence[int] = 1,
    rhs_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    dimension_numbers: Any = None,
    kernel_fn: Callable[[Any], Any] | None = None,
    bias_fn: Callable[[Any], Any] | None = None,
) -> Any:
    """Marked convolution over 1, 2 or 3 spatial axes, of a batch or of one sample.

    Parameters
    ----------
    x : array or quantity
        Laid out as `dimension_numbers` say; one sample lacks the batch axis.
    kernel : array or quantity
    bias : array or quantity, optional
        A vector of one entry per output channel, or any shape that broadcasts to one sample of the output.
    strides, lhs_dilation, rhs_dilation : int or sequence of ints
    padding : str, int or sequence
        ``"SAME"``, ``"VALID"``, ``"SAME_LOWER"``, one number for all sides, one per spatial axis, or (low,
        high) pairs.
    feature_group_count, batch_group_count : int
    dimension_numbers : optional
        As in `jax.lax.conv_general_dilated`: None for channels first, or for instance ``("NHWC", "HWIO",
        "NHWC")``.
    kernel_fn, bias_fn : callable, optional
        Applied to `kernel` and `bias` before the convolution, as ordinary JAX code.

    Returns
    -------
    array or quantity
        The unit is the product of the units of `x` and `kernel`.

    Raises
    ------
    OperandError
        If ranks, channels, groups, window options or units do not fit.
    OperandTypeError
        If an operand is not an array or has an integer dtype.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    >>> conv(image, kernel, strides=2, dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
    (2, 4, 4, 4)
    """
    kernel, bias = applied(kernel_fn, kernel), applied(bias_fn, bias)
    x, (k,), bias, restore = linear_operands(_WHERE, x, bias, kernel=kernel)
    spatial = spatial_rank(x, k, _WHERE)
    single = x.ndim < k.ndim
    given = layout_of(k.ndim, dimension_numbers, _WHERE)
    if not single:
        x = jnp.moveaxis(x, given.lhs_spec[0], 0)
    lhs_dilation = per_axis(lhs_dilation, spatial, "lhs_dilation", _WHERE)
    params = {
        "strides": per_axis(strides, spatial, "strides", _WHERE),
        "padding": padding_of(padding, spatial, max(lhs_dilation) > 1, _WHERE),
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": per_axis(rhs_dilation, spatial, "rhs_dilation", _WHERE),
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "dimension_numbers": batch_first(given),
    }
    check_groups(x, k, single, params, _WHERE)
    operands = [x, k]
    if bias is not None:
        y = jax.eval_shape(functools.partial(_conv, has_bias=False, **params), x, k)
        channel_axis = params["dimension_numbers"].out_spec[1] - 1
        operands.append(sample_bias(bias, y.shape[y.ndim - k.ndim + 1 :], channel_axis, _WHERE))
    y = etp_conv_p.bind(*operands, has_bias=bias is not None, **params)
    return restore(y if single else jnp.moveaxis(y, 0, given.out_spec[0]))
