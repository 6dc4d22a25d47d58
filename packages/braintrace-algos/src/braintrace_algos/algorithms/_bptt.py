"""Backpropagation through time behind the interface of the online learners."""

from typing import Any

from braintrace_algos._checks import check_window, fixed
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry


class BPTT(OnlineLearner):
    """Backpropagation through the whole sequence that one `etrace_grad` call is given.

    The reference that the online learners are compared with: nothing is carried from call to call, nothing is left
    out within one, and memory grows with the length of the sequence.

    Examples
    --------
    >>> BPTT.__mro__[1].__name__
    'OnlineLearner'
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **fixed(BPTT, options, vjp_method="multi-step", window=None))

    def _make_carry(self) -> Carry:
        return Carry()


class TBPTT(OnlineLearner):
    """Backpropagation through time, truncated at windows of `window` steps.

    Parameters
    ----------
    window : int
    **options
        Of `OnlineLearner`.

    References
    ----------
    Williams and Peng, Neural Computation 2 (1990).

    Examples
    --------
    >>> TBPTT.__mro__[1].__name__
    'OnlineLearner'
    """

    def __init__(self, *args: Any, window: int, **options: Any):
        check_window(window)
        super().__init__(*args, window=window, **fixed(TBPTT, options, vjp_method="multi-step"))

    def _make_carry(self) -> Carry:
        return Carry()
