"""Small helpers around learning signals: low-pass filters and fixed feedback."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ._checks import as_key, check_decay
from ._errors import LearnerError, LearnerTypeError


class GradExpon(brainstate.nn.Module):
    r"""A leaky running sum of gradients.

    .. math:: \bar g^t = α \, \bar g^{t-1} + g^t

    Parameters
    ----------
    grad_shape : pytree
        Arrays, or anything with shape and dtype, structured like the gradients.
    tau_or_decay : float or time
        The decay α in [0, 1); or a time constant τ with a unit, from which α = exp(-dt / τ) with the time step dt of
        ``brainstate.environ``.

    Attributes
    ----------
    gradients : brainstate.State
        The running sum.
    decay : float
        α.

    Raises
    ------
    LearnerError
        If the decay is outside of [0, 1), or τ is not positive.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> smooth = GradExpon({"w": jnp.zeros(2)}, 0.5)
    >>> _ = smooth({"w": jnp.ones(2)})
    >>> smooth({"w": jnp.ones(2)})["w"].tolist()
    [1.5, 1.5]
    """

    def __init__(self, grad_shape: Any, tau_or_decay: Any):
        super().__init__()
        self.decay = _decay_of(tau_or_decay)
        self.gradients = brainstate.ShortTermState(jax.tree.map(jnp.zeros_like, grad_shape))

    def update(self, grads: Any) -> Any:
        """Take in the gradients of one step.

        Parameters
        ----------
        grads : pytree

        Returns
        -------
        pytree
            The running sum.
        """
        self.gradients.value = jax.tree.map(lambda old, g: self.decay * old + g, self.gradients.value, grads)
        return self.gradients.value

    def reset_state(self, *args: Any, **kwargs: Any) -> None:
        """Forget all gradients."""
        self.gradients.value = jax.tree.map(jnp.zeros_like, self.gradients.value)


class KappaFilter(brainstate.ShortTermState):
    r"""A low-pass filter with unit gain.

    .. math:: \bar x^t = κ \, \bar x^{t-1} + (1 - κ) \, x^t

    Parameters
    ----------
    init_value : array
        The filtered value before the first step; shape and dtype of what is filtered.
    kappa : float
        κ in [0, 1); 0 filters nothing.

    Raises
    ------
    LearnerError
        If κ is outside of [0, 1).

    References
    ----------
    Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons" (2020), eq. 4.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> smooth = KappaFilter(jnp.zeros(2), 0.5)
    >>> _ = smooth.update(jnp.ones(2))
    >>> smooth.update(jnp.ones(2)).tolist()
    [0.75, 0.75]
    """

    def __init__(self, init_value: Any, kappa: float):
        super().__init__(init_value)
        self.kappa = check_decay("kappa", kappa)

    def update(self, x: Any) -> Any:
        """Filter the value `x` of one step; returns the filtered value."""
        self.value = self.kappa * self.value + (1 - self.kappa) * x
        return self.value

    def reset_state(self, *args: Any, **kwargs: Any) -> None:
        """Back to zero."""
        self.value = jax.tree.map(jnp.zeros_like, self.value)


class FixedRandomFeedback:
    r"""A random matrix B that sends a signal of the readout back to hidden units, and never learns.

    .. math:: L = y B, \qquad B_{ij} \sim \mathcal N(0, s^2)

    Parameters
    ----------
    n_target, n_layer : int
        Numbers of readout and of hidden units.
    key : jax.Array or int
        A random key, or a seed.
    init_scale : float
        s.

    Attributes
    ----------
    B : array of shape (n_target, n_layer)

    References
    ----------
    Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep learning" (2016).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> feedback = FixedRandomFeedback(3, 8, jax.random.key(0))
    >>> feedback.project(jnp.ones((5, 3))).shape
    (5, 8)
    """

    def __init__(self, n_target: int, n_layer: int, key: Any, init_scale: float = 0.1):
        self.n_target, self.n_layer = n_target, n_layer
        self.B = init_scale * jax.random.normal(as_key("key", key), (n_target, n_layer))

    def project(self, y: Any) -> Any:
        """The signal at the hidden units: `y` of shape (..., n_target) to (..., n_layer).

        Raises
        ------
        LearnerError
            If the last axis of `y` is not n_target.
        """
        if jnp.ndim(y) == 0 or jnp.shape(y)[-1] != self.n_target:
            raise LearnerError(
                "The feedback matrix has another number of readout units.",
                where="FixedRandomFeedback.project(y)",
                found=f"shape {jnp.shape(y)}",
                expected=f"shape (..., {self.n_target})",
            )
        return y @ jax.lax.stop_gradient(self.B)


def _decay_of(tau_or_decay: Any) -> Any:
    """α, from itself or from a time constant."""
    if not hasattr(tau_or_decay, "unit"):
        return check_decay("tau_or_decay", tau_or_decay)
    steps = tau_or_decay / brainstate.environ.get_dt()
    if hasattr(steps, "unit") and not steps.unit.is_unitless:
        raise LearnerTypeError("A time constant needs the unit of the time step.", found=str(tau_or_decay))
    steps = float(getattr(steps, "mantissa", steps))
    if not steps > 0:
        raise LearnerError("A time constant must be positive.", found=str(tau_or_decay))
    return float(jnp.exp(-1 / steps))
