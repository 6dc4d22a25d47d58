"""Three-factor learning: eligibility traces gated by a modulator."""

from typing import Any

import brainstate
import jax.numpy as jnp

from braintrace_algos._checks import check_choice
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, ModulatedTraceCarry


class ThreeFactor(OnlineLearner):
    """Eligibility traces that meet a modulator (a reward, a prediction error) instead of the loss's own signal.

    .. math:: dw = Σ_t m^t \\, e^t, \\qquad e^t = D^t e^{t-1} + F^t \\, ∂y^t/∂w

    m^t takes the place of L^t = ∂l^t/∂h^t for the weights that drive hidden states; a scalar reaches every state alike.
    All other parameters (readouts) keep the gradient of the loss.

    Parameters
    ----------
    modulator : scalar or array
        Standing value until another is given: by assigning ``learner.modulator.value``, which works under `jit`, or by
        ``learner(x, modulator=m)``, which makes m the standing value.
    **options
        Of `OnlineLearner`.

    References
    ----------
    Frémaux and Gerstner, "Neuromodulated spike-timing-dependent plasticity, and theory of three-factor learning
    rules", Frontiers in Neural Circuits 9 (2016).

    Examples
    --------
    >>> ThreeFactor.signal
    'state'
    """

    signal = "state"

    def __init__(self, *args: Any, modulator: Any = 0.0, **options: Any):
        check_choice("vjp_method", options.get("vjp_method", "single-step"), ("single-step",))
        self.modulator = brainstate.ShortTermState(jnp.asarray(modulator, jnp.result_type(float)))
        super().__init__(*args, **options)

    def _make_carry(self) -> Carry:
        return ModulatedTraceCarry(self.modulator)

    def update(self, *args: Any, modulator: Any = None) -> Any:
        """One time step; see `OnlineLearner.update`.

        Parameters
        ----------
        modulator : scalar or array, optional
            The modulator from this step on.
        """
        if modulator is not None:
            old = self.modulator.value
            self.modulator.value = jnp.broadcast_to(jnp.asarray(modulator, old.dtype), old.shape)
        return super().update(*args)
