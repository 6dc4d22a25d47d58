"""The default surrogate gradient of spiking readouts."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def triangular_spike(v: jax.Array) -> jax.Array:
    r"""Spike where `v` exceeds zero, with a triangular pseudo-derivative (Bellec et al. 2018).

    .. math:: s = H(v), \qquad \frac{\partial s}{\partial v} := 0.3 \max(0, 1 - |v|)

    Parameters
    ----------
    v : array
        Distance to the threshold, in units of the threshold.

    Returns
    -------
    array of the same shape and type, zeros and ones

    References
    ----------
    G. Bellec et al., Long short-term memory and learning-to-learn in networks of spiking neurons, NeurIPS
    2018, arXiv:1803.09574.

    Examples
    --------
    >>> import jax
    >>> triangular_spike(jax.numpy.array([-0.5, 0.5])).tolist(), jax.grad(triangular_spike)(0.5).item()
    ([0.0, 1.0], 0.15)
    """
    return jnp.asarray(v > 0, jnp.result_type(v))


@triangular_spike.defjvp
def _(primals, tangents):
    (v,), (dv,) = primals, tangents
    return triangular_spike(v), 0.3 * jnp.maximum(0, 1 - abs(v)) * dv
