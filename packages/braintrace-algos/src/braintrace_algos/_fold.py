"""The fold: a window of K steps at a time, for any carry (semantics, section 4)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._trace_rule import sum_leading

from ._entries import two_axes_as_one
from ._fold_types import Folded, Window
from ._plan import Operands, Perturbations, Plan

_COPIES = Window._make((1, 1, 1, None))
"""Axes of mapped copies."""


def fold(
    plan: Plan,
    window: Window,
    carry: Any,
    weights: Operands,
    theta: list[Any],
    entry: dict[int, Any] | None = None,
) -> tuple[Operands, list[Any], Any]:
    """Turn a window into gradients and a new carry.

    Parameters
    ----------
    plan : Plan
    window : Window
    carry : pytree
        At the entry of the window.
    weights : Operands
    theta : list
        Leaves of the parameters.
    entry : dict, optional
        Group -> (S, *positions): cotangent of the state at entry, where it is known as a whole (multi-step).

    Returns
    -------
    Operands
        Gradient of the weights.
    list
        Further gradients of the parameter leaves; empty for most carries.
    pytree
        The carry at the exit.
    """

    def single(window, carry, entry):
        return plan.carry.window(plan, window, carry, weights, theta, entry)

    if plan.batch is None:
        folded = single(window, carry, entry)
    else:
        folded = jax.vmap(single, in_axes=(_COPIES, 0, 0), out_axes=Folded._make((1, 1, 0, 0, 0)))(window, carry, entry)
    gradients = []
    for k, operation in enumerate(plan.operations):
        x, g, past = folded.x[k], folded.g[k], folded.past[k]
        if plan.batch is not None:  # copies are so many more time steps to the pullback
            x, g = (None if v is None else two_axes_as_one(v) for v in (x, g))
            past = {name: sum_leading(value, 1) for name, value in past.items()}
        dw = operation.spec.trace_rule.pullback(x, weights[k], g, operation.eqn.params)
        gradients.append({name: dw[name] + past.get(name, 0) for name in dw})
    further = folded.theta if plan.batch is None else [sum_leading(value, 1) for value in folded.theta]
    return tuple(gradients), list(further), folded.carry


def exit_of_window(
    plan: Plan, window: Window, carry: Any, weights: Operands, theta: list[Any], entry: dict[int, Any]
) -> Any:
    """The carry after a window of which nothing else is asked; see `fold`. All signals are zero."""

    def single(window, carry, entry):
        return plan.carry.exit(plan, window, carry, weights, theta, entry)

    if plan.batch is None:
        return single(window, carry, entry)
    return jax.vmap(single, in_axes=(_COPIES, 0, 0))(window, carry, entry)


def signals_of(plan: Plan, per_state: list[Any], weights: Operands) -> dict[int, Any]:
    """Signals by group as the carry meets them, from the cotangents of each hidden state."""
    return plan.carry.signals(plan, plan.signals(per_state, weights))


def signals_of_steps(plan: Plan, per_state: list[Any], weights: Operands) -> dict[int, Any]:
    """The same for a window's steps, from cotangents (K, ...)."""
    return jax.vmap(lambda at: signals_of(plan, at, weights))(per_state)


def advance(plan: Plan, tape: Any, carry: Any, weights: Operands, theta: list[Any]) -> Any:
    """The carry after one more step."""

    def single(tape, carry):
        return plan.carry.advance(plan, tape, carry, weights, theta)

    return (single if plan.batch is None else jax.vmap(single))(tape, carry)


def recall(plan: Plan, carry: Any, weights: Operands, theta: list[Any]) -> list[Any]:
    """Zero perturbations of hidden states, whose cotangents meet the carry and become gradients.

    This is how the past enters ordinary differentiation: as a function of weights and parameters whose value is zero
    and whose derivative is the carry.
    """

    @jax.custom_vjp
    def past(carry, weights, theta):
        return plan.zero_perturbations().previous

    def forward(carry, weights, theta):
        return past(carry, weights, theta), (carry, weights, theta)

    def backward(saved, cotangents):
        carry, weights, theta = saved

        def single(carry, signals):
            return plan.carry.entry_gradient(plan, carry, signals, weights), plan.carry.past(plan, carry, signals)

        signals = signals_of(plan, cotangents, weights)
        gradients = (single if plan.batch is None else jax.vmap(single))(carry, signals)
        if plan.batch is not None:
            gradients = jax.tree.map(lambda dw: sum_leading(dw, 1), gradients)
        of_weights = tuple(
            {n: dw.get(n, jnp.zeros_like(v)) for n, v in w.items()} for w, dw in zip(weights, gradients[0], strict=True)
        )
        of_theta = gradients[1] or jax.tree.map(jnp.zeros_like, theta)
        return jax.tree.map(no_cotangent, carry), of_weights, of_theta

    past.defvjp(forward, backward)
    return past(jax.lax.stop_gradient(carry), weights, theta)


@jax.custom_vjp
def _tied(values: Any, signals: Any) -> Any:
    """`values`; whoever differentiates them asks for the derivative by `signals`, which is zero."""
    return values


_tied.defvjp(lambda values, signals: (values, signals), lambda signals, ct: (ct, jax.tree.map(jnp.zeros_like, signals)))


def _exact_enough(carry: Any) -> bool:
    """Whether traces hold what the latest step adds to them as precisely as a gradient would."""
    return all(v.dtype.itemsize >= 4 for v in jax.tree.leaves(carry) if jnp.issubdtype(v.dtype, jnp.inexact))


def no_cotangent(value: Any) -> Any:
    """The zero cotangent of `value`; integers and random keys have one of their own dtype."""
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)


def online_step(
    plan: Plan,
    run: Callable[[Plan, Operands, Perturbations], tuple[Any, Any]],
    carry: Any,
    weights: Operands,
    theta: list[Any],
) -> tuple[Any, Any]:
    """One step whose ordinary derivative is the online gradient.

    Parameters
    ----------
    run : callable
        ``run(plan, weights, perturbations) -> (result, tape)``, the tape as the carry of that plan wants it.

    Returns
    -------
    result, carry
    """
    stop = jax.lax.stop_gradient
    zeros = plan.zero_perturbations()
    meeting = plan.carry.meeting(plan) if plan.signal == "state" or _exact_enough(carry) else None
    if meeting is None:
        result, tape = run(plan, weights, zeros._replace(previous=recall(plan, carry, weights, theta)))
        return result, advance(plan, stop(tape), stop(carry), stop(weights), stop(theta))
    # L^t meets e^t, which this very step makes: run it once to know e^t, and again to see L^t. XLA runs it once, and
    # advances e in place, which it cannot do where e^{t-1} waits for a signal.
    met = meeting.plan
    _, tape = run(met, stop(weights), zeros)
    wide = advance(met, stop(tape), stop(meeting.widened(carry)), stop(weights), stop(theta))
    elsewhere = tuple(stop(w) if k in meeting.driving else w for k, w in enumerate(weights))
    past = recall(met, wide, weights, theta)
    result, _ = run(met, elsewhere, zeros._replace(new=past))
    if not met.carry.hears_loss:  # JAX would leave out what meets another signal where the loss sends none
        result = result._replace(outputs=_tied(result.outputs, past))
    return result, meeting.narrowed(wide, carry)
