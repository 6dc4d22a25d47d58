"""Recurrent layers of integrate-and-fire neurons."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import brainstate
import jax
import saiunit as u

from braintrace_nn._cells._base import concat
from braintrace_nn._errors import ConfigurationError
from braintrace_nn._init import KAIMING_NORMAL, ZEROS, Initializer, Size
from braintrace_nn._linear import Linear
from braintrace_nn._surrogate import triangular_spike
from braintrace_nn._time import leak

from ._delay import Delay
from ._firing import Firing
from ._kinetics import Expon, Kinetics

TEN_MS = 10.0 * u.ms
EXPON = Expon()


class SpikingCell(Firing):
    """Base class of the spiking layers: a weight on input and own spikes, a synapse, and a membrane.

    A subclass names the states of its neurons in ``own_names``, ``"V"`` first, and says in `spikes` when they fire and
    in `integrate` what a step does to them. Spikes are read off the states, so that no state is spent on them: a step
    first resets the neurons that had fired at the end of the one before.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and neurons O.
    tau : quantity or number
        Time constant of the membrane.
    synapse : Kinetics
        Time course of the input current, `Expon` with 5 ms by default; `Delta`, `Alpha` and `DualExpon` are others.
    recurrent : bool
        Whether the neurons see their own spikes of the step before.
    V_th : quantity or number
        Threshold. With a unit, weights and initial potential need it too.
    w_init, b_init : callable, array or number
        Initial weight, shape (I + O, O) or without recurrence (I, O), and bias, shape (O,). Kaiming normal and no bias
        by default.
    V_init : callable, array or number
        Initial potential. Zero by default; all other states start at zero.
    spk_fun : callable
        Step function H with a surrogate gradient: one of this package, or any other callable such as those of
        braintools.
    spk_reset : "soft" or "hard"
    name : str, optional
    tau_ref : quantity or number, optional
        Refractory period: for so long after a spike a neuron is silent, though it integrates. None by default.
    delay : quantity or number, optional
        Time after which the neurons see their own spikes, one step by default; one number, or one per neuron.
    """

    own_names: ClassVar[tuple[str, ...]] = ("V",)
    V: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        *,
        tau: Any = TEN_MS,
        synapse: Kinetics = EXPON,
        recurrent: bool = True,
        V_th: Any = 1.0,
        w_init: Initializer = KAIMING_NORMAL,
        b_init: Initializer | None = None,
        V_init: Initializer = ZEROS,
        spk_fun: Callable = triangular_spike,
        spk_reset: Literal["soft", "hard"] = "soft",
        name: str | None = None,
        tau_ref: Any = None,
        delay: Any = None,
    ):
        super().__init__(in_size, out_size, state_init=V_init, name=name)
        if delay is not None and not recurrent:
            raise ConfigurationError("Neurons that do not see their spikes have no delay.", found=f"delay={delay}")
        if spk_reset not in ("soft", "hard"):
            raise ConfigurationError("There is no such reset.", found=repr(spk_reset), expected="'soft' or 'hard'")
        self.tau, self.synapse, self.recurrent = tau, synapse, recurrent
        self.V_th, self.spk_fun, self.spk_reset = V_th, spk_fun, spk_reset
        self.state_names = (*synapse.state_names, *self.own_names)
        self.tau_ref = tau_ref
        self.line = None if delay is None else Delay(self.out_size, delay, already=1)
        num_in = self.in_size[-1] + (self.out_size[-1] if recurrent else 0)
        self.W = Linear((*self.in_size[:-1], num_in), self.out_size, w_init, b_init)

    def init_state(self, batch_size: int | None = None) -> None:
        """Make the states of one sample or of a batch."""
        super().init_state(batch_size)
        if self.line is not None:
            self.line.init_state(batch_size)

    def reset_state(self, batch_size: int | None = None) -> None:
        """Set all states back, possibly for another batch size."""
        super().reset_state(batch_size)
        if self.line is not None:
            self.line.reset_state(batch_size)

    def initial(self, name: str, batch_size: int | None) -> Any:
        """The initial potential, or zero in its unit."""
        V = super().initial(name, batch_size)
        return V if name == "V" else 0 * V

    def spikes(self, V: Any) -> Any:
        """Spikes of neurons in these states."""
        return self.spk_fun((V - self.V_th) / self.V_th)

    def leaked(self, V: Any, s: Any) -> Any:
        """The potential after reset and leak."""
        height = self.V_th if self.spk_reset == "soft" else jax.lax.stop_gradient(V)
        return leak(self, self.tau, V.dtype) * (V - height * s)

    def integrate(self, current: Any, s: Any, V: Any) -> tuple[Any, ...]:
        """New states of the neurons, from their current, their last spikes and their states."""
        return (self.leaked(V, s) + current,)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned spikes (O,) or (B, O)."""
        x, *states = self.read(x)
        count = len(self.synapse.state_names)
        received, own = states[:count], states[count:]
        s = self.heard(self.spikes(*own))
        self.count_down(s)
        seen = s if self.line is None else self.line(s)
        drive = self.W(concat(x, seen) if self.recurrent else x)
        current, received = self.synapse.step(self, drive, *received)
        own = self.integrate(current, s, *own)
        for name, value in zip(self.state_names, (*received, *own), strict=True):
            getattr(self, name).value = value
        return self.heard(self.spikes(*own))


