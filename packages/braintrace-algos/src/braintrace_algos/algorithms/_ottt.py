"""OTTT: online training through time."""

from typing import Any

from braintrace_algos._checks import check_decay
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, FactoredCarry


class OTTT(OnlineLearner):
    """A leaky presynaptic trace times the instantaneous postsynaptic factor.

    .. math:: â^t = λ \\, â^{t-1} + x^t, \\qquad dw = Σ_t (L^t F^t) ⊗ â^t

    The temporal dependence through the postsynaptic state is replaced by the leak of the neuron. Exact for a neuron
    that only leaks with λ, without reset. A bias, which no input comes in by, learns by L^t F^t alone, and is not
    exact there: give the input a one for one that is.

    Parameters
    ----------
    decay : float
        λ in [0, 1), the leak of the membrane.
    **options
        Of `OnlineLearner`.

    References
    ----------
    Xiao et al., "Online training through time for spiking neural networks", NeurIPS 2022.

    Examples
    --------
    >>> OTTT.signal
    'state'
    """

    signal = "state"

    def __init__(self, *args: Any, decay: float, **options: Any):
        self.decay = check_decay("decay", decay)
        super().__init__(*args, **options)

    def _make_carry(self) -> Carry:
        return FactoredCarry(self.decay, 0.0, 1.0, normalise=False)
