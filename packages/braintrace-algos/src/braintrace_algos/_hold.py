"""Whether the states of the model are still those that a learner goes on from."""

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import brainstate
import jax

from braintrace_compiler import CompilationWarning, StateKind
from braintrace_compiler._diagnostics import users_level

from ._errors import LearnerError
from ._plan import Plan


class Hold:
    """What a learner left behind when it ran last, outside of any JAX trace."""

    def __init__(self) -> None:
        self._left: tuple[Any, list[Any]] | None = None
        self._places: list[tuple[Any, Any, Any]] = []
        self._plan: Plan | None = None
        self._hidden: list[brainstate.State] = []

    def leave(self, traces: brainstate.State) -> None:
        """Remember hidden states and traces."""
        self._left = _held(traces), [_held(state) for state in self._hidden]

    def resume(self, model: Any, plan: Plan, traces: brainstate.State) -> None:
        """Warn where hidden states were written since, and traces were not: these belong to other states."""
        if self._plan is not plan or not _in_place(self._places):
            require_in_place(model, plan)
            self._left = self._left if self._plan is plan else None
            self._places, self._plan = _places(model, plan), plan
            self._hidden = [info.state for info in plan.states if info.kind is StateKind.HIDDEN]
        if self._left is None or self._left[0] is not _held(traces) or not plan.carry.remembers:
            return
        now = [_held(state) for state in self._hidden]
        if all(map(operator.is_, self._left[1], now)):
            return
        if jax.tree.structure(now) != jax.tree.structure(self._left[1]):
            return  # another error tells of values that do not fit
        pairs = list(zip(jax.tree.leaves(self._left[1]), jax.tree.leaves(now), strict=True))
        fits = all(jax.numpy.shape(a) == jax.numpy.shape(b) for a, b in pairs)
        if fits and any(a is not b for a, b in pairs):
            self._left = None
            warnings.warn(
                "Hidden states of the model were written since the learner ran last, and its traces were not: these "
                "belong to the states as they were. learner.reset_state() brings both back to where a sequence begins.",
                CompilationWarning,
                stacklevel=users_level(),
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


def _held(state: brainstate.State) -> Any:
    """The value of a state, to be compared by identity: a read in brainstate's eyes takes ten times as long."""
    return state._value if hasattr(state, "_value") else state.value


def _places(model: Any, plan: Plan) -> list[tuple[Any, Any, Any]]:
    """What holds each state of a model, and each module on the way to it: a mapping or list, a key, and what is there.

    It is looked up at every call, so each is listed once.
    """
    found = {}
    for info in plan.states:
        above, steps = model, {}
        for key in info.path:
            holder = above if isinstance(above, (list, tuple, dict)) else getattr(above, "__dict__", {})
            try:
                below = holder[key]
            except (LookupError, TypeError):  # made when it is asked for
                break
            steps[id(above), key] = holder, key, below
            above = below
        found |= steps
    return list(found.values())


def _in_place(places: Iterable[tuple[Any, Any, Any]]) -> bool:
    try:
        return all(holder[key] is there for holder, key, there in places)
    except LookupError:
        return False
