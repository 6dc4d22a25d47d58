"""A network of excitatory and inhibitory neurons with conductance-based synapses."""

from collections.abc import Callable
from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp
import saiunit as u

from braintrace_nn._cells._base import concat
from braintrace_nn._constrained import SignedWLinear
from braintrace_nn._init import KAIMING_NORMAL, Initializer, as_count, initial_state
from braintrace_nn._surrogate import triangular_spike
from braintrace_nn._time import in_steps, leak

from ._firing import Firing


class COBACell(Firing):
    r"""Excitatory and inhibitory integrate-and-fire neurons with synaptic conductances (Vogels and Abbott 2005).

    .. math::

        g_E^t &= k_E\, g_E^{t-1} + |W_E| [x^t, s_E^{t-1}], \qquad g_I^t = k_I\, g_I^{t-1} + |W_I| s_I^{t-1} \\
        V_\infty &= \frac{E_L + g_E^t E_E + g_I^t E_I}{G}, \qquad G = 1 + g_E^t + g_I^t \\
        V^t &= V_\infty + (U^{t-1} - V_\infty)\, e^{-G \Delta t / \tau}, \qquad U = V - (V - V_{reset}) s \\
        s^t &= H\left(\frac{V^t - V_{th}}{V_{th} - V_{reset}}\right)

    Conductances are in units of the leak. The membrane equation is solved exactly for the conductances of the step. All
    connections keep their sign (Dale's law): input and the first O\ :sub:`E` neurons excite, the others inhibit. The
    gradient sees the reset through s only. One hidden group of g_E, g_I and V.

    Certificate: both weights omit recurrent mixing.

    Parameters
    ----------
    in_size, num_exc, num_inh : int
        Numbers of inputs I, excitatory and inhibitory neurons; O = num_exc + num_inh.
    tau, tau_E, tau_I : quantity or number
        Time constants of membrane and conductances, 20, 5 and 10 ms by default.
    E_L, E_E, E_I : quantity or number
        Reversal potentials of leak, excitation and inhibition, -60, 0 and -80 by default, in mV or with a unit.
    V_th, V_reset : quantity or number
        Threshold and reset potential, -50 and -60 by default.
    w_init : callable, array or number
        Initial W_E, shape (I + num_exc, O). Kaiming normal by default.
    w_inh_init : callable, array or number
        Initial W_I, shape (num_inh, O). Kaiming normal by default.
    V_init : callable, array or number, optional
        Initial potential, `E_L` by default. The conductances start at zero.
    spk_fun : callable
        H, a step function with a surrogate gradient.
    name : str, optional
    tau_ref : quantity or number, optional
        Refractory period: for so long after a spike a neuron is silent, though it integrates. None by default.

    Attributes
    ----------
    W_E, W_I : SignedWLinear
        Each has one parameter ``weight``, of any sign.
    g_E, g_I, V : HiddenState
        Shape (O,) or (B, O).

    References
    ----------
    T. P. Vogels and L. F. Abbott, Signal propagation and logic gating in networks of integrate-and-fire neurons,
    Journal of Neuroscience 25, 2005. R. Brette et al., Simulation of networks of spiking neurons, Journal of
    Computational Neuroscience 23, 2007.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> cell = COBACell(4, num_exc=8, num_inh=2)
    >>> cell.init_state(batch_size=3)
    >>> with brainstate.environ.context(dt=0.1 * u.ms):
    ...     cell(jnp.ones((3, 4))).shape
    (3, 10)
    """

    state_names: ClassVar[tuple[str, ...]] = ("g_E", "g_I", "V")
    g_E: brainstate.HiddenState
    g_I: brainstate.HiddenState
    V: brainstate.HiddenState

    def __init__(
        self,
        in_size: int,
        num_exc: int,
        num_inh: int,
        *,
        tau: Any = 20.0 * u.ms,
        tau_E: Any = 5.0 * u.ms,
        tau_I: Any = 10.0 * u.ms,
        E_L: Any = -60.0,
        E_E: Any = 0.0,
        E_I: Any = -80.0,
        V_th: Any = -50.0,
        V_reset: Any = -60.0,
        w_init: Initializer = KAIMING_NORMAL,
        w_inh_init: Initializer = KAIMING_NORMAL,
        V_init: Initializer | None = None,
        spk_fun: Callable = triangular_spike,
        name: str | None = None,
        tau_ref: Any = None,
    ):
        num_in = as_count(in_size, "in_size")
        self.num_exc, self.num_inh = as_count(num_exc, "num_exc"), as_count(num_inh, "num_inh")
        size = self.num_exc + self.num_inh
        super().__init__(num_in, size, state_init=E_L if V_init is None else V_init, name=name)
        self.tau, self.tau_E, self.tau_I = tau, tau_E, tau_I
        self.E_L, self.E_E, self.E_I = E_L, E_E, E_I
        self.tau_ref = tau_ref
        self.V_th, self.V_reset, self.spk_fun = V_th, V_reset, spk_fun
        self.W_E = SignedWLinear(num_in + self.num_exc, size, w_init)
        self.W_I = SignedWLinear(self.num_inh, size, w_inh_init)

    def initial(self, name: str, batch_size: int | None) -> Any:
        """The initial potential; zero for conductances."""
        start = self.state_init if name == "V" else 0.0
        return initial_state(start, self.state_size, batch_size, "V_init")

    def spikes(self, V: Any) -> Any:
        """Spikes of a membrane potential."""
        return self.spk_fun((V - self.V_th) / (self.V_th - self.V_reset))

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned spikes (O,) or (B, O)."""
        x, g_E, g_I, V = self.read(x)
        s = self.heard(self.spikes(V))
        self.count_down(s)
        g_E = leak(self, self.tau_E, V.dtype) * g_E + self.W_E(concat(x, s[..., : self.num_exc]))
        g_I = leak(self, self.tau_I, V.dtype) * g_I + self.W_I(s[..., self.num_exc :])
        total = 1 + g_E + g_I
        limit = (self.E_L + g_E * self.E_E + g_I * self.E_I) / total
        start = V - (jax.lax.stop_gradient(V) - self.V_reset) * s
        V = limit + (start - limit) * jnp.exp(-total * in_steps(self, self.tau, V.dtype))
        self.g_E.value, self.g_I.value, self.V.value = g_E, g_I, V
        return self.heard(self.spikes(V))
