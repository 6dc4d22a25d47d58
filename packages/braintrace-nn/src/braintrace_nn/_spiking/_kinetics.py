"""What a synapse makes of the spikes that it receives."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import saiunit as u

from braintrace_nn._errors import ConfigurationError
from braintrace_nn._init import KAIMING_NORMAL, ZEROS, Initializer, Size
from braintrace_nn._linear import Linear
from braintrace_nn._stateful import StatefulLayer
from braintrace_nn._time import in_steps, leak


def _one_ms() -> Any:
    return 1.0 * u.ms


def _five_ms() -> Any:
    return 5.0 * u.ms


class Kinetics(abc.ABC):
    """Time course of a synaptic current: linear, and the same rule at every position.

    A subclass names its states and says how a step changes them.
    """

    state_names: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def step(self, module: Any, drive: Any, *states: Any) -> tuple[Any, tuple[Any, ...]]:
        """Current and new states from the weighted input of the step and the states before it.

        Parameters
        ----------
        module : Module
            The layer that asks, for messages.
        drive : array or quantity, shape (..., O)
        *states : array or quantity, shape (..., O)

        Returns
        -------
        current, (new states)
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Delta(Kinetics):
    """No memory: the current of a step is its input.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> current, states = Delta().step(None, jnp.ones(2))
    >>> current.tolist(), states
    ([1.0, 1.0], ())
    """

    state_names = ()

    def step(self, module: Any, drive: Any, *states: Any) -> tuple[Any, tuple[Any, ...]]:
        """Pass the input on."""
        return drive, ()


@dataclasses.dataclass(frozen=True, eq=False)
class Expon(Kinetics):
    r"""Exponential decay.

    .. math:: I^t = k\, I^{t-1} + y^t, \qquad k = e^{-\Delta t / \tau}

    Parameters
    ----------
    tau : quantity or number
        Time constant, 5 ms by default; of the dimension of the environment's ``dt``.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> with brainstate.environ.context(dt=1.0):
    ...     current, states = Expon(tau=2.0).step(None, jnp.zeros(1), jnp.ones(1))
    >>> current.item()
    0.6065
    """

    tau: Any = dataclasses.field(default_factory=_five_ms)
    state_names = ("I",)

    def step(self, module: Any, drive: Any, *states: Any) -> tuple[Any, tuple[Any, ...]]:
        """Decay, and add the input."""
        (I,) = states
        I = leak(module, self.tau, I.dtype) * I + drive
        return I, (I,)


@dataclasses.dataclass(frozen=True, eq=False)
class Alpha(Kinetics):
    r"""Alpha function, :math:`(t / \tau)\, e^{1 - t / \tau}` after a spike at 0 (Rall 1967).

    .. math:: I^t = k \left(I^{t-1} + \frac{e \Delta t}{\tau} h^{t-1}\right), \qquad h^t = k\, h^{t-1} + y^t

    the exact solution at the time steps: an input of 1 peaks at 1, :math:`\tau` later, and first acts in the step
    after it came.

    Parameters
    ----------
    tau : quantity or number
        Time constant, 5 ms by default; of the dimension of the environment's ``dt``.

    References
    ----------
    W. Rall, Distinguishing theoretical synaptic potentials computed for different soma-dendritic distributions of
    synaptic input, Journal of Neurophysiology 30, 1967.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> with brainstate.environ.context(dt=1.0):
    ...     current, states = Alpha(tau=1.0).step(None, jnp.zeros(1), jnp.zeros(1), jnp.ones(1))
    >>> current.item()
    1.0
    """

    tau: Any = dataclasses.field(default_factory=_five_ms)
    state_names = ("I", "h")

    def step(self, module: Any, drive: Any, *states: Any) -> tuple[Any, tuple[Any, ...]]:
        """Decay, let `h` charge `I`, and add the input to `h`."""
        I, h = states
        k, rate = leak(module, self.tau, I.dtype), in_steps(module, self.tau, I.dtype)
        I = k * (I + jnp.e * rate * h)
        return I, (I, k * h + drive)


