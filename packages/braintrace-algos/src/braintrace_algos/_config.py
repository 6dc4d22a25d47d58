"""The axes that span the algorithms, as one immutable value."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ._checks import as_key, check_choice, check_decay, check_steps, check_window, fixed
from ._errors import LearnerError
from ._feedback import random_feedback
from ._learner import OnlineLearner
from .algorithms._three_factor import renewed
from .carries import (
    LARGEST,
    Carry,
    CoupledTraceCarry,
    FactoredCarry,
    FilteredTraceCarry,
    InfluenceCarry,
    ModulatedTraceCarry,
    NeighbourhoodCarry,
    SketchCarry,
    TraceCarry,
    recurrent_groups,
)

_AXES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "factorisation": {
            "per_parameter": "one trace for each weight and state",
            "input_output": "a presynaptic and a postsynaptic factor",
            "influence": "the influence of every parameter on every state",
            "rank_one": "a random product of rank one",
            "none": "nothing from before the window",
        },
        "scope": {
            "diagonal": "position by position, marked operations left out",
            "coupled": "position by position, marked operations included",
            "neighbourhood": "within `order` steps of what a parameter drives",
            "full": "everything",
        },
        "signal": {
            "past": "q^t = dl^t/dh^{t-1} meets the past, the step itself is differentiated as a whole",
            "symmetric": "L^t = dl^t/dh^t meets the trace",
            "random_feedback": "L^t through fixed random readout weights",
            "modulatory": "a modulator in place of L^t",
        },
        "filter": {"none": "no filter", "kappa": "a low-pass filter on the traces of recurrent groups"},
        "schedule": {"per_step": "credit crosses steps through the trace only", "window": "windows of `window` steps"},
    }
)

_LEGAL = {
    "per_parameter": (
        {
            "scope": ("diagonal", "coupled"),
            "signal": ("past",),
            "filter": ("none",),
            "schedule": ("per_step", "window"),
        },
        {"scope": ("diagonal",), "signal": ("symmetric", "random_feedback"), "schedule": ("per_step",)},
        {
            "scope": ("coupled",),
            "signal": ("symmetric", "random_feedback"),
            "filter": ("none",),
            "schedule": ("per_step",),
        },
        {"scope": ("diagonal",), "signal": ("modulatory",), "filter": ("none",), "schedule": ("per_step",)},
    ),
    "input_output": (
        {
            "scope": ("diagonal",),
            "signal": ("symmetric", "random_feedback"),
            "filter": ("none",),
            "schedule": ("per_step",),
        },
        {"scope": ("diagonal",), "signal": ("past",), "filter": ("none",), "schedule": ("window",)},
    ),
    "influence": (
        {"scope": ("full", "neighbourhood"), "signal": ("past",), "filter": ("none",), "schedule": ("window",)},
    ),
    "rank_one": ({"scope": ("full",), "signal": ("past",), "filter": ("none",), "schedule": ("window",)},),
    "none": ({"scope": ("full",), "signal": ("past",), "filter": ("none",), "schedule": ("window",)},),
}


@dataclasses.dataclass(frozen=True)
class ETraceConfig:
    """A point in the space of algorithms, for ``compile(model, config, ...)``.

    Parameters
    ----------
    factorisation : {"per_parameter", "input_output", "influence", "rank_one", "none"}
        What is carried from the past.
    scope : {"diagonal", "coupled", "neighbourhood", "full"}
        Which influence it follows.
    signal : {"past", "symmetric", "random_feedback", "modulatory"}
        What it meets.
    filter : {"none", "kappa"}
    schedule : {"per_step", "window"}
    decay : float or pair, optional
        Of the factors: (input side, output side).
    kappa : float, optional
        Of the filter.
    order : int, optional
        Of the neighbourhood.
    window : int, optional
        Steps in a window.
    key : jax.Array or int, optional
        Of random feedback or of the random product.

    Raises
    ------
    LearnerError
        If a value is not on its axis, the combination is not legal (the message names the legal ones), or a number is
        given that these axes do not use.

    Examples
    --------
    RFLO, random feedback local online learning, is a trace with random feedback:

    >>> import jax
    >>> rflo = ETraceConfig(signal="random_feedback", key=jax.random.key(0))
    >>> print(rflo.describe())
    factorisation  per_parameter    one trace for each weight and state
    scope          diagonal         position by position, marked operations left out
    signal         random_feedback  L^t through fixed random readout weights
    filter         none             no filter
    schedule       per_step         credit crosses steps through the trace only
    """

    factorisation: str = "per_parameter"
    scope: str = "diagonal"
    signal: str = "past"
    filter: str = "none"
    schedule: str = "per_step"
    decay: Any = None
    kappa: float | None = None
    order: int | None = None
    window: int | None = None
    key: Any = None

    def __post_init__(self) -> None:
        for axis, choices in _AXES.items():
            check_choice(axis, getattr(self, axis), tuple(choices))
        legal = _LEGAL[self.factorisation]
        axes = ("scope", "signal", "filter", "schedule")
        if not any(all(getattr(self, axis) in rule.get(axis, _AXES[axis]) for axis in axes) for rule in legal):
            raise LearnerError(
                f"These axes do not go together with factorisation={self.factorisation!r}.",
                where="ETraceConfig",
                found=", ".join(f"{axis}={getattr(self, axis)!r}" for axis in axes),
                expected="\n".join(
                    ", ".join(f"{axis} in {tuple(rule.get(axis, _AXES[axis]))}" for axis in axes) for rule in legal
                ),
            )
        self._require("decay", self.factorisation == "input_output", 'factorisation="input_output"')
        self._require("kappa", self.filter == "kappa", 'filter="kappa"')
        self._require("order", self.scope == "neighbourhood", 'scope="neighbourhood"')
        self._require("window", self.schedule == "window", 'schedule="window"')
        draws = self.signal == "random_feedback" or self.factorisation == "rank_one"
        self._require("key", draws, 'signal="random_feedback", or factorisation="rank_one"')
        if self.decay is not None:
            for value in self.decays:
                check_decay("decay", value)
        if self.kappa is not None:
            check_decay("kappa", self.kappa)
        if self.order is not None:
            check_steps("order", self.order)
        if self.key is not None:
            as_key("key", self.key)
        check_window(self.window)

    def _require(self, name: str, needed: bool, of: str) -> None:
        if needed and getattr(self, name) is None:
            raise LearnerError(f"These axes need `{name}`.", where="ETraceConfig", expected=f"{name}=...")
        if not needed and getattr(self, name) is not None:
            raise LearnerError(
                f"These axes do not use `{name}`: it would change nothing.",
                where="ETraceConfig",
                found=f"{name}={getattr(self, name)!r}",
                expected=f"no {name}, or {of}",
            )

    @property
    def decays(self) -> tuple[float, float]:
        """The decays of both factors, (input side, output side)."""
        pair = self.decay if isinstance(self.decay, (tuple, list)) else (self.decay, self.decay)
        if len(pair) != 2:
            raise LearnerError(
                "`decay` takes one value, or a pair.",
                where="ETraceConfig",
                found=repr(pair),
                expected="(input, output)",
            )
        return pair[0], pair[1]

    def describe(self) -> str:
        """The axes, one a line, in words."""
        rows = [(axis, getattr(self, axis), choices[getattr(self, axis)]) for axis, choices in _AXES.items()]
        widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
        return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}" for a, b, c in rows)


class ConfiguredLearner(OnlineLearner):
    """The learner of an `ETraceConfig`.

    Parameters
    ----------
    config : ETraceConfig
    modulator : scalar or array, optional
        Where the signal is modulatory, and there alone; see `ThreeFactor`.
    limit : int
        Largest number of elements of an influence matrix.
    **options
        Of `OnlineLearner`.
    """

    def __init__(self, *args: Any, config: ETraceConfig, modulator: Any = None, limit: int = LARGEST, **options: Any):
        if modulator is not None and config.signal != "modulatory":
            raise LearnerError(
                "A modulator takes part where the signal is modulatory.",
                where="compile(..., modulator=...)",
                found=f"signal={config.signal!r}",
                expected='signal="modulatory", or no modulator',
            )
        self.config, self.limit = config, limit
        self.signal = "past" if config.signal == "past" else "state"
        standing = 0.0 if modulator is None else modulator
        self.modulator = brainstate.ShortTermState(jnp.asarray(standing, jnp.result_type(float)))
        self.noise = brainstate.ShortTermState(_raw(config.key))
        windows = config.schedule == "window"
        window = config.window if windows else 1
        method = fixed(type(self), options, vjp_method="multi-step" if windows else "single-step", window=window)
        super().__init__(*args, **method)
        if config.signal == "random_feedback":
            self.plan = random_feedback(self.plan, recurrent_groups(self.graph), as_key("key", config.key))

    def _make_carry(self) -> Carry:
        config = self.config
        if config.factorisation == "none":
            return Carry()
        if config.factorisation == "rank_one":
            return SketchCarry(self.noise)
        if config.factorisation == "influence":
            if config.scope == "full":
                return InfluenceCarry(self.limit)
            assert config.order is not None  # the configuration requires it
            return NeighbourhoodCarry(config.order, self.limit)
        if config.factorisation == "input_output":
            x, f = map(float, config.decays)
            return FactoredCarry(x, f, 1.0 - f, normalise=True)
        if config.signal == "modulatory":
            return ModulatedTraceCarry(self.modulator)
        if config.filter == "kappa":
            assert config.kappa is not None  # the configuration requires it
            return FilteredTraceCarry(config.kappa)
        return CoupledTraceCarry() if config.scope == "coupled" else TraceCarry()

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """One time step, with a new `modulator` where the signal is modulatory; see `ThreeFactor.update`."""
        if self.config.signal != "modulatory":
            return super().update(*args, **kwargs)
        with renewed(self.modulator, kwargs.pop("modulator", None)):
            return super().update(*args, **kwargs)


def _raw(key: Any) -> Any:
    """A key as plain numbers."""
    key = as_key("key", 0 if key is None else key)
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
