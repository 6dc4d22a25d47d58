"""How a driver sees the inside of the step that a user's function runs.

A driver asks a user's function for a loss. Somewhere inside, the function calls the learner. While a `Recording` is
active, that call runs with the driver's weights and perturbations and leaves its local derivatives in the recording.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from ._plan import Operands
from ._step import Derivatives


class Recording:
    """One call of a learner, seen by a driver.

    Attributes
    ----------
    learner : object
        Calls of other learners are not recorded.
    weights, previous, deltas
        What the step is run with; see `run_step`.
    derivatives : list of Derivatives
        One for each call.
    """

    def __init__(self, learner: Any, weights: Operands, previous: list[Any], deltas: list[Any]):
        self.learner, self.weights, self.previous, self.deltas = learner, weights, previous, deltas
        self.derivatives: list[Derivatives] = []


_active: contextvars.ContextVar[Recording | None] = contextvars.ContextVar("braintrace_recording", default=None)


@contextlib.contextmanager
def recording(learner: Any, weights: Operands, previous: list[Any], deltas: list[Any]) -> Iterator[Recording]:
    """Record the calls of `learner` inside the block."""
    record = Recording(learner, weights, previous, deltas)
    token = _active.set(record)
    try:
        yield record
    finally:
        _active.reset(token)


def active_recording(learner: Any) -> Recording | None:
    """The recording that a call of `learner` belongs to."""
    record = _active.get()
    return record if record is not None and record.learner is learner else None
