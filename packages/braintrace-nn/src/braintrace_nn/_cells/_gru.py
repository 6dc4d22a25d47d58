"""Gated recurrent units."""

from typing import Any, ClassVar

from jax.nn import sigmoid

from braintrace_nn._init import Initializer
from braintrace_nn._linear import Linear

from ._base import GatedCell, concat


class GRUCell(GatedCell):
    r"""Gated recurrent unit (Cho et al. 2014).

    .. math::

        z &= \sigma(W_z [x^t, h^{t-1}] + b_z) \\
        r &= \sigma(W_r [x^t, h^{t-1}] + b_r) \\
        c &= \phi(W_h [x^t, r \odot h^{t-1}] + b_h) \\
        h^t &= (1 - z) \odot h^{t-1} + z \odot c

    `Wr` reaches the state only through `Wh`: its online gradient is the one of the same step.

    Certificate: `Wz` and `Wh` omit recurrent mixing; `Wr`, which acts through `Wh`, learns within the step.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, activation, name, fused
        As in `GatedCell`; weights are orthogonal by default.

    Attributes
    ----------
    Wz, Wr, Wh : Linear
        Each has one parameter ``weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    K. Cho et al., Learning phrase representations using RNN encoder-decoder for statistical machine
    translation, EMNLP 2014, arXiv:1406.1078.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = GRUCell(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    gate_names: ClassVar[tuple[str, ...]] = ("Wz", "Wr")

    def make_others(self, w_init: Initializer, b_init: Initializer | None) -> None:
        """The candidate."""
        self.Wh = self.gate(w_init, b_init)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        z, r = map(sigmoid, self.gates_of(x, h))
        c = self.activation(self.Wh(concat(x, r * h)))
        self.h.value = (1 - z) * h + z * c
        return self.h.value


class MGUCell(GatedCell):
    r"""Minimal gated unit: a GRU with one gate for both purposes (Zhou et al. 2016).

    .. math::

        f &= \sigma(W_f [x^t, h^{t-1}] + b_f) \\
        c &= \phi(W_h [x^t, f \odot h^{t-1}] + b_h) \\
        h^t &= (1 - f) \odot h^{t-1} + f \odot c

    Certificate: `Wf` and `Wh` omit recurrent mixing, and `Wf` what it does through `Wh` in earlier steps.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, activation, name, fused
        As in `GatedCell`; weights are orthogonal by default.

    Attributes
    ----------
    Wf, Wh : Linear
        Each has one parameter ``weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    G.-B. Zhou et al., Minimal gated unit for recurrent neural networks, International Journal of Automation
    and Computing 13, 2016, arXiv:1603.09420.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = MGUCell(4, 3)
    >>> cell.init_state()
    >>> cell(jnp.ones(4)).shape
    (3,)
    """

    gate_names: ClassVar[tuple[str, ...]] = ("Wf",)
    Wf: Linear

    def make_others(self, w_init: Initializer, b_init: Initializer | None) -> None:
        """The candidate."""
        self.Wh = self.gate(w_init, b_init)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        f = sigmoid(self.Wf(concat(x, h)))
        c = self.activation(self.Wh(concat(x, f * h)))
        self.h.value = (1 - f) * h + f * c
        return self.h.value
