"""Time constants against the time step of the environment."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

from ._checks import describe
from ._errors import ConfigurationError


def in_steps(module: Any, tau: Any, dtype: Any) -> jax.Array:
    """dt/tau as a plain number: the part of a time constant that one step of the environment takes."""
    return jnp.asarray(_quotient(module, _time_step(), tau), dtype)


def whole_steps(module: Any, time: Any) -> np.ndarray:
    """time/dt as the nearest integers: the number of steps that a time takes, known before anything is traced."""
    return np.rint(np.asarray(_quotient(module, time, _time_step()), "float64")).astype("int32")


def leak(module: Any, tau: Any, dtype: Any) -> jax.Array:
    """Fraction exp(-dt/tau) of a memory that a time step of the environment's dt leaves."""
    return jnp.exp(-in_steps(module, tau, jnp.result_type(dtype, jnp.float32))).astype(dtype)


def _time_step() -> Any:
    return brainstate.environ.get("dt", None)


def _quotient(module: Any, time: Any, other: Any) -> Any:
    """Quotient of two times, one of which is the time step."""
    ratio = None if time is None or other is None else time / other
    if ratio is None or not u.get_dim(ratio).is_dimensionless:
        tau = other if time is _time_step() else time
        step = "1.0" if u.get_dim(tau).is_dimensionless else "1.0 * saiunit.ms"
        raise ConfigurationError(
            "The time step does not fit the time constant.",
            where=None if module is None else describe(module),
            found=f"dt={_time_step()}, against {tau}",
            expected="both in units of time, or both plain numbers",
            fix=f"set it, for instance by brainstate.environ.set(dt={step})",
        )
    return u.get_mantissa(u.maybe_decimal(ratio))
