"""The fold: a window of K steps at a time, for any carry (semantics, section 4)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._fold_types import Folded, Window
from ._plan import Operands, Perturbations, Plan


def fold(
    plan: Plan, window: Window, carry: Any, weights: Operands, entry: dict[int, Any] | None = None
) -> tuple[Operands, Any]:
    """Turn a window into weight gradients and a new carry.

    Parameters
    ----------
    plan : Plan
    window : Window
    carry : pytree
        At the entry of the window.
    weights : Operands
    entry : dict, optional
        Group -> (S, *positions): cotangent of the state at entry, where it is known as a whole (multi-step).

    Returns
    -------
    Operands
        Gradient of the weights.
    pytree
        The carry at the exit.
    """

    def single(window, carry, entry):
        return plan.carry.window(plan, window, carry, weights, entry)

    if plan.batch is None:
        folded = single(window, carry, entry)
    else:
        folded = jax.vmap(single, in_axes=(1, 0, 0), out_axes=Folded(1, 1, 0, 0))(window, carry, entry)
    gradients = []
    for k, operation in enumerate(plan.operations):
        x, g, past = folded.x[k], folded.g[k], folded.past[k]
        if plan.batch is not None:  # copies are so many more time steps to the pullback
            x, g = (None if v is None else v.reshape(-1, *v.shape[2:]) for v in (x, g))
            past = {name: value.sum(0) for name, value in past.items()}
        dw = operation.spec.trace_rule.pullback(x, weights[k], g, operation.eqn.params)
        gradients.append({name: dw[name] + past.get(name, 0) for name in dw})
    return tuple(gradients), folded.carry


def advance(plan: Plan, tape: Any, carry: Any, weights: Operands) -> Any:
    """The carry after one more step."""

    def single(tape, carry):
        return plan.carry.advance(plan, tape, carry, weights)

    return (single if plan.batch is None else jax.vmap(single))(tape, carry)


def recall(plan: Plan, carry: Any, weights: Operands) -> list[Any]:
    """Zero perturbations of hidden states, whose cotangents meet the carry and become gradients of the weights.

    This is how the past enters ordinary differentiation: as a function of the weights whose value is zero and whose
    derivative is the carry.
    """

    @jax.custom_vjp
    def past(carry, weights):
        return plan.zero_perturbations().previous

    def forward(carry, weights):
        return past(carry, weights), (carry, weights)

    def backward(saved, cotangents):
        carry, weights = saved

        def single(carry, signals):
            return plan.carry.entry_gradient(plan, carry, signals, weights)

        signals = plan.carry.signals(plan, plan.by_group(cotangents))
        gradient = (single if plan.batch is None else jax.vmap(single))(carry, signals)
        if plan.batch is not None:
            gradient = jax.tree.map(lambda dw: dw.sum(0), gradient)
        filled = tuple(
            {n: dw.get(n, jnp.zeros_like(v)) for n, v in w.items()} for w, dw in zip(weights, gradient, strict=True)
        )
        return jax.tree.map(jnp.zeros_like, carry), filled

    past.defvjp(forward, backward)
    return past(jax.lax.stop_gradient(carry), weights)


def online_step(
    plan: Plan, run: Callable[[Operands, Perturbations], tuple[Any, Any]], carry: Any, weights: Operands
) -> tuple[Any, Any]:
    """One step whose ordinary derivative is the online gradient.

    Parameters
    ----------
    run : callable
        ``run(weights, perturbations) -> (result, tape)``.

    Returns
    -------
    result, carry
    """
    stop = jax.lax.stop_gradient
    zeros = plan.zero_perturbations()
    if plan.signal == "past":
        result, tape = run(weights, zeros._replace(previous=recall(plan, carry, weights)))
        return result, advance(plan, stop(tape), stop(carry), stop(weights))
    # L^t meets e^t, which this very step makes: run it once to know e^t, and again to see L^t. XLA runs it once.
    _, tape = run(stop(weights), zeros)
    carry = advance(plan, stop(tape), stop(carry), stop(weights))
    driving = {c.operation for c in plan.couplings}
    elsewhere = tuple(stop(w) if k in driving else w for k, w in enumerate(weights))
    result, _ = run(elsewhere, zeros._replace(new=recall(plan, carry, weights)))
    return result, carry
