"""How a driver sees the inside of the step that a user's function runs.

A driver asks a user's function for a loss. Somewhere inside, the function calls the learner. While a `Recording` is
active, that call runs with the driver's weights and perturbations and leaves in the recording what the
carry needs to know of it.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

from braintrace_primitives._jax_compat import trace_state

from ._errors import LearnerError
from ._outside import Entry, Untouched
from ._plan import Operands, Perturbations, Plan


class Recording:
    """One call of a learner, seen by a driver.

    Attributes
    ----------
    learner : object
        Calls of other learners are not recorded.
    plan, weights, perturbations, steps
        What the step is run with; see `run_step`.
    entry : Entry or None
        The hidden states that the step starts from; None where it starts from what they are.
    tape : list
        What the carry observed, one entry for each call.
    """

    def __init__(
        self,
        learner: Any,
        plan: Plan,
        weights: Operands,
        perturbations: Perturbations,
        steps: int,
        entry: Entry | None,
    ):
        self.learner, self.plan, self.weights, self.perturbations = learner, plan, weights, perturbations
        self.steps, self.entry, self._trace = steps, entry, trace_state()
        self.tape: list[Any] = []

    def require_direct(self) -> None:
        """Refuse a call from inside of a transformation, of which nothing could be seen from here."""
        if trace_state() != self._trace:
            raise LearnerError(
                "step_fn calls the learner from inside of a JAX transformation.",
                where="step_fn",
                found="a call under jit, vmap, checkpoint, a loop, or the like",
                expected="a direct call of the learner; the driver compiles step_fn, and maps nothing",
                fix="take the transformation off; map a model over a batch by compile(..., batch_size=B, vmap=True)",
            )


_active: contextvars.ContextVar[Recording | None] = contextvars.ContextVar("braintrace_recording", default=None)


@contextlib.contextmanager
def recording(
    learner: Any, plan: Plan, weights: Operands, perturbations: Perturbations, steps: int, entry: Entry | None = None
) -> Iterator[Recording]:
    """Record the calls of `learner` inside the block."""
    record = Recording(learner, plan, weights, perturbations, steps, entry)
    token = _active.set(record)
    try:
        yield record
    finally:
        _active.reset(token)


class WindowCall(NamedTuple):
    """What a driver tells a window of a learner.

    Attributes
    ----------
    scales : array, optional
        Weights of its losses, for signals that do not come from these.
    untouched : Untouched, optional
    """

    scales: Any = None
    untouched: Untouched | None = None


_window: contextvars.ContextVar[tuple[Any, WindowCall]] = contextvars.ContextVar(
    "braintrace_window", default=(None, WindowCall())
)


@contextlib.contextmanager
def window_call(learner: Any, call: WindowCall) -> Iterator[None]:
    """Tell windows of `learner` what the driver around them knows."""
    token = _window.set((learner, call))
    try:
        yield
    finally:
        _window.reset(token)


def active_window_call(learner: Any) -> WindowCall:
    """What is known of a window of `learner`."""
    of, call = _window.get()
    return call if of is learner else WindowCall()


def active_recording(learner: Any) -> Recording | None:
    """The recording that a call of `learner` belongs to."""
    record = _active.get()
    return record if record is not None and record.learner is learner else None
