"""What a step function does with the hidden states of the model outside of the learner's call.

The step from h^{t-1} to h^t is what was compiled, so that traces follow it and nothing else: beside it, a loss may read
h^{t-1}, and its derivative meets the trace of what is read. The rest would be left out silently, and is refused.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import brainstate
import jax

from braintrace_compiler import CompilationWarning, StateInfo, StateKind
from braintrace_compiler._diagnostics import users_level
from braintrace_compiler._flow import influence
from braintrace_primitives._jax_compat import Literal

from ._checks import describe
from ._errors import LearnerError
from ._functional import StatefulProgram
from ._plan import Plan

_ADVICE = "make it part of the model's update, or put jax.lax.stop_gradient around what is read"


class Untouched:
    """The hidden states as the learner knows them, while a step function is traced."""

    def __init__(self, plan: Plan):
        self._hidden = plan.graph.module_info.hidden
        self.renew()

    def renew(self) -> None:
        """Know the states as they are now."""
        self._known = self._leaves()

    def require(self) -> None:
        """Refuse what the learner does not know of: its traces would go on with derivatives of another value."""
        for info, then, now in zip(self._hidden, self._known, self._leaves(), strict=True):
            if any(a is not b for a, b in zip(then, now, strict=True)):
                raise LearnerError(
                    "A hidden state of the model is written outside of the learner's step.",
                    where="step_fn",
                    found=f"a new value of {'.'.join(map(str, info.path))}",
                    expected="hidden states that only the model's update writes, which is all that traces follow",
                    fix="let the update do it, from an argument: h = jnp.where(done, 0.0, h) resets the traces too",
                )

    def _leaves(self) -> list[list[Any]]:
        return [jax.tree.leaves(info.state.value) for info in self._hidden]


class Entry:
    """The hidden states where a step begins, apart from those that a step function reads for itself.

    Parameters
    ----------
    plan : Plan
    values : sequence of pytrees
        One for each hidden state.

    Attributes
    ----------
    args : list
        What the learner was called with.
    """

    def __init__(self, plan: Plan, values: Sequence[Any]):
        self.untouched, self.args = Untouched(plan), []
        self._plan, self._values = plan, [jax.tree.leaves(value) for value in values]

    def enter(self, args: list[Any], states: Sequence[list[Any]]) -> list[list[Any]]:
        """`states` of a step that is called with `args`, the hidden ones as they are at the entry."""
        self.untouched.require()
        self.args, own = args, iter(self._values)
        pairs = zip(self._plan.states, states, strict=True)
        return [next(own) if info.kind is StateKind.HIDDEN else leaves for info, leaves in pairs]


def reads_past(plan: Plan, step: StatefulProgram) -> bool:
    """Whether the loss reads hidden states beside the learner's step.

    Parameters
    ----------
    plan : Plan
    step : StatefulProgram
        Of a step function; gives the loss, more, and the arguments of the learner, whose step starts from an `Entry`.

    Raises
    ------
    LearnerError
        If derivatives of the loss, or of the arguments, by hidden states are not followed.
    """
    hidden = {id(info.state): info for info in plan.graph.module_info.hidden}
    loss, *_, args = _read(step, hidden)
    for k, infos in enumerate(args):
        if infos:
            raise LearnerError(
                "An input of the learner is computed from hidden states of its own model, outside of it.",
                where="step_fn",
                found=f"input {k}, by way of {_names(infos)}",
                expected="memory that is all inside of the model: traces do not follow a way around it",
                fix=_ADVICE,
            )
    (read,) = loss
    groups = plan.traced if plan.signal == "past" else ()
    followed = {plan.transitions[g].group.path_of_each_state[s] for g in groups for s in plan.live[g]}
    if lost := [info for info in read if info.path not in followed]:
        raise LearnerError(
            "The loss reads the previous value of a hidden state beside the learner's step.",
            where="step_fn",
            found=_names(lost),
            expected="new states only, or previous ones that the traces of this learner follow",
            fix=f"let the model return what is read; {_ADVICE}",
        )
    return bool(read)


def refuse_reads(plan: Plan, program: StatefulProgram) -> None:
    """Refuse losses of a window that read hidden states where it begins."""
    losses, *_ = _read(program, {id(info.state): info for info in plan.graph.module_info.hidden})
    if infos := list(dict.fromkeys(info for of_leaf in losses for info in of_leaf)):
        raise LearnerError(
            "The losses of a window read hidden states as they were before it.",
            where="step_fn, with chunk_size",
            found=_names(infos),
            expected="losses, and inputs of the learner, that follow from the states by the learner's steps alone",
            fix=f"leave chunk_size out, and let the model return what is read; {_ADVICE}",
        )


def warn_of_foreign_parameters(step: StatefulProgram) -> None:
    """Warn where the loss has derivatives by parameters that no learner knows, and that so get no gradient."""
    foreign = {id(s): s for s in step.others if isinstance(s, brainstate.ParamState)}
    if foreign and (found := _read(step, foreign)[0][0]):
        shapes = (", ".join(describe(v) for v in jax.tree.leaves(s.value)) for s in found)
        warnings.warn(
            f"step_fn uses {len(found)} parameters that are not part of the learner's model ({'; '.join(shapes)}): "
            "they get no gradient, and are not learnt. Make them part of the model, or put jax.lax.stop_gradient "
            "around them.",
            CompilationWarning,
            stacklevel=users_level(),
        )


def _read(function: StatefulProgram, states: Mapping[int, Any]) -> list[list[list[Any]]]:
    """For each leaf of each part of a function's output, what `states` holds for those that it has derivatives by.

    Parameters
    ----------
    states : mapping
        id of a state -> anything.
    """
    program, outputs, variables, _ = function.traced
    known = [(states[id(s)], own) for s, own in zip(function.states, variables, strict=True) if id(s) in states]
    found = influence(program.eqns, {v: 1 << i for i, (_, own) in enumerate(known) for v in own})

    def of(v: Any) -> list[Any]:
        bits = 0 if isinstance(v, Literal) else found.get(v, 0)
        return [value for i, (value, _) in enumerate(known) if bits >> i & 1]

    return [[of(v) for v in part] for part in outputs]


def _names(infos: Iterable[StateInfo]) -> str:
    return ", ".join(".".join(map(str, info.path)) for info in infos)