@dataclasses.dataclass(frozen=True, eq=False)
class DualExpon(Kinetics):
    r"""Difference of two exponentials, with peak 1 after a spike of 1.

    .. math::

        d^t &= k_d\, d^{t-1} + y^t, \qquad r^t = k_r\, r^{t-1} + y^t, \qquad I^t = A (d^t - r^t) \\
        A &= \left(\rho^{\tau_r / (\tau_d - \tau_r)} - \rho^{\tau_d / (\tau_d - \tau_r)}\right)^{-1},
            \quad \rho = \tau_r / \tau_d

    Parameters
    ----------
    tau_rise, tau_decay : quantity or number
        Time constants, 1 ms and 5 ms by default; of the dimension of the environment's ``dt``, and different.

    References
    ----------
    A. Roth and M. C. W. van Rossum, Modeling synapses, in Computational Modeling Methods for Neuroscientists, MIT
    Press, 2009.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> with brainstate.environ.context(dt=1.0):
    ...     current, states = DualExpon(1.0, 2.0).step(None, jnp.zeros(1), jnp.ones(1), jnp.ones(1))
    >>> current.item()
    0.9546
    """

    tau_rise: Any = dataclasses.field(default_factory=_one_ms)
    tau_decay: Any = dataclasses.field(default_factory=_five_ms)
    state_names = ("d", "r")

    def __post_init__(self) -> None:
        ratio = u.get_mantissa(u.maybe_decimal(self.tau_rise / self.tau_decay))
        if jnp.any(ratio == 1) or jnp.any(ratio <= 0):
            raise ConfigurationError(
                "These time constants give no difference of exponentials.",
                found=f"tau_rise={self.tau_rise}, tau_decay={self.tau_decay}",
                expected="two different positive times",
                fix="use Alpha, the limit of equal time constants",
            )

    def step(self, module: Any, drive: Any, *states: Any) -> tuple[Any, tuple[Any, ...]]:
        """Decay at both rates, add the input, and take the difference."""
        d, r = states
        d = leak(module, self.tau_decay, d.dtype) * d + drive
        r = leak(module, self.tau_rise, r.dtype) * r + drive
        ratio = u.get_mantissa(u.maybe_decimal(self.tau_rise / self.tau_decay))
        peak = ratio ** (ratio / (1 - ratio)) - ratio ** (1 / (1 - ratio))
        return (d - r) * jnp.asarray(1 / peak, d.dtype), (d, r)


class Synapse(StatefulLayer):
    r"""Dense projection whose output has the time course of a synaptic current.

    .. math:: y^t = x^t W + b, \qquad I^t = \text{kinetics}(y^t)

    States of one hidden group per memory of the kinetics. Certificate: exact.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of presynaptic units I and postsynaptic units O.
    kinetics : Kinetics
        `Expon`, `Alpha`, `DualExpon` or `Delta`; exponential with 5 ms by default.
    w_init, b_init : callable, array or number
        Initial weight, shape (I, O), and bias, shape (O,). Kaiming normal and no bias by default.
    state_init : callable, array or number
        Initial value of every state, of the unit of the weights. Zero by default.
    name : str, optional

    Attributes
    ----------
    W : Linear
        Parameter ``W.weight`` = ``{"weight": (I, O)}``.
    I, h, d, r : HiddenState
        Those that the kinetics name, shape (O,) or (B, O).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> synapse = Synapse(4, 2, Alpha(tau=10.0 * u.ms))
    >>> synapse.init_state(batch_size=3)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     synapse(jnp.ones((3, 4))).shape
    (3, 2)
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        kinetics: Kinetics = Expon(),
        w_init: Initializer = KAIMING_NORMAL,
        b_init: Initializer | None = None,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        super().__init__(in_size, out_size, state_init=state_init, name=name)
        self.kinetics = kinetics
        self.state_names = kinetics.state_names
        self.W = Linear(self.in_size, self.out_size, w_init, b_init)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned current (O,) or (B, O)."""
        x, *states = self.read(x) if self.state_names else (x,)
        current, states = self.kinetics.step(self, self.W(x), *states)
        for name, value in zip(self.state_names, states, strict=True):
            getattr(self, name).value = value
        return current
