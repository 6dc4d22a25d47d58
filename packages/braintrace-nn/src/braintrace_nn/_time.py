"""Time constants against the time step of the environment."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import saiunit as u

from ._checks import describe
from ._errors import ConfigurationError


def in_steps(module: Any, tau: Any, dtype: Any) -> jax.Array:
    """dt/tau as a plain number: the part of a time constant that one step of the environment takes."""
    dt = brainstate.environ.get("dt", None)
    ratio = None if dt is None else dt / tau
    if ratio is None or not u.get_dim(ratio).is_dimensionless:
        raise ConfigurationError(
            "The time step does not fit the time constant.",
            where=describe(module),
            found=f"dt={dt}, tau={tau}",
            expected="dt and tau in units of time, or both plain numbers",
            fix="set it, for instance by brainstate.environ.set(dt=1.0 * saiunit.ms)",
        )
    return jnp.asarray(u.get_mantissa(u.maybe_decimal(ratio)), dtype)


def leak(module: Any, tau: Any, dtype: Any) -> jax.Array:
    """Fraction exp(-dt/tau) of a memory that a time step of the environment's dt leaves."""
    return jnp.exp(-in_steps(module, tau, jnp.result_type(dtype, jnp.float32))).astype(dtype)
