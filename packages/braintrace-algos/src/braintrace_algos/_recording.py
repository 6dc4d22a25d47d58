"""How a driver sees the inside of the step that a user's function runs.

A driver asks a user's function for a loss. Somewhere inside, the function calls the learner. While a `Recording` is
active, that call runs with the driver's weights and perturbations and leaves in the recording what the
carry needs to know of it.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from ._plan import Operands, Perturbations, Plan


class Recording:
    """One call of a learner, seen by a driver.

    Attributes
    ----------
    learner : object
        Calls of other learners are not recorded.
    plan, weights, perturbations, steps
        What the step is run with; see `run_step`.
    tape : list
        What the carry observed, one entry for each call.
    """

    def __init__(self, learner: Any, plan: Plan, weights: Operands, perturbations: Perturbations, steps: int):
        self.learner, self.plan, self.weights, self.perturbations = learner, plan, weights, perturbations
        self.steps = steps
        self.tape: list[Any] = []


_active: contextvars.ContextVar[Recording | None] = contextvars.ContextVar("braintrace_recording", default=None)


@contextlib.contextmanager
def recording(
    learner: Any, plan: Plan, weights: Operands, perturbations: Perturbations, steps: int
) -> Iterator[Recording]:
    """Record the calls of `learner` inside the block."""
    record = Recording(learner, plan, weights, perturbations, steps)
    token = _active.set(record)
    try:
        yield record
    finally:
        _active.reset(token)


_weighed: contextvars.ContextVar[tuple[Any, Any]] = contextvars.ContextVar("braintrace_weighed", default=(None, None))


@contextlib.contextmanager
def weighing(learner: Any, scales: Any) -> Iterator[None]:
    """Let windows of `learner` know the weights of their losses, for signals that do not come from these."""
    token = _weighed.set((learner, scales))
    try:
        yield
    finally:
        _weighed.reset(token)


def step_weights(learner: Any) -> Any:
    """The weights of the losses of a window of `learner`, or None if they are not known."""
    of, scales = _weighed.get()
    return scales if of is learner else None


def active_recording(learner: Any) -> Recording | None:
    """The recording that a call of `learner` belongs to."""
    record = _active.get()
    return record if record is not None and record.learner is learner else None
