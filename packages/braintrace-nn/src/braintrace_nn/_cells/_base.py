"""What all recurrent cells share: states, and gates that see input and state."""

from typing import ClassVar

import brainstate
import jax
import jax.numpy as jnp

from braintrace_nn._init import Initializer
from braintrace_nn._linear import Linear
from braintrace_nn._stateful import StatefulLayer


def concat(x: jax.Array, h: jax.Array) -> jax.Array:
    """[x, h]: concatenation on the last axis."""
    return jnp.concatenate([x, h], axis=-1)


class RecurrentCell(StatefulLayer, brainstate.nn.RNNCell):
    """Base class of the rate cells: one hidden state ``h`` unless ``state_names`` says otherwise."""

    state_names: ClassVar[tuple[str, ...]] = ("h",)

    def gate(self, w_init: Initializer, b_init: Initializer | None) -> Linear:
        """A dense layer from [x, h] to the state."""
        lead, num_in, num_out = self.in_size[:-1], self.in_size[-1], self.state_size[-1]
        return Linear((*lead, num_in + num_out), self.state_size, w_init=w_init, b_init=b_init)
