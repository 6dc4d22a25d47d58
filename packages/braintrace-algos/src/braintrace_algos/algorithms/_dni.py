"""DNI: decoupled neural interfaces through time."""

from typing import Any

import jax
import jax.numpy as jnp

from braintrace_algos._checks import check_choice, check_window, fixed
from braintrace_algos._errors import LearnerError
from braintrace_algos._learner import OnlineLearner
from braintrace_algos._recording import active_recording
from braintrace_algos.carries import Carry, SyntheticCarry


class DNI(OnlineLearner):
    """Truncated backpropagation that guesses the credit from beyond its window.

    .. math:: \\frac{d}{dθ} \\Big[ Σ_{t=1}^{K} l^t + ĝ(h^K) · h^K \\Big]_{h^0}, \\qquad
              ĝ(h^0) \\to \\frac{d}{dh^0} \\Big[ Σ_{t=1}^{K} l^t + ĝ(h^K) · h^K \\Big]

    The synthetic gradient ĝ is affine in the state of each hidden group and learns from the guess one window later, by
    normalised least mean squares. It starts at zero, where DNI is truncated backpropagation, and survives a reset.

    Gradients come from `etrace_grad`, `etrace_train` and `etrace_stream`, which see the credit at the entry of a window
    and teach ĝ with it. A derivative of a plain call, ``learner(x)`` or ``learner(MultiStepData(xs))``, is refused.

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
        super().__init__(*args, window=window, **fixed(DNI, options, vjp_method="multi-step"))

    def _make_carry(self) -> Carry:
        return SyntheticCarry(self.rate)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """One time step, or a window of them; see `OnlineLearner.update`."""
        outputs = super().update(*args, **kwargs)
        return outputs if active_recording(self) is not None else jax.tree.map(_undifferentiated, outputs)

    def reset_state(self, batch_size: int | None = None) -> None:
        """See `OnlineLearner.reset_state`; the synthetic gradient stays, unless a NaN has spoilt it."""
        learnt = self.etraces.value
        super().reset_state(batch_size)
        sound = jnp.all(jnp.stack([jnp.isfinite(v).all() for v in jax.tree.leaves(learnt)]))
        self.etraces.value = jax.tree.map(lambda old, new: jnp.where(sound, old, new), learnt, self.etraces.value)


@jax.custom_vjp
def _undifferentiated(value: Any) -> Any:
    """The identity, which refuses to be differentiated."""
    return value


def _refuse(_: None, cotangent: Any) -> Any:
    raise LearnerError(
        "The synthetic gradient neither adds its credit to a plain call nor learns from it.",
        where="DNI, under a derivative of learner(...)",
        fix="let etrace_grad or etrace_train call the learner, one step at a time, without chunk_size; "
        "the window is the option `window`",
    )


_undifferentiated.defvjp(lambda value: (value, None), _refuse)
