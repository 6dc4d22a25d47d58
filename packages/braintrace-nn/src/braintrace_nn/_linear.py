"""The dense layer."""

from typing import Any

import brainstate
import jax.numpy as jnp

from braintrace_primitives import matmul

from ._checks import features
from ._init import KAIMING_NORMAL, ZEROS, Initializer, Size, matching_sizes, parameter, require_broadcast
from ._layer import Layer


def weight_mask(mask: Any, weight: Any, name: str = "w_mask") -> Any:
    """A mask (array, initialiser or None) in the type of the weight that it multiplies."""
    if mask is None:
        return None
    value: Any = mask(weight.shape) if callable(mask) else jnp.asarray(mask)
    require_broadcast(name, value.shape, weight.shape, "does not fit the weight")
    return value.astype(weight.dtype)


class Linear(Layer):
    r"""Dense layer whose weight is learnt online.

    .. math:: y = x (W \odot M) + b

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and output features O. Of a tuple the last entry counts; the others must
        agree.
    w_init : callable, array or number
        Initial weight, shape (I, O). Kaiming normal by default.
    b_init : callable, array, number or None
        Initial bias, shape (O,). Zero by default; ``None`` leaves the bias out.
    w_mask : array or callable, optional
        Mask M, multiplied with the weight in every step. Masked-out entries get no gradient.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (I, O), "bias": (O,)}``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> layer = Linear(4, 3)
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
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.in_size, self.out_size = matching_sizes(in_size, out_size)
        num_in, num_out = self.in_size[-1], self.out_size[-1]
        params = {"weight": parameter(w_init, (num_in, num_out), "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, (num_out,), "b_init")
        self.w_mask = weight_mask(w_mask, params["weight"])
        self.weight = param_type(params)

    def update(self, x: Any) -> Any:
        """Map the last axis.

        Parameters
        ----------
        x : array or quantity, shape (..., I)

        Returns
        -------
        array or quantity, shape (..., O)

        Raises
        ------
        InputShapeError, InputTypeError
            If `x` has another feature size, or holds no floating-point numbers.
        """
        x = features(self, x, self.in_size[-1])
        params = self.weight.value
        weight = params["weight"] if self.w_mask is None else params["weight"] * self.w_mask
        return matmul(x, weight, params.get("bias"))
