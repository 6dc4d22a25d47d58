"""Convolutions over one, two or three spatial axes."""

from collections.abc import Sequence
from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp

from braintrace_primitives import conv

from ._checks import describe, features, shape_text
from ._constrained import standardised
from ._errors import ConfigurationError, InputShapeError
from ._init import XAVIER_NORMAL, Initializer, as_count, as_size, parameter
from ._layer import Layer
from ._linear import weight_mask


class ConvNd(Layer):
    r"""Convolution whose kernel is learnt online; use `Conv1d`, `Conv2d` or `Conv3d`.

    .. math:: y_{p o} = b_o + \sum_{q, c} (K \odot M)_{q c o} \, x_{s p + d q, c}

    over the places q of the kernel and the input channels c of the group of o, with strides s and dilation d.

    Parameters
    ----------
    in_size : tuple of int
        Shape of one sample: spatial axes, then C input channels.
    out_channels : int
        Number of output channels O.
    kernel_size, stride, lhs_dilation, rhs_dilation : int or tuple of int
        One number for all spatial axes, or one per axis.
    padding : str, int or sequence
        "SAME", "VALID", a number for all sides, one per spatial axis, or (low, high) pairs.
    groups : int
        Number of groups that the channels fall into; each sees its own C / groups inputs.
    w_init : callable, array or number
        Initial kernel, shape (\*kernel_size, C / groups, O). Xavier normal by default.
    b_init : callable, array, number or None
        Initial bias, shape (O,). No bias by default.
    w_mask : array or callable, optional
        Mask M, multiplied with the kernel.
    channel_first : bool
        Whether samples come as (C, spatial axes) and leave as (O, spatial axes).
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (*kernel_size, C / groups, O), "bias": (O,)}``.

    Raises
    ------
    ConfigurationError, OperandError
        If sizes, groups or padding do not fit together.
    """

    num_spatial_dims: ClassVar[int]

    def __init__(
        self,
        in_size: Sequence[int],
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] | Sequence[tuple[int, int]] = "SAME",
        lhs_dilation: int | Sequence[int] = 1,
        rhs_dilation: int | Sequence[int] = 1,
        groups: int = 1,
        w_init: Initializer = XAVIER_NORMAL,
        b_init: Initializer | None = None,
        w_mask: Any = None,
        channel_first: bool = False,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.in_size = as_size(in_size, "in_size")
        if len(self.in_size) != self.num_spatial_dims + 1:
            raise ConfigurationError(
                "`in_size` has the wrong number of axes.",
                where=type(self).__name__,
                found=f"in_size={self.in_size}",
                expected=f"{self.num_spatial_dims} spatial axes and one of channels",
            )
        self.out_channels, self.groups = as_count(out_channels, "out_channels"), as_count(groups, "groups")
        self.kernel_size = self._per_axis(kernel_size, "kernel_size")
        self.stride = self._per_axis(stride, "stride")
        self.lhs_dilation = self._per_axis(lhs_dilation, "lhs_dilation")
        self.rhs_dilation = self._per_axis(rhs_dilation, "rhs_dilation")
        self.padding, self.channel_first = padding, channel_first
        channels = self.in_size[0 if channel_first else -1]
        if channels % self.groups or self.out_channels % self.groups:
            raise ConfigurationError(
                "The channels do not divide into groups.",
                where=type(self).__name__,
                found=f"{channels} input channels, {self.out_channels} output channels, {self.groups} groups",
            )
        shape = (*self.kernel_size, channels // self.groups, self.out_channels)
        params = {"weight": parameter(w_init, shape, "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, shape[-1:], "b_init")
        self.w_mask = weight_mask(w_mask, params["weight"])
        self.weight = param_type(params | self.more_parameters(params["weight"]))
        sample = jax.ShapeDtypeStruct(self.in_size, params["weight"].dtype)
        self.out_size = jax.eval_shape(self._convolved, sample, self.weight.value).shape

    def _per_axis(self, value: Any, name: str) -> tuple[int, ...]:
        values = as_size(value, name)
        if len(values) not in (1, self.num_spatial_dims):
            raise ConfigurationError(
                f"`{name}` has the wrong number of axes.",
                where=type(self).__name__,
                found=repr(value),
                expected=f"one integer, or {self.num_spatial_dims}",
            )
        return values * self.num_spatial_dims if len(values) == 1 else values

    def more_parameters(self, kernel: jax.Array) -> dict[str, jax.Array]:
        """Entries of the parameter beside kernel and bias."""
        return {}

    def kernel(self, params: dict[str, Any]) -> jax.Array:
        """The kernel that the parameter stands for, before the mask."""
        return params["weight"]

    def _convolved(self, x: Any, params: dict[str, Any]) -> Any:
        kernel, bias = self.kernel(params), params.get("bias")
        spatial = "DHW"[-self.num_spatial_dims :]
        layout = f"NC{spatial}" if self.channel_first else f"N{spatial}C"
        return conv(
            x,
            kernel if self.w_mask is None else kernel * self.w_mask,
            None if bias is None else bias.reshape(self.out_channels),  # (1, ..., 1, O) in older models
            strides=self.stride,
            padding=self.padding,
            lhs_dilation=self.lhs_dilation,
            rhs_dilation=self.rhs_dilation,
            feature_group_count=self.groups,
            dimension_numbers=(layout, f"{spatial}IO", layout),
        )

    def update(self, x: Any) -> Any:
        """Convolve one sample, shape ``in_size`` to ``out_size``, or a batch of them.

        Raises
        ------
        InputShapeError, InputTypeError
            If `x` has another shape, or holds no floating-point numbers.
        """
        x = features(self, x, *self.in_size)
        if x.ndim > len(self.in_size) + 1:
            raise InputShapeError(
                "The input has more than one axis before those of a sample.",
                where=describe(self),
                found=shape_text(x),
                expected=f"a sample of shape {self.in_size}, or a batch of them",
                fix="feed one time step at a time",
            )
        return self._convolved(x, self.weight.value)


class ScaledWSConvNd(ConvNd):
    r"""Convolution with scaled weight standardisation (Brock et al. 2021).

    .. math:: \hat K_{q c o} = g_o \frac{K_{q c o} - \mu_o}{\sqrt{\max(n \sigma_o^2, \epsilon)}}

    takes the place of the kernel, with mean μ and variance σ² over the n weights of each output channel. The
    gain is learnt online like the kernel. Use `ScaledWSConv1d`, `ScaledWSConv2d` or `ScaledWSConv3d`.

    Parameters
    ----------
    in_size, out_channels, kernel_size, *args, **options
        As in `ConvNd`.
    ws_gain : bool
        Whether there is a gain g; it starts at 1.
    eps : float

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (*kernel_size, C / groups, O), "bias": (O,), "gain": (1, ..., 1, O)}``.

    References
    ----------
    A. Brock, S. De and S. L. Smith, Characterizing signal propagation to close the performance gap in
    unnormalized ResNets, ICLR 2021, arXiv:2101.08692.
    """

    def __init__(
        self,
        in_size: Sequence[int],
        out_channels: int,
        kernel_size: int | Sequence[int],
        *args: Any,
        ws_gain: bool = True,
        eps: float = 1e-4,
        **options: Any,
    ):
        self.ws_gain, self.eps = ws_gain, eps
        super().__init__(in_size, out_channels, kernel_size, *args, **options)

    def more_parameters(self, kernel: jax.Array) -> dict[str, jax.Array]:
        """The gain, shape (1, ..., 1, O)."""
        shape = (*(1 for _ in kernel.shape[:-1]), kernel.shape[-1])
        return {"gain": jnp.ones(shape, kernel.dtype)} if self.ws_gain else {}

    def kernel(self, params: dict[str, Any]) -> jax.Array:
        """The standardised kernel."""
        return standardised(params["weight"], self.eps, params.get("gain"))


class Conv1d(ConvNd):
    """Convolution over one spatial axis, parameters as in `ConvNd`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = Conv1d((8, 2), out_channels=4, kernel_size=3)
    >>> layer(jnp.ones((5, 8, 2))).shape, layer.out_size
    ((5, 8, 4), (8, 4))
    """

    num_spatial_dims = 1


class Conv2d(ConvNd):
    """Convolution over two spatial axes, parameters as in `ConvNd`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = Conv2d((8, 8, 2), out_channels=4, kernel_size=3, stride=2)
    >>> layer(jnp.ones((8, 8, 2))).shape
    (4, 4, 4)
    """

    num_spatial_dims = 2


class Conv3d(ConvNd):
    """Convolution over three spatial axes, parameters as in `ConvNd`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = Conv3d((4, 4, 4, 1), out_channels=2, kernel_size=2, padding="VALID")
    >>> layer(jnp.ones((4, 4, 4, 1))).shape
    (3, 3, 3, 2)
    """

    num_spatial_dims = 3


class ScaledWSConv1d(ScaledWSConvNd):
    """`Conv1d` with scaled weight standardisation, parameters as in `ScaledWSConvNd`."""

    num_spatial_dims = 1


class ScaledWSConv2d(ScaledWSConvNd):
    """`Conv2d` with scaled weight standardisation, parameters as in `ScaledWSConvNd`."""

    num_spatial_dims = 2


class ScaledWSConv3d(ScaledWSConvNd):
    """`Conv3d` with scaled weight standardisation, parameters as in `ScaledWSConvNd`."""

    num_spatial_dims = 3
