"""All-to-all and one-to-one connections between populations."""

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
from brainstate.nn import init

from braintrace_primitives import matmul

from ._checks import features
from ._init import KAIMING_NORMAL, Initializer, Size, as_size, matching_sizes, parameter
from ._layer import Layer
from ._mark import per_position

_NORMAL = init.Normal()


class AllToAll(Layer):
    r"""Connections between all units of two populations, with or without those of a unit to itself.

    .. math:: y_o = \sum_i x_i W_{io} M_{io} + b_o

    with :math:`M_{io} = 0` for i = o if self-connections are left out, else 1. One number for a weight is
    shared by all connections, and learnt as one number.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of presynaptic units I and postsynaptic units O.
    w_init : callable, array or number
        Initial weight, shape (I, O) or (). Kaiming normal by default.
    b_init : callable, array, number or None
        Initial bias, shape (O,). No bias by default.
    include_self : bool
        Whether unit i of the first population reaches unit i of the second.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": (I, O) or (), "bias": (O,)}``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> AllToAll(3, 3, w_init=0.5, include_self=False)(jnp.array([1.0, 2.0, 3.0])).tolist()
    [2.5, 2.0, 1.5]
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING_NORMAL,
        b_init: Initializer | None = None,
        include_self: bool = True,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.in_size, self.out_size = matching_sizes(in_size, out_size)
        shape = (self.in_size[-1], self.out_size[-1])
        shared = not callable(w_init) and np.ndim(w_init) == 0
        params = {"weight": parameter(w_init, () if shared else shape, "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, shape[1:], "b_init")
        self.include_self = include_self
        self.weight = param_type(params)

    def update(self, x: Any) -> Any:
        """Map the last axis: shape (..., I) to (..., O)."""
        x = features(self, x, self.in_size[-1])
        params = self.weight.value
        weight, bias = params["weight"], params.get("bias")
        num_in, num_out = self.in_size[-1], self.out_size[-1]
        to_itself = None if self.include_self else jnp.eye(num_in, num_out, dtype=x.dtype)
        if weight.ndim:
            return matmul(x, weight if to_itself is None else weight * (1 - to_itself), bias)
        total = x.sum(-1, keepdims=True)
        drive = total if to_itself is None else total - x @ to_itself
        y = per_position(weight, (*x.shape[:-1], num_out)) * drive
        return y if bias is None else y + per_position(bias, y.shape)


class OneToOne(Layer):
    r"""Connections from each unit of a population to its counterpart in another.

    .. math:: y = x \odot w + b

    Parameters
    ----------
    in_size : int or tuple of int
        Shape of both populations.
    w_init : callable, array or number
        Initial weight, shape `in_size`. Standard normal by default.
    b_init : callable, array, number or None
        Initial bias, shape `in_size`. No bias by default.
    name : str, optional
    param_type : type, optional
        Class of the parameter state, ``brainstate.ParamState`` by default.

    Attributes
    ----------
    weight : ParamState
        ``{"weight": in_size, "bias": in_size}``.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> OneToOne(3, w_init=2.0, b_init=1.0)(jnp.array([1.0, 2.0, 3.0])).tolist()
    [3.0, 5.0, 7.0]
    """

    def __init__(
        self,
        in_size: Size,
        w_init: Initializer = _NORMAL,
        b_init: Initializer | None = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ):
        super().__init__(name=name)
        self.in_size = self.out_size = as_size(in_size, "in_size")
        params = {"weight": parameter(w_init, self.in_size, "w_init")}
        if b_init is not None:
            params["bias"] = parameter(b_init, self.in_size, "b_init")
        self.weight = param_type(params)

    def update(self, x: Any) -> Any:
        """Scale every feature: shape (..., *in_size) to the same."""
        x = features(self, x, *self.in_size)
        params = self.weight.value
        y = x * per_position(params["weight"], x.shape)
        return y + per_position(params["bias"], y.shape) if "bias" in params else y
