"""A learned guess of the credit that will come from beyond the window (decoupled neural interfaces)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._plan import Operands, Plan
from braintrace_algos._step import Inputs, StepResult, operation_inputs
from braintrace_primitives._precision import narrowed, widened

from ._base import Carry


class SyntheticGradient(NamedTuple):
    """An affine guess of ∂(future loss)/∂h from h, for one hidden group; shared by all samples.

    Attributes
    ----------
    weight : array (S · units, S · units)
    bias : array (S · units,)

    Examples
    --------
    >>> guess = SyntheticGradient.zeros(num_states=1, units=2, dtype=jnp.float32)
    >>> guess(jnp.ones((1, 3, 2))).shape
    (1, 3, 2)
    """

    weight: Any
    bias: Any

    @classmethod
    def zeros(cls, num_states: int, units: int, dtype: Any) -> "SyntheticGradient":
        """The guess that there is no credit."""
        n = num_states * units
        return cls(jnp.zeros((n, n), dtype), jnp.zeros(n, dtype))

    def __call__(self, h: Any) -> Any:
        """The guess for states (S, ..., units), in the same shape."""
        features = jnp.moveaxis(h, 0, -2)
        flat = features.reshape(*features.shape[:-2], -1)
        return jnp.moveaxis((flat @ self.weight + self.bias).reshape(features.shape), -2, 0)


def train_synthetic_gradient(guess: SyntheticGradient, h: Any, target: Any, rate: float) -> SyntheticGradient:
    """One step of normalised gradient descent of the guess at states `h` towards the credit that came.

    Parameters
    ----------
    guess : SyntheticGradient
    h, target : arrays (S, ..., units)
    rate : float
        In (0, 2) for stability: the step is divided by the mean power of the features (normalised LMS).
    """
    power = jnp.mean(jnp.sum(h**2, axis=(0, -1))) + 1.0

    def error(guess: SyntheticGradient) -> Any:
        difference = guess(h) - target
        return 0.5 * jnp.mean(jnp.sum(difference**2, axis=(0, -1)))

    slope = jax.grad(error)(guess)
    return jax.tree.map(lambda v, g: (v - rate / power * g).astype(v.dtype), guess, slope)


class Entries(NamedTuple):
    """A tape entry: inputs of the operations, and the hidden states before the step by group."""

    x: Inputs
    h: dict[int, Any]


class SyntheticCarry(Carry):
    """The carry of DNI: nothing of the past, and a guess of the future.

    Parameters
    ----------
    rate : float
        Of `train_synthetic_gradient`.
    """

    every_group = True

    def __init__(self, rate: float):
        self.rate = rate

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        guesses = {}
        for index in plan.traced:
            group = plan.transitions[index].group
            precision = dtype or group.dtype
            guesses[index] = SyntheticGradient.zeros(group.num_state, (group.varshape or (1,))[-1], precision)
        return guesses

    def observe(self, plan: Plan, result: StepResult) -> Entries:
        hidden = [result.observed[s.invars[0]] for s in plan.graph.module_info.hidden]
        return jax.lax.stop_gradient(Entries(operation_inputs(plan, result), plan.by_group(hidden)))

    def beyond(self, plan: Plan, carry: Any, h: dict[int, Any]) -> Any:
        total: Any = 0.0
        for index, value in h.items():
            total = total + jnp.sum(jax.lax.stop_gradient(carry[index](value)) * value)
        return total

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
    ) -> Folded:
        assert entry is not None  # windows are differentiated as a whole
        first = jax.tree.map(lambda v: v[0], window.tape.h)
        new = {
            g: train_synthetic_gradient(jax.tree.map(widened, guess), first[g], entry[g], self.rate)
            for g, guess in carry.items()
        }
        new = jax.tree.map(lambda value, old: narrowed(value, old.dtype), new, carry)
        return Folded(list(window.tape.x), list(window.b), [{} for _ in plan.operations], new)