class LIFCell(SpikingCell):
    r"""Leaky integrate-and-fire neurons with synaptic currents (Lapicque 1907; Neftci et al. 2019).

    .. math::

        I^t &= \text{synapse}(W [x^t, s^{t-1}] + b) \\
        V^t &= k\, (V^{t-1} - R^{t-1}) + I^t, \qquad k = e^{-\Delta t / \tau} \\
        s^t &= H\left(\frac{V^t - V_{th}}{V_{th}}\right)

    with :math:`R = V_{th} s` for the soft reset and :math:`R = V s` for the hard one, where the gradient sees the reset
    through s only. One hidden group of the states of the synapse and V.

    Certificate: exact without recurrence; with it W omits recurrent mixing.

    Parameters
    ----------
    in_size, out_size, tau, synapse, recurrent, V_th, w_init, b_init, V_init, spk_fun, spk_reset, name, tau_ref, delay
        As in `SpikingCell`; tau is 10 ms and V_th 1 by default.

    Attributes
    ----------
    W : Linear
        Parameter ``W.weight`` = ``{"weight": (I + O, O)}``.
    V : HiddenState
        Potential, shape (O,) or (B, O); with the states of the synapse, ``I`` for the exponential one.

    References
    ----------
    E. O. Neftci, H. Mostafa and F. Zenke, Surrogate gradient learning in spiking neural networks, IEEE Signal
    Processing Magazine 36, 2019, arXiv:1901.09948.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> cell = LIFCell(4, 3, tau=20.0 * u.ms)
    >>> cell.init_state(batch_size=2)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     cell(jnp.ones((2, 4))).shape
    (2, 3)
    """


