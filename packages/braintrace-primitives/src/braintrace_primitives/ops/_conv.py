"""Convolutions over one to three spatial axes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives._primitive import register_primitive, trainables_with_bias

from ._conv_rule import ConvTraceRule
from ._conv_window import batch_first, check_groups, padding_of, per_axis, sample_bias, spatial_rank
from ._conv_window import dimension_numbers as layout_of
from ._convolution import convolution_p, convolve
from ._elementwise import add_copies
from ._operands import applied, linear_operands

_WHERE = "conv(x, kernel, bias)"


def _conv(x, kernel, bias=None, *, has_bias, convolve=convolve, **window):
    dtype = jnp.result_type(x, kernel)
    y = convolve(x.astype(dtype), kernel.astype(dtype), **window)
    return y if bias is None else y + bias


def _of_copies(operands, axes, params):
    """Copies of a convolution side by side: one with more groups of channels (or of samples), and a marked bias."""
    (x, kernel, *bias), (x_axis, k_axis, *bias_axis) = operands, axes
    numbers, rank = params["dimension_numbers"], kernel.ndim - (k_axis is not None)
    copies = next(a.shape[i] for a, i in zip(operands, axes, strict=True) if i is not None)
    lead = x.ndim - (x_axis is not None) - rank + 1
    kind, place = ("feature_group_count", numbers.lhs_spec[1] - 1 + lead)
    if params["batch_group_count"] > 1:
        kind, place = "batch_group_count", lead - 1
    params = {**params, "has_bias": False}
    if k_axis is None:
        y = etp_conv_p.bind(x if x_axis is None else jnp.moveaxis(x, x_axis, 0), kernel, **params)
        y = jnp.expand_dims(y, lead) if x_axis is None else jnp.moveaxis(y, 0, lead)
    else:
        x = _joined(x, x_axis, copies, place)
        kernel = _joined(kernel, k_axis, copies, numbers.rhs_spec[0])
        y = etp_conv_p.bind(x, kernel, **{**params, kind: copies * params[kind]})
        channel = y.ndim - rank + numbers.out_spec[1]
        own = copies, y.shape[channel] // copies
        y = jnp.moveaxis(y.reshape(*y.shape[:channel], *own, *y.shape[channel + 1 :]), channel, lead)
    for b, axis in zip(bias, bias_axis, strict=True):
        y = add_copies(y, b, axis, lead)
    return y, lead


def _joined(array, axis, copies, place):
    """All copies of an array, joined along the axis `place` of one; `axis` counts them, or each is the same (None)."""
    if axis is None:
        array, axis = jnp.broadcast_to(array, (copies, *array.shape)), 0
    array = jnp.moveaxis(array, axis, place)
    return array.reshape(*array.shape[:place], copies * array.shape[place + 1], *array.shape[place + 2 :])


etp_conv_p = register_primitive(
    "etp_conv",
    _conv,
    differentiated=functools.partial(_conv, convolve=convolution_p.bind),
    trainable_invars=trainables_with_bias(weight=1),
    trace_rule=ConvTraceRule,
    leading_axes=True,
    of_mapped_weights=_of_copies,
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
