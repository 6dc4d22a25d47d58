"""Populations of neurons without weights, with the parameters of the neuromorphic intermediate representation."""

from collections.abc import Callable
from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

from braintrace_nn._checks import describe, require_states
from braintrace_nn._errors import ConfigurationError
from braintrace_nn._init import ZEROS, Initializer, Size, as_size, require_broadcast
from braintrace_nn._stateful import StatefulLayer
from braintrace_nn._surrogate import triangular_spike


def seconds(time: Any) -> Any:
    """A time as a number of seconds; plain numbers are seconds already."""
    return time.to_decimal(u.second) if hasattr(time, "unit") else time


class Population(StatefulLayer):
    """Base class: neurons that integrate an input of their own shape, each with its own parameters.

    A subclass names its parameters in ``parameter_names``, times first.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    state_init : callable, array or number
        Initial potential; synaptic currents start at zero.
    name : str, optional
    **parameters
        Numbers or arrays that broadcast to `size`; times in seconds or with a unit.
    """

    parameter_names: ClassVar[tuple[str, ...]]
    I: brainstate.HiddenState
    V: brainstate.HiddenState
    tau: np.ndarray
    tau_syn: np.ndarray
    tau_mem: np.ndarray
    r: np.ndarray
    v_leak: np.ndarray
    w_in: np.ndarray

    def __init__(self, size: Size, state_init: Initializer, name: str | None, **parameters: Any):
        size = as_size(size, "size")
        super().__init__(size, size, state_init=state_init, name=name)
        for key, value in parameters.items():
            value = np.asarray(seconds(value))
            value = value if value.dtype.kind == "f" else value.astype("float32")
            require_broadcast(key, value.shape, size)
            setattr(self, key, np.broadcast_to(value, size).copy())

    def initial(self, name: str, batch_size: int | None) -> Any:
        """The initial potential; zero for a current."""
        V = super().initial(name, batch_size)
        return V if name == "V" else 0 * V

    def step_in_seconds(self) -> np.ndarray:
        """The time step of the environment."""
        dt = brainstate.environ.get("dt", None)
        if dt is None:
            raise ConfigurationError(
                "There is no time step.",
                where=describe(self),
                fix="set it, for instance by brainstate.environ.set(dt=1.0 * saiunit.ms); plain numbers are seconds",
            )
        return np.asarray(seconds(dt), "float64")

    def keep(self, tau: np.ndarray, dtype: Any) -> jax.Array:
        """exp(-dt/tau) for a time constant in seconds."""
        return jnp.asarray(np.exp(-self.step_in_seconds() / tau), dtype)

    def relaxed(self, V: Any, current: Any) -> Any:
        """The membrane after a step of constant current."""
        r, v_leak = jnp.asarray(self.r, V.dtype), jnp.asarray(self.v_leak, V.dtype)
        limit = v_leak + r * current
        tau = self.tau_mem if "I" in self.state_names else self.tau
        return limit + (V - limit) * self.keep(tau, V.dtype)

    def received(self, I: Any, x: Any) -> Any:
        """The synaptic current after a step of constant input."""
        limit = jnp.asarray(self.w_in, I.dtype) * x
        return limit + (I - limit) * self.keep(self.tau_syn, I.dtype)

    def output(self, V: Any) -> Any:
        """What a population with these potentials gives: the potentials."""
        return V

    def after_reset(self, V: Any) -> Any:
        """The potentials with which a step begins."""
        return V

    def update(self, x: Any) -> Any:
        """Advance by one step; input and output have shape `size` or (B, \\*size)."""
        x, *current, V = self.read(x)
        if current:
            x = self.I.value = self.received(current[0], x)
        self.V.value = self.relaxed(self.after_reset(V), x)
        return self.output(self.V.value)

    def last_output(self) -> Any:
        """The output of the step before."""
        return self.output(*(state.value for state in require_states(self, ("V",))))


