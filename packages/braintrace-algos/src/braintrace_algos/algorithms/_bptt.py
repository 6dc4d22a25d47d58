"""Backpropagation through time behind the interface of the online learners."""

from typing import Any

from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry


class BPTT(OnlineLearner):
    """Backpropagation through the whole sequence that one `etrace_grad` call is given.

    The reference that the online learners are compared with: nothing is carried from call to call, nothing is left
    out within one, and memory grows with the length of the sequence.

    Examples
    --------
    >>> import braintrace_algos
    >>> braintrace_algos.BPTT.__name__
    'BPTT'
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "vjp_method": "multi-step", "window": None})

    def _make_carry(self) -> Carry:
        return Carry()
