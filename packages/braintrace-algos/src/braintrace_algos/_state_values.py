"""Values of many states, read and written without asking for each of them who watches it."""

from collections.abc import Sequence
from typing import Any

import brainstate

try:
    from brainstate._state import TRACE_CONTEXT as _CONTEXT
except ImportError:  # it is private: without it, `State.value` asks for each state
    _CONTEXT = None


def values_of(states: Sequence[brainstate.State]) -> list[Any]:
    """``state.value`` of each."""
    if _is_watched(states):
        return [state.value for state in states]
    return [state._read_value() for state in states]


def set_values(states: Sequence[brainstate.State], values: Sequence[Any]) -> None:
    """``state.value = value`` for each."""
    if _is_watched(states):
        for state, value in zip(states, values, strict=True):
            state.value = value
    else:
        for state, value in zip(states, values, strict=True):
            state._write_value(value)


def _is_watched(states: Sequence[brainstate.State]) -> bool:
    """Whether reading or writing one of the states is more than to get or set it.

    Something records it, checks it or hooks into it, or its class has a `value` of its own.
    """
    if _CONTEXT is None or _CONTEXT.state_stack or _CONTEXT.tree_check[-1] or _CONTEXT.jax_tracer_check[-1]:
        return True
    if brainstate.has_state_hooks():
        return True
    return any(state.has_hooks() or type(state).value is not brainstate.State.value for state in states)
