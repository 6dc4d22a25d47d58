"""The chaos-free network."""

from collections.abc import Callable
from typing import Any

import brainstate
from jax.nn import sigmoid

from braintrace_nn._init import ORTHOGONAL, ZEROS, Initializer, Size, activation_function
from braintrace_nn._linear import Linear

from ._base import RecurrentCell, concat


class CFNCell(RecurrentCell):
    r"""Chaos-free network (Laurent and von Brecht 2016).

    .. math::

        f &= \sigma(W_f [x^t, h^{t-1}] + b_f), \quad i = \sigma(W_i [x^t, h^{t-1}] + b_i) \\
        h^t &= f \odot \phi(h^{t-1}) + i \odot \phi(W_h x^t + b_h)

    Without input the state decays to zero: its dynamics have no chaotic regime.

    Certificate: all weights omit recurrent mixing.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and units O.
    w_init, b_init : callable, array or number
        Initial weights and biases. Orthogonal and zero by default.
    state_init : callable, array or number
        Initial hidden state. Zero by default.
    activation : str or callable
        :math:`\phi`, "tanh" by default.
    name : str, optional

    Attributes
    ----------
    Wf, Wi : Linear
        Each has one parameter ``weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    Wh : Linear
        Parameter ``Wh.weight`` = ``{"weight": (I, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    T. Laurent and J. von Brecht, A recurrent neural network without chaos, ICLR 2017, arXiv:1612.06212.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = CFNCell(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    h: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        activation: str | Callable = "tanh",
        name: str | None = None,
    ):
        super().__init__(in_size, out_size, state_init=state_init, name=name)
        self.activation = activation_function(activation)
        self.Wf = self.gate(w_init, b_init)
        self.Wi = self.gate(w_init, b_init)
        self.Wh = Linear(self.in_size, self.out_size, w_init, b_init)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        xh = concat(x, h)
        f = sigmoid(self.Wf(xh))
        i = sigmoid(self.Wi(xh))
        self.h.value = f * self.activation(h) + i * self.activation(self.Wh(x))
        return self.h.value