class Spiking(Population):
    """Base class of populations that spike and are reset to a potential."""

    v_threshold: np.ndarray
    v_reset: np.ndarray

    def __init__(self, size: Size, spk_fun: Callable, state_init: Initializer, name: str | None, **parameters: Any):
        super().__init__(size, state_init, name, **parameters)
        self.spk_fun = spk_fun

    def output(self, V: Any) -> Any:
        """Spikes of neurons with these potentials."""
        threshold, reset = jnp.asarray(self.v_threshold, V.dtype), jnp.asarray(self.v_reset, V.dtype)
        return self.spk_fun((V - threshold) / (threshold - reset))

    def after_reset(self, V: Any) -> Any:
        """Potentials of which those above the threshold are reset; the gradient sees that through the spike only."""
        return V - (jax.lax.stop_gradient(V) - jnp.asarray(self.v_reset, V.dtype)) * self.output(V)


class LI(Population):
    r"""Leaky integrators.

    .. math:: \tau \dot V = v_{leak} - V + R\, x

    solved exactly for an input that is constant over a step. One hidden group of one state; weights before it are
    exact.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    tau : quantity or number
        Time constant, with a unit or in seconds; this and all others one number or one per neuron.
    r, v_leak : number or array
        Resistance and resting potential, 1 and 0 by default.
    state_init : callable, array or number
        Initial potential. Zero by default.
    name : str, optional

    Attributes
    ----------
    V : HiddenState
        Potential and output, shape `size` or (B, \*size).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> population = LI(2, tau=10.0 * u.ms)
    >>> population.init_state()
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     population(jnp.ones(2)).tolist()
    [0.09516, 0.09516]
    """

    state_names: ClassVar[tuple[str, ...]] = ("V",)
    parameter_names: ClassVar[tuple[str, ...]] = ("tau", "r", "v_leak")

    def __init__(
        self,
        size: Size,
        tau: Any = 0.01,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        super().__init__(size, state_init, name, tau=tau, r=r, v_leak=v_leak)


class LIF(Spiking):
    r"""Leaky integrate-and-fire neurons.

    .. math::

        \tau \dot V = v_{leak} - V + R\, x, \qquad s = H(V - v_{threshold}), \qquad V \to v_{reset} \text{ where } s = 1

    solved exactly for an input that is constant over a step; the reset comes at the beginning of the next one. One
    hidden group of one state; weights before it are exact unless the spikes come back.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    tau, r, v_leak
        As in `LI`.
    v_threshold, v_reset : number or array
        Threshold and reset potential, 1 and 0 by default.
    spk_fun : callable
        H, a step function with a surrogate gradient, of (V - v_threshold) / (v_threshold - v_reset).
    state_init : callable, array or number
        Initial potential. Zero by default.
    name : str, optional

    Attributes
    ----------
    V : HiddenState
        Potential before the reset, shape `size` or (B, \*size).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> population = LIF(2, tau=10.0 * u.ms)
    >>> population.init_state()
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     population(jnp.array([1.0, 20.0])).tolist()
    [0.0, 1.0]
    """

    state_names: ClassVar[tuple[str, ...]] = ("V",)
    parameter_names: ClassVar[tuple[str, ...]] = ("tau", "r", "v_leak", "v_threshold", "v_reset")

    def __init__(
        self,
        size: Size,
        tau: Any = 0.01,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        spk_fun: Callable = triangular_spike,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        membrane = {"tau": tau, "r": r, "v_leak": v_leak}
        super().__init__(size, spk_fun, state_init, name, **membrane, v_threshold=v_threshold, v_reset=v_reset)


class CubaLI(Population):
    r"""Leaky integrators of a synaptic current.

    .. math:: \tau_{syn} \dot I = -I + w_{in}\, x, \qquad \tau_{mem} \dot V = v_{leak} - V + R\, I

    each solved exactly over a step, the current first. One hidden group of I and V; weights before it are exact.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    tau_syn, tau_mem : quantity or number
        Time constants, with a unit or in seconds.
    r, v_leak
        As in `LI`.
    w_in : number or array
        Weight of the input, 1 by default.
    state_init : callable, array or number
        Initial potential. Zero by default, as is the current.
    name : str, optional

    Attributes
    ----------
    I, V : HiddenState
        Current and potential, shape `size` or (B, \*size).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> population = CubaLI(2, tau_syn=5.0 * u.ms, tau_mem=10.0 * u.ms)
    >>> population.init_state(3)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     population(jnp.ones((3, 2))).shape
    (3, 2)
    """

    state_names: ClassVar[tuple[str, ...]] = ("I", "V")
    parameter_names: ClassVar[tuple[str, ...]] = ("tau_syn", "tau_mem", "r", "v_leak", "w_in")

    def __init__(
        self,
        size: Size,
        tau_syn: Any = 0.005,
        tau_mem: Any = 0.01,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        w_in: Any = 1.0,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        super().__init__(size, state_init, name, tau_syn=tau_syn, tau_mem=tau_mem, r=r, v_leak=v_leak, w_in=w_in)


class CubaLIF(Spiking):
    r"""Leaky integrate-and-fire neurons with a synaptic current.

    .. math:: \tau_{syn} \dot I = -I + w_{in}\, x, \qquad \tau_{mem} \dot V = v_{leak} - V + R\, I

    with the spikes and the reset of `LIF`; each equation is solved exactly over a step, the current first. One hidden
    group of I and V; weights before it are exact unless the spikes come back.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    tau_syn, tau_mem, r, v_leak, w_in
        As in `CubaLI`.
    v_threshold, v_reset, spk_fun
        As in `LIF`.
    state_init : callable, array or number
        Initial potential. Zero by default, as is the current.
    name : str, optional

    Attributes
    ----------
    I, V : HiddenState
        Current and potential before the reset, shape `size` or (B, \*size).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> population = CubaLIF(2, tau_syn=5.0 * u.ms, tau_mem=10.0 * u.ms)
    >>> population.init_state(3)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     population(jnp.ones((3, 2))).shape
    (3, 2)
    """

    state_names: ClassVar[tuple[str, ...]] = ("I", "V")
    parameter_names: ClassVar[tuple[str, ...]] = (
        *("tau_syn", "tau_mem", "r", "v_leak"),
        *("v_threshold", "v_reset", "w_in"),
    )

    def __init__(
        self,
        size: Size,
        tau_syn: Any = 0.005,
        tau_mem: Any = 0.01,
        r: Any = 1.0,
        v_leak: Any = 0.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        w_in: Any = 1.0,
        spk_fun: Callable = triangular_spike,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        membrane = {"tau_syn": tau_syn, "tau_mem": tau_mem, "r": r, "v_leak": v_leak, "w_in": w_in}
        super().__init__(size, spk_fun, state_init, name, **membrane, v_threshold=v_threshold, v_reset=v_reset)


class IF(Spiking):
    r"""Integrate-and-fire neurons without a leak.

    .. math:: \dot V = R\, x, \qquad s = H(V - v_{threshold}), \qquad V \to v_{reset} \text{ where } s = 1

    with the reset of `LIF`, time in seconds. One hidden group of one state; weights before it are exact unless the
    spikes come back.

    Parameters
    ----------
    size : int or tuple of int
        Shape of the population.
    r : number or array
        Inverse capacity, per second; 1 by default.
    v_threshold, v_reset, spk_fun, state_init, name
        As in `LIF`.

    Attributes
    ----------
    V : HiddenState
        Potential before the reset, shape `size` or (B, \*size).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> population = IF(2, r=1000.0)
    >>> population.init_state()
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     population(jnp.array([0.5, 1.5])).tolist()
    [0.0, 1.0]
    """

    state_names: ClassVar[tuple[str, ...]] = ("V",)
    parameter_names: ClassVar[tuple[str, ...]] = ("r", "v_threshold", "v_reset")

    def __init__(
        self,
        size: Size,
        r: Any = 1.0,
        v_threshold: Any = 1.0,
        v_reset: Any = 0.0,
        spk_fun: Callable = triangular_spike,
        state_init: Initializer = ZEROS,
        name: str | None = None,
    ):
        super().__init__(size, spk_fun, state_init, name, r=r, v_threshold=v_threshold, v_reset=v_reset)

    def relaxed(self, V: Any, current: Any) -> Any:
        """The membrane after a step of constant current."""
        return V + jnp.asarray(self.r * self.step_in_seconds(), V.dtype) * current
