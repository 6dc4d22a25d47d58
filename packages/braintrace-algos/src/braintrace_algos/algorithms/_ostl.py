"""OSTL: online spatio-temporal learning."""

from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, CoupledTraceCarry, FactoredCarry


class OSTLRecurrent(OnlineLearner):
    """OSTL for recurrent layers: traces follow a unit's influence on itself through the recurrent matrix too.

    .. math:: e^t = H^t e^{t-1} + F^t \\, ∂y^t/∂w, \\qquad dw = Σ_t L^t e^t

    with H^t the diagonal, unit by unit, of the whole transition ∂h^t/∂h^{t-1}, marked operations included, and
    L^t = ∂l^t/∂h^t the signal at the new states. Exact where the recurrent matrices are diagonal.

    References
    ----------
    Bohnstingl et al., "Online spatio-temporal learning in deep neural networks", IEEE TNNLS 34 (2023).

    Examples
    --------
    >>> OSTLRecurrent.signal
    'state'
    """

    signal = "state"

    def _make_carry(self) -> Carry:
        return CoupledTraceCarry()


class OSTLFeedforward(OnlineLearner):
    """OSTL without temporal terms: the instantaneous product of what came in and what it did.

    .. math:: dw = Σ_t L^t F^t ⊗ x^t

    Nothing is carried from step to step (element-wise parameters excepted, whose exact trace is as small).
    braintrace 0.2.8 leaves a decay of 1e-6 between steps by default, which moves gradients by about that much:
    ``pp_prop`` with ``decay_or_rank=1e-6`` is the same to rounding, and so is 0.2.8 with ``decay_or_rank=0.0`` to this.

    References
    ----------
    Bohnstingl et al., "Online spatio-temporal learning in deep neural networks", IEEE TNNLS 34 (2023).

    Examples
    --------
    >>> OSTLFeedforward.signal
    'state'
    """

    signal = "state"

    def _make_carry(self) -> Carry:
        return FactoredCarry(0.0, 0.0, 1.0, normalise=False)
