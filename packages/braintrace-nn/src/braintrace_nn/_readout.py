"""Leaky readouts: one dense layer and one memory per output."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import brainstate
import jax
import saiunit as u

from braintrace_primitives import matmul

from ._errors import ConfigurationError
from ._init import KAIMING_NORMAL, ZEROS, Initializer, Size, parameter
from ._stateful import StatefulLayer
from ._surrogate import triangular_spike
from ._time import leak

FIVE_MS = 5.0 * u.ms


class LeakyRateReadout(StatefulLayer):
    r"""Leaky integration of a dense projection: a smooth readout of rates or spikes.

    .. math:: r^t = k\, r^{t-1} + x^t W, \qquad k = e^{-\Delta t / \tau}

    One hidden group of one state per output. Certificate: exact.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and outputs O.
    tau : quantity or number
        Time constant, 5 ms by default; of the same dimension as the environment's ``dt``.
    w_init : callable, array or number
        Initial weight, shape (I, O). Kaiming normal by default.
    r_init : callable, array or number
        Initial value of the readout. Zero by default.
    name : str, optional

    Attributes
    ----------
    W : ParamState
        Shape (I, O).
    r : HiddenState
        Shape (O,) or (B, O).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> readout = LeakyRateReadout(4, 2, tau=10.0 * u.ms)
    >>> readout.init_state(batch_size=3)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     readout(jnp.ones((3, 4))).shape
    (3, 2)
    """

    state_names: ClassVar[tuple[str, ...]] = ("r",)
    r: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        tau: Any = FIVE_MS,
        w_init: Initializer = KAIMING_NORMAL,
        r_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        super().__init__(in_size, out_size, state_init=r_init, name=name)
        self.tau = tau
        shape = (self.in_size[-1], self.out_size[-1])
        self.W = brainstate.ParamState(parameter(w_init, shape, "w_init"))

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned readout (O,) or (B, O)."""
        x, r = self.read(x)
        self.r.value = leak(self, self.tau, r.dtype) * r + matmul(x, self.W.value)
        return self.r.value


class LeakySpikeReadout(StatefulLayer):
    r"""Leaky integrate-and-fire readout: a dense projection into spiking outputs.

    .. math::

        s^{t-1} &= H\left(\frac{V^{t-1} - V_{th}}{V_{th}}\right) \\
        V^t &= k\, (V^{t-1} - R^{t-1}) + x^t W, \qquad k = e^{-\Delta t / \tau}

    with :math:`R = V_{th} s` for the soft reset and :math:`R = V s` for the hard one, where the gradient sees
    the reset through s only. The output is :math:`s^t`. One hidden group of one state per output. Certificate: exact.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and outputs O.
    tau : quantity or number
        Time constant, 5 ms by default; of the same dimension as the environment's ``dt``.
    V_th : quantity or number
        Threshold, 1 by default; of the dimension of `w_init` and `V_init`.
    w_init : callable, array or number
        Initial weight, shape (I, O). Kaiming normal by default.
    V_init : callable, array or number
        Initial membrane potential. Zero by default.
    spk_fun : callable
        H, a step function with a surrogate gradient; triangular by default, see `triangular_spike`.
    spk_reset : "soft" or "hard"
    name : str, optional

    Attributes
    ----------
    W : ParamState
        Shape (I, O).
    V : HiddenState
        Shape (O,) or (B, O).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> readout = LeakySpikeReadout(4, 2, w_init=0.5)
    >>> readout.init_state()
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     readout(jnp.ones(4)).tolist()
    [1.0, 1.0]
    """

    state_names: ClassVar[tuple[str, ...]] = ("V",)
    V: brainstate.HiddenState

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        tau: Any = FIVE_MS,
        V_th: Any = 1.0,
        w_init: Initializer = KAIMING_NORMAL,
        V_init: Initializer = ZEROS,
        spk_fun: Callable = triangular_spike,
        spk_reset: Literal["soft", "hard"] = "soft",
        name: str | None = None,
    ):
        super().__init__(in_size, out_size, state_init=V_init, name=name)
        if spk_reset not in ("soft", "hard"):
            raise ConfigurationError("There is no such reset.", found=repr(spk_reset), expected="'soft' or 'hard'")
        self.tau, self.V_th, self.spk_fun, self.spk_reset = tau, V_th, spk_fun, spk_reset
        shape = (self.in_size[-1], self.out_size[-1])
        self.W = brainstate.ParamState(parameter(w_init, shape, "w_init"))

    def spikes(self, V: Any) -> Any:
        """Spikes of a membrane potential."""
        return self.spk_fun((V - self.V_th) / self.V_th)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has shape (I,) or (B, I), the returned spikes (O,) or (B, O)."""
        x, V = self.read(x)
        height = self.V_th if self.spk_reset == "soft" else jax.lax.stop_gradient(V)
        V = leak(self, self.tau, V.dtype) * (V - height * self.spikes(V)) + matmul(x, self.W.value)
        self.V.value = V
        return self.spikes(V)
