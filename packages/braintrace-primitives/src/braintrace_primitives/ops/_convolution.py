"""A plain convolution whose gradient by the kernel is computed in a layout that is fast on CPU."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import ConvDimensionNumbers

from braintrace_primitives._jax_compat import ad
from braintrace_primitives._primitive import ETPPrimitive
from braintrace_primitives._sharding import explicit_spec, in_auto_axes, varying_like
from braintrace_primitives._trace_rule import cast_like


def convolve(x: Any, kernel: Any, *, strides: Any, **window: Any) -> Any:
    """`jax.lax.conv_general_dilated` with any number of leading axes on x, or without a batch axis."""
    if x.ndim < kernel.ndim:
        return convolve(x[None], kernel, strides=strides, **window)[0]
    if x.ndim > kernel.ndim:
        return jax.vmap(lambda x: convolve(x, kernel, strides=strides, **window))(x)
    return jax.lax.conv_general_dilated(x, kernel, window_strides=strides, **window)


class _Convolution(ETPPrimitive):
    """`convolve` as a primitive, for derivatives: in reverse mode the kernel gets its `kernel_gradient`.

    It is not registered, so that nothing is marked by it.
    """

    def _jvp(self, primals, tangents, **params):
        (x, kernel), (dx, dk) = primals, tangents
        terms = [] if type(dx) is ad.Zero else [convolve(dx, kernel, **params)]
        terms += [] if type(dk) is ad.Zero else [self.bind(x, dk, **params)]
        return self.bind(x, kernel, **params), functools.reduce(jnp.add, terms)

    def _transpose(self, cotangent, x, kernel, **params):
        if type(cotangent) is ad.Zero or not ad.is_undefined_primal(kernel):
            return super()._transpose(cotangent, x, kernel, **params)

        def gradient(x, cotangent):
            return cast_like(kernel_gradient(x[None], cotangent[None], kernel.aval, params), kernel.aval)

        return [None, in_auto_axes(gradient, explicit_spec(kernel.aval), x, cotangent)]


convolution_p = _Convolution("convolution", convolve, lambda params: 2, x_invar_index=0, leading_axes=True)


def kernel_gradient(xs: Any, gs: Any, kernel: Any, params: Mapping[str, Any]) -> Any:
    """``sum_t gs[t] · ∂y[t]/∂kernel`` for inputs (T, *x) and cotangents (T, *y) of one dtype.

    Parameters
    ----------
    xs, gs : array
    kernel : array
        Of which only shape and dtype matter.
    params : mapping
        Of `convolve`.
    """

    def plain(xs, gs):
        own = varying_like(jnp.zeros(kernel.shape, gs.dtype), xs, gs)  # each device's, as what `_correlate` gives
        return jax.linear_transpose(lambda kernel: convolve(xs, kernel, **params), own)(gs)[0]

    # XLA's own gradient of a convolution is up to a hundred times slower inside a loop on CPU, except for strides over
    # three axes; and it alone takes empty axes.
    strided = len(params["strides"]) == 3 and max(params["strides"] + params["lhs_dilation"]) > 1
    if strided or not all(a.size for a in (xs, gs, kernel)):
        return plain(xs, gs)

    def correlated(xs, gs):
        return to_kernel(_correlate(xs, gs, kernel.shape, params), kernel.shape, params)

    return jax.lax.platform_dependent(xs, gs, cpu=correlated, default=plain)


def to_kernel(total: Any, kernel_shape: Any, params: Mapping[str, Any]) -> Any:
    """A gradient (groups, M, O/groups) in the layout of the kernel."""
    spec = params["dimension_numbers"].rhs_spec
    channels, *rest = (kernel_shape[i] for i in spec)
    ordered = jnp.moveaxis(total, 1, 2).reshape(channels, *rest)
    return ordered.transpose([spec.index(i) for i in range(len(spec))])


def _correlate(xs, gs, kernel_shape, params):
    """Gradient (groups, M, O/groups) of the kernel: ``sum_p x[p · stride + k · dilation - low] · g[p]``.

    One convolution per group, in the layout that XLA has a fast path for on CPU: channels as samples, samples as
    channels, cotangents as kernel.
    """
    numbers, features, batches = params["dimension_numbers"], params["feature_group_count"], params["batch_group_count"]
    rank, spatial = len(kernel_shape), len(kernel_shape) - 2
    rest, size = xs.shape[1 - rank :], xs.shape[-rank] // batches
    steps = math.prod(xs.shape[:-rank])
    channel, *places = (i + 2 for i in numbers.lhs_spec[1:])
    x = xs.reshape(steps, batches, size, *rest).transpose(1, channel, *places, 0, 2)
    x = x.reshape(batches * features, x.shape[1] // features, *x.shape[2:-2], steps * size)
    dilation = [(0, 0, step - 1) for step in params["lhs_dilation"]]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 2 + dilation + [(0, 0, 0)])

    channel, *places = (i + 1 for i in numbers.out_spec[1:])
    g = gs.reshape(steps, size, *gs.shape[1 - rank :]).transpose(*places, 0, 1, channel)
    g = jnp.moveaxis(g.reshape(*g.shape[:spatial], steps * size, len(x), g.shape[-1] // len(x)), -2, 0)

    sizes = [kernel_shape[i] for i in numbers.rhs_spec[2:]]
    window, pads = extent(sizes, params["rhs_dilation"]), padding_pairs(x.shape[2:-1], sizes, params)
    outputs = extent(g.shape[1 : spatial + 1], params["strides"])
    ends = zip(pads, window, outputs, x.shape[2:-1], strict=True)
    padding = [(low, seen + size - given - low - 1) for (low, _), size, seen, given in ends]
    axes = tuple(range(1, spatial + 1))
    as_given = (0, spatial + 1, *axes)
    layout = as_given, (spatial + 1, spatial, *range(spatial)), as_given

    def one(pair):
        return jax.lax.conv_general_dilated(
            *pair,
            window_strides=params["rhs_dilation"],
            padding=padding,
            rhs_dilation=params["strides"],
            dimension_numbers=ConvDimensionNumbers(*layout),
        )

    total = one((x[0], g[0]))[None] if len(x) == 1 else jax.lax.map(one, (x, g))
    return total.reshape(len(x), -1, total.shape[-1])


def padding_pairs(sizes: Sequence[int], window: Sequence[int], params: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
    """The (low, high) padding of each spatial axis of x, of these sizes, under a kernel of the sizes `window`."""
    pads = params["padding"]
    if isinstance(pads, str):
        return jax.lax.padtype_to_pads(sizes, extent(window, params["rhs_dilation"]), params["strides"], pads)
    return pads


def extent(sizes: Sequence[int], steps: Sequence[int]) -> list[int]:
    """Length that `sizes` elements `steps` apart span, per axis."""
    return [(size - 1) * step + 1 for size, step in zip(sizes, steps, strict=True)]
