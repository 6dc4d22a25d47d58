"""Three-factor learning: eligibility traces gated by a modulator."""

import contextlib
from collections.abc import Iterator
from typing import Any

import brainstate
import jax.numpy as jnp

from braintrace_algos._checks import broadcasts, check_choice, describe
from braintrace_algos._errors import LearnerError
from braintrace_algos._learner import OnlineLearner
from braintrace_algos.carries import Carry, ModulatedTraceCarry


class ThreeFactor(OnlineLearner):
    """Eligibility traces that meet a modulator (a reward, a prediction error) instead of the loss's own signal.

    .. math:: dw = Σ_t m^t \\, e^t, \\qquad e^t = D^t e^{t-1} + F^t \\, ∂y^t/∂w

    m^t takes the place of L^t = ∂l^t/∂h^t for the weights that drive hidden states; a scalar reaches every state alike,
    two states that hold one value each for itself.
    All other parameters (readouts) keep the gradient of the loss. Single calls under ``grad`` need a loss that has some
    derivative by the output: for a constant, JAX asks nobody.

    Parameters
    ----------
    modulator : scalar or array
        Standing value until another is given; with 0, the default, only readouts learn. Another is given by assigning
        ``learner.modulator.value``, which works under `jit`, or by ``learner(x, modulator=m)``, which makes m the
        standing value. Its shape stays. An array must broadcast, as in NumPy, to ``(states, *positions)`` of every
        group: one value for each of B samples is of shape (B, 1), and of shape (B,) where a single-sample model is
        mapped over the batch.
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

    def update(self, *args: Any, modulator: Any = None, **kwargs: Any) -> Any:
        """One time step; see `OnlineLearner.update`.

        Parameters
        ----------
        modulator : scalar or array, optional
            The modulator from this step on; broadcasts to the shape of the standing one.

        Raises
        ------
        LearnerError
            If it does not.
        """
        with renewed(self.modulator, modulator):
            return super().update(*args, **kwargs)


@contextlib.contextmanager
def renewed(standing: brainstate.State, modulator: Any) -> Iterator[None]:
    """Make `modulator` the standing one, unless it is None; a call inside that fails leaves the old one.

    Raises
    ------
    LearnerError
        If it does not broadcast to the standing one.
    """
    old = standing.value
    if modulator is not None:
        new = jnp.asarray(modulator, old.dtype)
        if not broadcasts(new.shape, old.shape):
            raise LearnerError(
                "The modulator has another shape than the standing one.",
                where="learner(x, modulator=m)",
                found=describe(new),
                expected=f"a scalar, or a shape that broadcasts to that of {describe(old)}",
                fix=f"begin with one of the shape it will have: compile(..., modulator=jnp.zeros({new.shape}))",
            )
        standing.value = jnp.broadcast_to(new, old.shape)
    try:
        yield
    except BaseException:
        standing.value = old
        raise
