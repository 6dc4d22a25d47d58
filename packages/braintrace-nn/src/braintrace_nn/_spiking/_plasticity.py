"""Synapses that facilitate and tire."""

from typing import Any, ClassVar

import brainstate
import saiunit as u

from braintrace_nn._init import Initializer, Size, initial_state, parameter
from braintrace_nn._mark import per_position
from braintrace_nn._stateful import StatefulLayer
from braintrace_nn._time import leak

FACILITATION, RECOVERY = 1500.0 * u.ms, 200.0 * u.ms


class ShortTermPlasticity(StatefulLayer):
    r"""Short-term facilitation and depression of presynaptic spikes (Tsodyks, Pawelzik and Markram 1998).

    .. math::

        u^t &= k_f u^{t-1} + U (1 - k_f u^{t-1})\, s^t, \qquad k_f = e^{-\Delta t / \tau_f} \\
        y^t &= u^t R^t s^t, \qquad R^t = 1 - k_d (1 - x^{t-1}), \qquad k_d = e^{-\Delta t / \tau_d} \\
        x^t &= R^t - y^t

    with s the spikes (or rates per step) of the layer before, u the release probability and x the part of the
    resources that is left. A dense layer or `Synapse` after it gives each connection the efficacy of its presynaptic
    neuron. One hidden group of u and x.

    Certificate: exact for U.

    Parameters
    ----------
    in_size : int or tuple of int
        Number of presynaptic neurons I.
    U_init : callable, array or number
        Initial release probability at rest, shape (I,), between 0 and 1; it is learnt. 0.15 by default.
    tau_f, tau_d : quantity or number
        Time constants of facilitation and recovery, 1500 and 200 ms by default: a facilitating synapse. U = 0.45, 50
        and 750 ms give a depressing one.
    name : str, optional

    Attributes
    ----------
    U : ParamState
        Shape (I,).
    u, x : HiddenState
        Shape (I,) or (B, I); they start at 0 and 1.

    References
    ----------
    M. Tsodyks, K. Pawelzik and H. Markram, Neural networks with dynamic synapses, Neural Computation 10, 1998.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> layer = ShortTermPlasticity(1, U_init=0.5, tau_f=1.0 * u.ms, tau_d=500.0 * u.ms)
    >>> layer.init_state()
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     [round(layer(jnp.ones(1)).item(), 2) for _ in range(3)]
    [0.5, 0.3, 0.13]
    """

    state_names: ClassVar[tuple[str, ...]] = ("u", "x")
    u: brainstate.HiddenState
    x: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        U_init: Initializer = 0.15,
        tau_f: Any = FACILITATION,
        tau_d: Any = RECOVERY,
        name: str | None = None,
    ):
        super().__init__(in_size, in_size, state_init=0.0, name=name)
        self.tau_f, self.tau_d = tau_f, tau_d
        self.U = brainstate.ParamState(parameter(U_init, self.in_size, "U_init"))

    def initial(self, name: str, batch_size: int | None) -> Any:
        """No facilitation, and all resources."""
        return initial_state(1.0 if name == "x" else 0.0, self.state_size, batch_size, name)

    def update(self, s: Any) -> Any:
        """Advance by one step; the spikes `s` and the returned releases have shape (I,) or (B, I)."""
        s, release, left = self.read(s)
        release = leak(self, self.tau_f, s.dtype) * release
        release = release + per_position(self.U.value, release.shape) * (1 - release) * s
        ready = 1 - leak(self, self.tau_d, s.dtype) * (1 - left)
        y = release * ready * s
        self.u.value, self.x.value = release, ready - y
        return y
