"""Refractory periods."""

from typing import Any

import brainstate
import jax.numpy as jnp

from braintrace_nn._stateful import StatefulLayer
from braintrace_nn._time import whole_steps


class Firing(StatefulLayer):
    """Base class of layers of neurons that may be silent for a while after a spike.

    The count of silent steps is a state without gradient: strict online gradients lose nothing by it, because the
    surrogate derivative of a silent neuron is zero.

    Attributes
    ----------
    tau_ref : quantity, number or None
        Refractory period: for so long after a spike a neuron is silent, but integrates. A multiple of the time step is
        taken, the nearest one. None for none.
    silent : ShortTermState
        Steps that each neuron still has to be silent, where there is a refractory period.
    """

    tau_ref: Any = None

    def init_state(self, batch_size: int | None = None) -> None:
        """Make the states of one sample or of a batch."""
        super().init_state(batch_size)
        if self.tau_ref is not None:
            self.silent = brainstate.ShortTermState(self._no_silence(batch_size))

    def reset_state(self, batch_size: int | None = None) -> None:
        """Set all states back, possibly for another batch size."""
        super().reset_state(batch_size)
        if self.tau_ref is not None:
            self.silent.value = self._no_silence(batch_size)

    def _no_silence(self, batch_size: int | None) -> Any:
        return jnp.zeros((*(() if batch_size is None else (batch_size,)), *self.state_size), jnp.int32)

    def heard(self, s: Any) -> Any:
        """Spikes of the neurons that may spike."""
        return s if self.tau_ref is None else s * (self.silent.value == 0)

    def count_down(self, s: Any) -> None:
        """Begin a step after spikes `s`."""
        if self.tau_ref is not None:
            left = jnp.maximum(self.silent.value - 1, 0)
            self.silent.value = jnp.where(s > 0, whole_steps(self, self.tau_ref), left)
