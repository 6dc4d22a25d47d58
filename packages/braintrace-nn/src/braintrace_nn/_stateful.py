"""Layers with hidden states: how they are made, reset, checked and read."""

from typing import Any

import brainstate

from ._checks import require_states, step_input
from ._init import Initializer, Size, initial_state, matching_sizes
from ._layer import Layer


class StatefulLayer(Layer):
    """Base class of layers that advance their hidden states by one time step per call.

    A subclass names its states in ``state_names``, makes its parameters in ``__init__`` and writes its
    equation in ``update``, where ``self.read(x)`` gives the checked input and the previous value of every
    state.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input and output features.
    state_init : callable, array or number
        Initial value of every hidden state.
    state_size : int or tuple of int, optional
        Shape of the hidden states of one sample, `out_size` by default.
    name : str, optional
    """

    state_names: tuple[str, ...]

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        *,
        state_init: Initializer,
        state_size: Size | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.in_size, self.out_size = matching_sizes(in_size, out_size)
        self.state_size = self.out_size if state_size is None else matching_sizes(in_size, state_size)[1]
        self.state_init = state_init

    def init_state(self, batch_size: int | None = None) -> None:
        """Make the hidden states, shape ``state_size`` or ``(batch_size, *state_size)``."""
        for name in self.state_names:
            setattr(self, name, brainstate.HiddenState(self.initial(name, batch_size)))

    def reset_state(self, batch_size: int | None = None) -> None:
        """Set the hidden states back to their initial value, possibly for another batch size."""
        for name, state in zip(self.state_names, require_states(self, self.state_names), strict=True):
            state.value = self.initial(name, batch_size)

    def initial(self, name: str, batch_size: int | None) -> Any:
        """Initial value of the hidden state of this name."""
        return initial_state(self.state_init, self.state_size, batch_size, "state_init")

    def read(self, x: Any) -> tuple[Any, ...]:
        """The checked input, then the value of every hidden state in the order of ``state_names``."""
        values = [state.value for state in require_states(self, self.state_names)]
        batch_shape = values[0].shape[: -len(self.state_size)]
        return step_input(self, x, batch_shape, values[0].dtype), *values
