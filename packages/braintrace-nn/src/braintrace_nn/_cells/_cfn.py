"""The chaos-free network."""

from typing import Any, ClassVar

from jax.nn import sigmoid

from braintrace_nn._init import Initializer
from braintrace_nn._linear import Linear

from ._base import GatedCell


class CFNCell(GatedCell):
    r"""Chaos-free network (Laurent and von Brecht 2016).

    .. math::

        f &= \sigma(W_f [x^t, h^{t-1}] + b_f), \quad i = \sigma(W_i [x^t, h^{t-1}] + b_i) \\
        h^t &= f \odot \phi(h^{t-1}) + i \odot \phi(W_h x^t + b_h)

    Without input the state decays to zero: its dynamics have no chaotic regime.

    Certificate: all weights omit recurrent mixing.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, activation, name, fused
        As in `GatedCell`; weights are orthogonal by default.

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

    gate_names: ClassVar[tuple[str, ...]] = ("Wf", "Wi")

    def make_others(self, w_init: Initializer, b_init: Initializer | None) -> None:
        """The input."""
        self.Wh = Linear(self.in_size, self.out_size, w_init, b_init)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        f, i = map(sigmoid, self.gates_of(x, h))
        self.h.value = f * self.activation(h) + i * self.activation(self.Wh(x))
        return self.h.value
