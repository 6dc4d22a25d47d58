"""pp-prop (ES-D-RTRL): the eligibility trace as the product of a presynaptic and a postsynaptic factor."""

from typing import Any

import numpy as np

from braintrace_algos._checks import is_count
from braintrace_algos._errors import LearnerError
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, FactoredCarry


class pp_prop(OnlineLearner):
    """Online learning with two exponentially smoothed factors in place of each trace.

    .. math:: ε_x^t = α_x ε_x^{t-1} + x^t, \\qquad
              ε_f^t = α_f D^t ε_f^{t-1} + (1 - α_f) F^t, \\qquad
              dw = Σ_t L^t · \\frac{ε_f^t}{1 - α_f^t} ⊗ ε_x^t

    with L^t = ∂l^t/∂h^t the signal at the new states. Memory is B · (I + O · S) numbers for each operation with I
    inputs and O outputs: linear in the number of units. The index of an embedding stands for a row of ones and zeros. A
    bias, which no input comes in by, meets ε_f alone: give the input a one for a bias that is filtered. An operation of
    your own is refused where the gradient of its weights is not shown to be affine in its input, or in what its trace
    rule says may be added up (`TraceRule.addend`). An approximation; with α = 0 only the current step counts.
    With ``vjp_method="multi-step"`` a window is differentiated as a whole and the factors stand for what came before.

    Parameters
    ----------
    decay_or_rank : float, int or pair of them
        α in [0, 1), or a rank r ≥ 1 that means α = (r - 1) / (r + 1); one for both sides, or (input, output).
    **options
        Of `OnlineLearner`.

    References
    ----------
    Wang et al., "Model-agnostic linear-memory online learning in spiking neural networks" (BrainScale), ES-D-RTRL.

    Examples
    --------
    >>> decay_of(0.9), decay_of(19)
    (0.9, 0.9)
    """

    signal = "state"

    def __init__(self, *args: Any, decay_or_rank: Any, **options: Any):
        pair = decay_or_rank if isinstance(decay_or_rank, (tuple, list)) else (decay_or_rank, decay_or_rank)
        if len(pair) != 2:
            raise LearnerError(
                "`decay_or_rank` takes one value, or a pair.", found=repr(decay_or_rank), expected="(input, output)"
            )
        self.decay_x, self.decay_f = (decay_of(value) for value in pair)
        super().__init__(*args, **options)

    def _make_carry(self) -> Carry:
        return FactoredCarry(self.decay_x, self.decay_f, 1.0 - self.decay_f, normalise=True)


def decay_of(value: Any) -> float:
    """The decay α that a decay or an integer rank r stands for, (r - 1) / (r + 1)."""
    if is_count(value):
        return float((value - 1) / (value + 1))
    if isinstance(value, (float, np.floating)) and 0.0 <= value < 1.0:
        return float(value)
    raise LearnerError(
        "`decay_or_rank` is neither a decay nor a rank.",
        found=repr(value),
        expected="a float in [0, 1), or an int of at least 1",
    )


ES_D_RTRL = pp_prop
IODimVjpAlgorithm = pp_prop
