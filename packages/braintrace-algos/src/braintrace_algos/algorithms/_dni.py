"""DNI: decoupled neural interfaces through time."""

from typing import Any

from braintrace_algos._checks import check_choice, check_window
from braintrace_algos._errors import LearnerError
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, SyntheticCarry


class DNI(OnlineLearner):
    """Truncated backpropagation that guesses the credit from beyond its window.

    .. math:: \\frac{d}{dθ} \\Big[ Σ_{t=1}^{K} l^t + ĝ(h^K) · h^K \\Big]_{h^0}, \\qquad
              ĝ(h^0) \\to \\frac{d}{dh^0} \\Big[ Σ_{t=1}^{K} l^t + ĝ(h^K) · h^K \\Big]

    The synthetic gradient ĝ is affine in the state of each hidden group and learns from the guess one window later, by
    normalised least mean squares. It starts at zero, where DNI is truncated backpropagation, and survives a reset.

    Parameters
    ----------
    window : int
        K.
    rate : float
        Learning rate of ĝ, in (0, 2).
    **options
        Of `OnlineLearner`; ``vmap=True`` is refused, since all samples share ĝ.

    References
    ----------
    Jaderberg et al., "Decoupled neural interfaces using synthetic gradients", ICML 2017.

    Examples
    --------
    >>> DNI.__mro__[1].__name__
    'OnlineLearner'
    """

    def __init__(self, *args: Any, window: int = 1, rate: float = 0.5, mapped: bool = False, **options: Any):
        check_window(window)
        if not isinstance(rate, (int, float)) or not 0.0 < rate < 2.0:
            raise LearnerError("`rate` is out of range.", found=repr(rate), expected="a number in (0, 2)")
        if mapped:
            check_choice("vmap", True, ("False",))
        self.rate = rate
        super().__init__(*args, **{**options, "vjp_method": "multi-step", "window": window})

    def _make_carry(self) -> Carry:
        return SyntheticCarry(self.rate)

    def reset_state(self, batch_size: int | None = None) -> None:
        """See `OnlineLearner.reset_state`; the synthetic gradient stays."""
        learnt = self.etraces.value
        super().reset_state(batch_size)
        self.etraces.value = learnt