class ALIFCell(SpikingCell):
    r"""Integrate-and-fire neurons whose threshold adapts (Bellec et al. 2018).

    .. math::

        a^t &= \rho\, a^{t-1} + \beta\, s^{t-1}, \qquad \rho = e^{-\Delta t / \tau_a} \\
        V^t &= k\, (V^{t-1} - R^{t-1}) + I^t, \qquad k = e^{-\Delta t / \tau} \\
        s^t &= H\left(\frac{V^t - V_{th} - a^t}{V_{th}}\right)

    with I and R as in `LIFCell`. One hidden group of the states of the synapse, V and a.

    Certificate: exact without recurrence; with it W omits recurrent mixing.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and neurons O.
    tau_a : quantity or number
        Time constant of the threshold, 200 ms by default.
    beta : quantity or number
        What a spike adds to the threshold, of the unit of V_th.
    **options
        As in `SpikingCell`.

    Attributes
    ----------
    W : Linear
        Parameter ``W.weight`` = ``{"weight": (I + O, O)}``.
    V, a : HiddenState
        Potential and threshold adaptation, shape (O,) or (B, O); with the states of the synapse.

    References
    ----------
    G. Bellec et al., Long short-term memory and learning-to-learn in networks of spiking neurons, NeurIPS 2018,
    arXiv:1803.09574.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> cell = ALIFCell(4, 3, beta=0.2)
    >>> cell.init_state(batch_size=2)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    own_names: ClassVar[tuple[str, ...]] = ("V", "a")
    a: brainstate.HiddenState

    def __init__(self, in_size: Size, out_size: Size, *, tau_a: Any = 200.0 * u.ms, beta: Any = 0.1, **options: Any):
        super().__init__(in_size, out_size, **options)
        self.tau_a, self.beta = tau_a, beta

    def spikes(self, V: Any, a: Any) -> Any:
        """Spikes of neurons in these states."""
        return self.spk_fun((V - self.V_th - a) / self.V_th)

    def integrate(self, current: Any, s: Any, V: Any, a: Any) -> tuple[Any, ...]:
        """New potential and threshold."""
        return self.leaked(V, s) + current, leak(self, self.tau_a, a.dtype) * a + self.beta * s


class GIFCell(SpikingCell):
    r"""Generalised integrate-and-fire neurons with two after-spike currents (Mihalas and Niebur 2009).

    .. math::

        A_j^t &= k_j\, A_j^{t-1} + \delta_j\, s^{t-1}, \qquad k_j = e^{-\Delta t / \tau_j}, \quad j = 1, 2 \\
        V^t &= k\, (V^{t-1} - R^{t-1}) + I^t + A_1^t + A_2^t, \qquad k = e^{-\Delta t / \tau} \\
        s^t &= H\left(\frac{V^t - V_{th}}{V_{th}}\right)

    with I and R as in `LIFCell`; the level 3 of the generalised models of Teeter et al. 2018. Negative steps make a
    neuron adapt, positive ones make it burst. One hidden group of the states of the synapse, V, A1 and A2.

    Certificate: exact without recurrence; with it W omits recurrent mixing.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and neurons O.
    tau_A : pair of quantities or numbers
        Time constants of the two currents, 10 and 200 ms by default.
    delta_A : pair of quantities or numbers
        What a spike adds to them, of the unit of V_th; -0.2 and -0.05 by default.
    **options
        As in `SpikingCell`.

    Attributes
    ----------
    W : Linear
        Parameter ``W.weight`` = ``{"weight": (I + O, O)}``.
    V, A1, A2 : HiddenState
        Potential and after-spike currents, shape (O,) or (B, O); with the states of the synapse.

    References
    ----------
    S. Mihalas and E. Niebur, A generalized linear integrate-and-fire neural model produces diverse spiking behaviors,
    Neural Computation 21, 2009. C. Teeter et al., Generalized leaky integrate-and-fire models classify multiple neuron
    types, Nature Communications 9, 2018.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> cell = GIFCell(4, 3, delta_A=(0.3, -0.1))
    >>> cell.init_state(batch_size=2)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     cell(jnp.ones((2, 4))).shape
    (2, 3)
    """

    own_names: ClassVar[tuple[str, ...]] = ("V", "A1", "A2")
    A1: brainstate.HiddenState
    A2: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        *,
        tau_A: tuple[Any, Any] = (TEN_MS, 200.0 * u.ms),
        delta_A: tuple[Any, Any] = (-0.2, -0.05),
        **options: Any,
    ):
        super().__init__(in_size, out_size, **options)
        self.tau_A, self.delta_A = tau_A, delta_A

    def spikes(self, V: Any, *currents: Any) -> Any:
        """Spikes of neurons in these states."""
        return super().spikes(V)

    def integrate(self, current: Any, s: Any, V: Any, *currents: Any) -> tuple[Any, ...]:
        """New potential and after-spike currents."""
        A1, A2 = (
            leak(self, tau, A.dtype) * A + delta * s
            for tau, delta, A in zip(self.tau_A, self.delta_A, currents, strict=True)
        )
        return self.leaked(V, s) + current + A1 + A2, A1, A2
