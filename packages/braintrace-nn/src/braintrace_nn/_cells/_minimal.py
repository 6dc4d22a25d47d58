"""Gated linear recurrences: cells whose memory passes through a gate and nothing else."""

from collections.abc import Callable
from typing import Any, ClassVar

from jax.nn import sigmoid

from braintrace_nn._init import ORTHOGONAL, ZEROS, Initializer, Size
from braintrace_nn._linear import Linear

from ._base import RecurrentCell, concat


class MinimalRNNCell(RecurrentCell):
    r"""MinimalRNN (Chen 2017).

    .. math::

        z &= \Phi(x^t) \\
        f &= \sigma(W_u [z, h^{t-1}] + b_u) \\
        h^t &= f \odot h^{t-1} + (1 - f) \odot z

    Certificate: `W_u` and `phi` omit recurrent mixing, and `phi` what it does through `W_u` in earlier steps.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, name
        As in `LinearCandidateCell`.
    phi : callable, optional
        :math:`\Phi`, a function or module from the input to the latent space, shape (..., I) to (..., O). A
        dense layer by default; the paper adds a tanh.

    Attributes
    ----------
    phi : Linear
        Parameter ``phi.weight`` = ``{"weight": (I, O), "bias": (O,)}``, unless `phi` was given.
    W_u : Linear
        Parameter ``W_u.weight`` = ``{"weight": (2 O, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    M. Chen, MinimalRNN: toward more interpretable and trainable recurrent neural networks, 2017,
    arXiv:1711.06788.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = MinimalRNNCell(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        phi: Callable | None = None,
        name: str | None = None,
    ):
        super().__init__(in_size, out_size, state_init=state_init, name=name)
        self.phi = Linear(self.in_size, self.out_size, w_init, b_init) if phi is None else phi
        latent_and_state = (*self.out_size[:-1], 2 * self.out_size[-1])
        self.W_u = Linear(latent_and_state, self.out_size, w_init, b_init)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        z = self.phi(x)
        f = sigmoid(self.W_u(concat(z, h)))
        self.h.value = f * h + (1 - f) * z
        return self.h.value


class LinearCandidateCell(RecurrentCell):
    """Base class of gated recurrences whose candidate is a dense layer on the input.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and units O.
    w_init, b_init : callable, array or number
        Initial weights and biases. Orthogonal and zero by default.
    state_init : callable, array or number
        Initial hidden state. Zero by default.
    name : str, optional
    fused : bool
        As in `GatedCell`.
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        name: str | None = None,
        *,
        fused: bool = False,
    ):
        super().__init__(in_size, out_size, state_init=state_init, name=name)
        self.W_x = Linear(self.in_size, self.out_size, w_init, b_init)
        self.make_gates(w_init, b_init, fused)


class MiniGRU(LinearCandidateCell):
    r"""GRU reduced to one gate and a linear candidate.

    .. math::

        z &= \sigma(W_z [x^t, h^{t-1}] + b_z) \\
        h^t &= (1 - z) \odot h^{t-1} + z \odot (W_x x^t + b_x)

    Certificate: both weights omit recurrent mixing.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, name, fused
        As in `LinearCandidateCell`.

    Attributes
    ----------
    W_x : Linear
        Parameter ``W_x.weight`` = ``{"weight": (I, O), "bias": (O,)}``.
    W_z : Linear
        Parameter ``W_z.weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    After M. Chen, MinimalRNN: toward more interpretable and trainable recurrent neural networks, 2017,
    arXiv:1711.06788.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = MiniGRU(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    gate_names: ClassVar[tuple[str, ...]] = ("W_z",)
    W_z: Linear

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        z = sigmoid(self.W_z(concat(x, h)))
        self.h.value = (1 - z) * h + z * self.W_x(x)
        return self.h.value


class MiniLSTM(LinearCandidateCell):
    r"""LSTM reduced to a forget gate, an input gate and a linear candidate.

    .. math::

        f &= \sigma(W_f [x^t, h^{t-1}] + b_f), \quad i = \sigma(W_i [x^t, h^{t-1}] + b_i) \\
        h^t &= f \odot h^{t-1} + i \odot (W_x x^t + b_x)

    Certificate: all weights omit recurrent mixing.

    Parameters
    ----------
    in_size, out_size, w_init, b_init, state_init, name, fused
        As in `LinearCandidateCell`.

    Attributes
    ----------
    W_x : Linear
        Parameter ``W_x.weight`` = ``{"weight": (I, O), "bias": (O,)}``.
    W_f, W_i : Linear
        Each has one parameter ``weight`` = ``{"weight": (I + O, O), "bias": (O,)}``.
    h : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    After M. Chen, MinimalRNN: toward more interpretable and trainable recurrent neural networks, 2017,
    arXiv:1711.06788.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> cell = MiniLSTM(4, 3)
    >>> cell.init_state(batch_size=2)
    >>> cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    gate_names: ClassVar[tuple[str, ...]] = ("W_f", "W_i")

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned state (O,) or (B, O)."""
        x, h = self.read(x)
        f, i = map(sigmoid, self.gates_of(x, h))
        self.h.value = f * h + i * self.W_x(x)
        return self.h.value
