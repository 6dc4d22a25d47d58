"""Step functions with surrogate gradients."""

import functools
import math

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


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def sigmoid_spike(v: jax.Array, alpha: float = 4.0) -> jax.Array:
    r"""Spike where `v` exceeds zero, with the derivative of a sigmoid (Zenke and Vogels 2021).

    .. math:: s = H(v), \qquad \frac{\partial s}{\partial v} := \alpha\, \sigma(\alpha v) (1 - \sigma(\alpha v))

    Parameters
    ----------
    v : array
        Distance to the threshold, in units of the threshold.
    alpha : float
        Slope of the sigmoid; a layer takes another one as ``functools.partial(sigmoid_spike, alpha=10.0)``.

    Returns
    -------
    array of the same shape and type, zeros and ones

    References
    ----------
    F. Zenke and T. P. Vogels, The remarkable robustness of surrogate gradient learning for instilling complex function
    in spiking neural networks, Neural Computation 33, 2021.

    Examples
    --------
    >>> import jax
    >>> sigmoid_spike(jax.numpy.array([-0.5, 0.5])).tolist(), jax.grad(sigmoid_spike)(0.0).item()
    ([0.0, 1.0], 1.0)
    """
    return jnp.asarray(v > 0, jnp.result_type(v))


@sigmoid_spike.defjvp
def _(alpha, primals, tangents):
    (v,), (dv,) = primals, tangents
    p = jax.nn.sigmoid(alpha * v)
    return sigmoid_spike(v, alpha), alpha * p * (1 - p) * dv


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def arctan_spike(v: jax.Array, alpha: float = 2.0) -> jax.Array:
    r"""Spike where `v` exceeds zero, with the derivative of an arc tangent (Fang et al. 2021).

    .. math::

        s = H(v), \qquad
        \frac{\partial s}{\partial v} := \frac{\alpha}{2} \frac{1}{1 + \left(\frac{\pi}{2} \alpha v\right)^2}

    Parameters
    ----------
    v : array
        Distance to the threshold, in units of the threshold.
    alpha : float
        Twice the derivative at the threshold.

    Returns
    -------
    array of the same shape and type, zeros and ones

    References
    ----------
    W. Fang et al., Incorporating learnable membrane time constant to enhance learning of spiking neural networks, ICCV
    2021, arXiv:2007.05785.

    Examples
    --------
    >>> import jax
    >>> arctan_spike(jax.numpy.array([-0.5, 0.5])).tolist(), jax.grad(arctan_spike)(0.0).item()
    ([0.0, 1.0], 1.0)
    """
    return jnp.asarray(v > 0, jnp.result_type(v))


@arctan_spike.defjvp
def _(alpha, primals, tangents):
    (v,), (dv,) = primals, tangents
    return arctan_spike(v, alpha), alpha / 2 / (1 + (math.pi / 2 * alpha * v) ** 2) * dv


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def box_spike(v: jax.Array, width: float = 1.0) -> jax.Array:
    r"""Spike where `v` exceeds zero, with a rectangular pseudo-derivative (Wu et al. 2018).

    .. math:: s = H(v), \qquad \frac{\partial s}{\partial v} := \frac{1}{a} \left[ |v| < \frac{a}{2} \right]

    Parameters
    ----------
    v : array
        Distance to the threshold, in units of the threshold.
    width : float
        Width a of the rectangle; its area is 1.

    Returns
    -------
    array of the same shape and type, zeros and ones

    References
    ----------
    Y. Wu et al., Spatio-temporal backpropagation for training high-performance spiking neural networks, Frontiers in
    Neuroscience 12, 2018.

    Examples
    --------
    >>> import jax
    >>> box_spike(jax.numpy.array([-0.5, 0.5])).tolist(), jax.grad(box_spike)(0.2).item()
    ([0.0, 1.0], 1.0)
    """
    return jnp.asarray(v > 0, jnp.result_type(v))


@box_spike.defjvp
def _(width, primals, tangents):
    (v,), (dv,) = primals, tangents
    return box_spike(v, width), jnp.where(abs(v) < width / 2, 1 / width, 0).astype(dv.dtype) * dv
