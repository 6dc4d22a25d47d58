"""Whether the states of the model are still those that a learner goes on from."""

import warnings
from collections.abc import Sequence
from typing import Any

import brainstate
import jax

from braintrace_compiler import CompilationWarning

from ._errors import LearnerError
from ._plan import Plan


class Hold:
    """What a learner left behind when it ran last, outside of any JAX trace."""

    def __init__(self) -> None:
        self._left: tuple[Any, list[Any]] | None = None

    def leave(self, plan: Plan, traces: Any) -> None:
        """Remember hidden states and traces."""
        self._left = traces, _hidden_leaves(plan)

    def resume(self, model: Any, plan: Plan, traces: Any) -> None:
        """Warn where hidden states were written since, and traces were not: these belong to other states."""
        require_in_place(model, plan)
        if self._left is None or self._left[0] is not traces or not plan.carry.remembers:
            return
        pairs = list(zip(self._left[1], _hidden_leaves(plan), strict=True))
        fits = all(jax.numpy.shape(a) == jax.numpy.shape(b) for a, b in pairs)  # another error tells of other shapes
        if fits and any(a is not b for a, b in pairs):
            self._left = None
            warnings.warn(
                "Hidden states of the model were written since the learner ran last, and its traces were not: these "
                "belong to the states as they were. learner.reset_state() brings both back to where a sequence begins.",
                CompilationWarning,
                stacklevel=4,
            )


def require_in_place(model: Any, plan: Plan) -> None:
    """Refuse a model whose states are other objects than those that the learner steps.

    Raises
    ------
    LearnerError
    """
    for info in plan.states:
        found = _state_at(model, info.path)
        if found is not None and found is not info.state:
            raise LearnerError(
                "A state of the model is another object than when it was compiled.",
                where=f"state {'.'.join(map(str, info.path))}",
                found="a new brainstate.State, such as init_all_states makes",
                expected="the one that the learner steps",
                fix="learner.reset_state() puts the states back, and begins a sequence; after another initialisation "
                "compile the model again",
            )


def put_in_place(model: Any, plan: Plan) -> None:
    """Give a model the states that the learner steps."""
    for info in plan.states:
        found = _state_at(model, info.path)
        if found is not None and found is not info.state:
            place(model, info.path, info.state)


def place(model: Any, path: Sequence[Any], state: brainstate.State) -> None:
    """Put `state` at `path` of a model."""
    *above, last = path
    for key in above:
        model = model[key] if isinstance(model, (list, tuple, dict)) else getattr(model, key)
    if isinstance(model, (list, dict)):
        model[last] = state
    else:
        setattr(model, last, state)


def _state_at(model: Any, path: Sequence[Any]) -> brainstate.State | None:
    """The state at a path of a model, where it can be looked up."""
    try:
        for key in path:
            model = model[key] if isinstance(model, (list, tuple, dict)) else getattr(model, key)
    except (AttributeError, LookupError, TypeError):
        return None
    return model if isinstance(model, brainstate.State) else None


def _hidden_leaves(plan: Plan) -> list[Any]:
    return [leaf for info in plan.graph.module_info.hidden for leaf in jax.tree.leaves(info.state.value)]
