"""Dense layers whose weight is a function of the parameter: of one sign, or standardised."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_primitives import matmul

from ._checks import features
from ._init import KAIMING_NORMAL, ZEROS, Initializer, Size, matching_sizes, parameter
from ._layer import Layer
from ._linear import weight_mask


class SignedWLinear(Layer):
    r"""Dense layer whose connections keep their sign, as excitatory and inhibitory neurons do (Dale's law).

    .. math:: y = x (|W| \odot S)

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and output features O.
    w_init : callable, array or number
        Initial weight, shape (I, O). Kaiming normal by default.
    w_sign : array, optional
        Signs S, any shape that broadcasts to (I, O); (I, 1) gives each presynaptic neuron one sign. All
        connections are positive by default.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        Shape (I, O), of any sign.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = SignedWLinear(2, 1, w_init=jnp.array([[3.0], [-4.0]]), w_sign=jnp.array([[1.0], [-1.0]]))
    >>> layer(jnp.ones(2)).tolist()
    [-1.0]
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING_NORMAL,
        w_sign: Any = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.in_size, self.out_size = matching_sizes(in_size, out_size)
        weight = parameter(w_init, (self.in_size[-1], self.out_size[-1]), "w_init")
        self.w_sign = weight_mask(w_sign, weight, "w_sign")
        self.weight = param_type(weight)

    def update(self, x: Any) -> Any:
        """Map the last axis: shape (..., I) to (..., O)."""
        x = features(self, x, self.in_size[-1])
        weight = abs(self.weight.value)
        return matmul(x, weight if self.w_sign is None else weight * self.w_sign)


def standardised(weight: jax.Array, eps: float, gain: jax.Array | None) -> jax.Array:
    r"""Scaled weight standardisation over all axes but the last.

    .. math:: \hat W = g \frac{W - \mu}{\sqrt{\max(n \sigma^2, \epsilon)}}

    with mean μ and variance σ² of the n incoming weights of each unit.

    Parameters
    ----------
    weight : array, shape (..., O)
    eps : float
        Lower bound on the summed squares n σ².
    gain : array or None, shape (1, ..., 1, O)
        g, 1 where it is None.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> standardised(jnp.array([[1.0], [3.0]]), 1e-4, None).ravel().tolist()
    [-0.7071, 0.7071]
    """
    axes = tuple(range(weight.ndim - 1))
    centred = weight - weight.mean(axes, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum((centred**2).sum(axes, keepdims=True), eps))
    return centred * (scale if gain is None else scale * gain)


class ScaledWSLinear(Layer):
    r"""Dense layer with scaled weight standardisation (Brock et al. 2021).

    .. math::

        y = x (\hat W \odot M) + b,
        \qquad \hat W_{io} = g_o \frac{W_{io} - \mu_o}{\sqrt{\max(I \sigma_o^2, \epsilon)}}

    with mean μ and variance σ² over the incoming weights of each unit. The gain is learnt online like the
    weight.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and output features O.
    w_init : callable, array or number
        Initial weight, shape (I, O). Kaiming normal by default.
    b_init : callable, array, number or None
        Initial bias, shape (O,). Zero by default; ``None`` leaves the bias out.
    w_mask : array or callable, optional
        Mask M, multiplied with the standardised weight.
    ws_gain : bool
        Whether there is a gain g; it starts at 1.
    eps : float
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (I, O), "bias": (O,), "gain": (1, O)}``.

    References
    ----------
    A. Brock, S. De and S. L. Smith, Characterizing signal propagation to close the performance gap in
    unnormalized ResNets, ICLR 2021, arXiv:2101.08692.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = ScaledWSLinear(4, 3)
    >>> layer(jnp.ones(4)).shape, layer(jnp.ones((2, 4))).shape
    ((3,), (2, 3))
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING_NORMAL,
        b_init: Initializer | None = ZEROS,
        w_mask: Any = None,
        ws_gain: bool = True,
        eps: float = 1e-4,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.in_size, self.out_size = matching_sizes(in_size, out_size)
        num_in, num_out = self.in_size[-1], self.out_size[-1]
        params = {"weight": parameter(w_init, (num_in, num_out), "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, (num_out,), "b_init")
        if ws_gain:
            params["gain"] = jnp.ones((1, num_out), params["weight"].dtype)
        self.eps = eps
        self.w_mask = weight_mask(w_mask, params["weight"])
        self.weight = param_type(params)

    def update(self, x: Any) -> Any:
        """Map the last axis: shape (..., I) to (..., O)."""
        x = features(self, x, self.in_size[-1])
        params = self.weight.value
        weight = standardised(params["weight"], self.eps, params.get("gain"))
        return matmul(x, weight if self.w_mask is None else weight * self.w_mask, params.get("bias"))
