"""Long short-term memories."""

from collections.abc import Callable
from typing import Any, ClassVar

import brainstate
import jax.numpy as jnp
from jax.nn import sigmoid

from braintrace_nn._init import XAVIER_NORMAL, ZEROS, Initializer, Size, parameter
from braintrace_nn._mark import per_position

from ._base import GatedCell


class LSTMCell(GatedCell):
    r"""Long short-term memory (Hochreiter and Schmidhuber 1997), forget bias 1.

    .. math::

        i, g, f, o &= W_{i, g, f, o} [x^t, h^{t-1}] + b_{i, g, f, o} \\
        c^t &= \sigma(f + 1) \odot c^{t-1} + \sigma(i) \odot \phi(g) \\
        h^t &= \sigma(o) \odot \phi(c^t)

    Certificate: all weights omit recurrent mixing.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, activation, name, fused
        As in `GatedCell`; weights are Xavier normal by default.

    Attributes
    ----------
    Wi, Wg, Wf, Wo : Linear
        Each has one parameter ``weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    c, h : HiddenState
        Memory and output, shape (O,) or (B, O).

    References
    ----------
    S. Hochreiter and J. Schmidhuber, Long short-term memory, Neural Computation 9, 1997. The forget bias: R.
    Jozefowicz et al., An empirical exploration of recurrent network architectures, ICML 2015.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = LSTMCell(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    state_names: ClassVar[tuple[str, ...]] = ("c", "h")
    gate_names: ClassVar[tuple[str, ...]] = ("Wi", "Wg", "Wf", "Wo")
    default_weight: ClassVar[Initializer] = XAVIER_NORMAL
    c: brainstate.HiddenState

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned `h` (O,) or (B, O)."""
        x, c, h = self.read(x)
        i, g, f, o = self.gates_of(x, h)
        c = sigmoid(f + 1.0) * c + sigmoid(i) * self.activation(g)
        h = sigmoid(o) * self.activation(c)
        self.c.value, self.h.value = c, h
        return h


class URLSTMCell(GatedCell):
    r"""LSTM with uniform gate initialisation and refine gates (Gu et al. 2020).

    .. math::

        f &= \sigma(W_f [x^t, h^{t-1}] + b), \quad r = \sigma(W_r [x^t, h^{t-1}] - b) \\
        g &= 2 r \odot f + (1 - 2 r) \odot f^2 \\
        c^t &= g \odot c^{t-1} + (1 - g) \odot \phi(W_u [x^t, h^{t-1}]) \\
        h^t &= \sigma(W_o [x^t, h^{t-1}]) \odot \phi(c^t)

    The refine gate r moves the effective gate g between f² and 1 - (1 - f)². The bias starts at the logit of
    uniform numbers between 1/O and 1 - 1/O, so that the memories of the units span all time scales.

    Certificate: all weights and the bias omit recurrent mixing.

    Parameters
    ----------
    in_size, out_size, w_init, state_init, activation, name, fused
        As in `GatedCell`; weights are Xavier normal by default, and the gates have no other bias than `bias`.

    Attributes
    ----------
    Wu, Wf, Wr, Wo : Linear
        Each has one parameter ``weight`` = ``{"weight": (I + O, O)}``.
    bias : ParamState
        Shape (O,).
    c, h : HiddenState
        Memory and output, shape (O,) or (B, O).

    References
    ----------
    A. Gu et al., Improving the gating mechanism of recurrent neural networks, ICML 2020, arXiv:1910.09890.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = URLSTMCell(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    state_names: ClassVar[tuple[str, ...]] = ("c", "h")
    gate_names: ClassVar[tuple[str, ...]] = ("Wu", "Wf", "Wr", "Wo")
    c: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = XAVIER_NORMAL,
        state_init: Initializer = ZEROS,
        activation: str | Callable = "tanh",
        name: str | None = None,
        *,
        fused: bool = False,
    ):
        super().__init__(in_size, out_size, w_init, None, state_init, activation, name, fused=fused)

    def make_others(self, w_init: Initializer, b_init: Initializer | None) -> None:
        """The bias of the forget and refine gates."""
        self.bias = brainstate.ParamState(parameter(_uniform_gate_bias, self.state_size[-1:], "bias"))

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned `h` (O,) or (B, O)."""
        x, c, h = self.read(x)
        u, f, r, o = self.gates_of(x, h)
        bias = per_position(self.bias.value, c.shape)
        f, r = sigmoid(f + bias), sigmoid(r - bias)
        g = 2 * r * f + (1 - 2 * r) * f**2
        c = g * c + (1 - g) * self.activation(u)
        h = sigmoid(o) * self.activation(c)
        self.c.value, self.h.value = c, h
        return h


def _uniform_gate_bias(shape: tuple[int, ...]) -> Any:
    margin = 1 / max(shape[-1], 2)
    u: Any = brainstate.random.uniform(margin, 1 - margin, shape, dtype=brainstate.environ.dftype())
    return jnp.log(u) - jnp.log1p(-u)
