"""Lines in which signals travel."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from braintrace_nn._checks import describe
from braintrace_nn._errors import ConfigurationError
from braintrace_nn._init import ZEROS, Initializer, Size, as_size, require_broadcast
from braintrace_nn._stateful import StatefulLayer
from braintrace_nn._time import whole_steps


class Delay(StatefulLayer):
    r"""Delay line: every unit shows what it was given a time before.

    .. math:: y^t_i = x^{t - n_i}_i, \qquad n_i = \tau_i / \Delta t, \qquad
        d_1^t = x^t, \quad d_j^t = d_{j-1}^{t-1}

    with n rounded to whole steps. The states :math:`d_1` to :math:`d_N`, N the largest n, are hidden states: they carry
    credit, as memory of the neurons that feed the line. One hidden group with those, whose traces grow by N states per
    unit.

    Certificate: exact, like a layer without the delay.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    delay : quantity, number or array
        Delay, of the dimension of the environment's ``dt``; one number, or as many as broadcast to `size`.
    state_init : callable, array or number
        What the line shows before the first signal has come through. Zero by default.
    already : int
        Steps that the signal is late without the line, as that of a recurrent connection is.
    name : str, optional

    Attributes
    ----------
    d1, d2, ... : HiddenState
        The line, newest first, shape `size` or (B, \*size).

    Raises
    ------
    ConfigurationError
        If a delay is negative or not of the shape of the population, or if the time step does not fit it or changes
        after ``init_state``.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> line = Delay(1, 2.0 * u.ms)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     line.init_state()
    ...     [line(jnp.array([x])).item() for x in (1.0, 2.0, 3.0, 4.0)]
    [0.0, 0.0, 1.0, 2.0]
    """

    def __init__(
        self,
        size: Size,
        delay: Any,
        state_init: Initializer = ZEROS,
        already: int = 0,
        name: str | None = None,
    ):
        size = as_size(size, "size")
        super().__init__(size, size, state_init=state_init, name=name)
        self.delay, self.already = delay, already
        self.state_names = ()
        require_broadcast("delay", getattr(delay, "shape", np.shape(delay)), size)

    def steps(self) -> np.ndarray:
        """Number of steps that each unit is delayed."""
        steps = whole_steps(self, self.delay) - self.already
        if (steps < 0).any():
            raise ConfigurationError(
                "Signals cannot arrive before they can be known.",
                where=describe(self),
                found=f"delay={self.delay}",
                expected=f"at least {self.already} time steps",
            )
        return steps

    def init_state(self, batch_size: int | None = None) -> None:
        """Make the line for the time step of the environment."""
        self.state_names = tuple(f"d{j}" for j in range(1, int(self.steps().max()) + 1))
        super().init_state(batch_size)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` and the returned signal have shape `size` or (B, \\*size)."""
        steps = self.steps()
        if steps.max() != len(self.state_names):
            raise ConfigurationError(
                "The line was made for another time step, or not made.",
                where=describe(self),
                found=f"{len(self.state_names)} steps where {steps.max()} are due",
                fix="call init_state under the dt of the simulation",
            )
        if not self.state_names:
            return x
        x, *line = self.read(x)
        shown = jnp.zeros_like(x)
        for n, signal in enumerate((x, *line)):
            shown = jnp.where(np.broadcast_to(steps == n, self.state_size), signal, shown)
        for name, signal in zip(self.state_names, (x, *line), strict=False):
            getattr(self, name).value = signal
        return shown
