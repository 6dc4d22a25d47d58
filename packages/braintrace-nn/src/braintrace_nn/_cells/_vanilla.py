"""The vanilla recurrent cell."""

from collections.abc import Callable
from typing import Any, ClassVar

from braintrace_nn._init import XAVIER_NORMAL, ZEROS, Initializer, Size
from braintrace_nn._linear import Linear

from ._base import GatedCell, concat


class ValinaRNNCell(GatedCell):
    r"""Vanilla recurrent cell (Elman 1990).

    .. math:: h^t = \phi(W [x^t, h^{t-1}] + b)

    The spelling is the field's established one; ``VanillaRNNCell`` is the same class.

    Certificate: `W` omits recurrent mixing, and no memory is carried by position.

    Parameters
    ----------
    in_size, out_size, state_init, w_init, b_init, activation, name
        As in `GatedCell`, in this order; weights are Xavier normal and :math:`\phi` is "relu" by default.

    Attributes
    ----------
    W : Linear
        Parameter ``W.weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    J. L. Elman, Finding structure in time, Cognitive Science 14, 1990.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = ValinaRNNCell(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    gate_names: ClassVar[tuple[str, ...]] = ("W",)
    W: Linear

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        state_init: Initializer = ZEROS,
        w_init: Initializer = XAVIER_NORMAL,
        b_init: Initializer | None = ZEROS,
        activation: str | Callable = "relu",
        name: str | None = None,
    ):
        super().__init__(in_size, out_size, w_init, b_init, state_init, activation, name)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        self.h.value = self.activation(self.W(concat(x, h)))
        return self.h.value


VanillaRNNCell = ValinaRNNCell
