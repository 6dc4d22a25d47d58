"""Exact factoring: proofs, by the program itself, that a trace is an outer product in all but name.

Where D and F depend on no data, position or time, e^t = sum_s (D^{t-s} F) ⊗ x^s holds one filtered input for each
state instead of one number for each synapse and state: B · I · S in place of B · I · O · S, and the same gradient.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import Feed, FeedKind, LocalTransition, MarkedOperation
from braintrace_primitives import TraceRule
from braintrace_primitives._jax_compat import Literal, eval_jaxpr, make_jaxpr_without_consts


class FactoredTraceRule(TraceRule):
    """The trace rule of an op behind constant derivatives: the inputs, filtered as the states filter them.

    The trace is ``{"x": (S, *x), "one": (S,)}``: what ``sum_s D^{t-s} F`` makes of the inputs, and of a constant input
    of one, for the weights that act beside the input (a bias). Factors, blocks and signals have the shapes that
    `TraceRule` gives them; the first two are the same for all elements.

    Parameters
    ----------
    rule : TraceRule
        Of an op that is affine in its input.
    """

    def __init__(self, rule: TraceRule):
        super().__init__(rule.fn)
        self.rule = rule

    def init(self, x, weights, y, num_states, params, dtype):
        return {"x": jnp.zeros((num_states, *x.shape), dtype), "one": jnp.zeros(num_states, dtype)}

    def accumulate(self, xs, factors, weights, params):
        shared = factors.reshape(*factors.shape[:2], -1)[..., 0]
        return {"x": jnp.tensordot(shared.T, xs.astype(shared.dtype), 1), "one": shared.sum(0)}

    def decay(self, trace, blocks, params):
        shared = blocks.reshape(*blocks.shape[:2], -1)[..., 0]
        return {name: jnp.tensordot(shared, old, 1) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        x = trace["x"].astype(signal.dtype)
        one = trace["one"].reshape(-1, *(1,) * (signal.ndim - 1)).astype(signal.dtype)
        nothing = jnp.zeros_like(x)
        through = self.rule.pullback(x, weights, signal, params)
        beside = self.rule.pullback(nothing, weights, signal * (one - 1), params)
        return {name: through[name] + beside[name] for name in weights}


def factored_slots(
    transition: LocalTransition, slots: Sequence[tuple[MarkedOperation, Feed]], differentiate: Callable[..., Any]
) -> list[bool]:
    """For each operation that feeds a group, whether its trace factorises.

    Parameters
    ----------
    transition : LocalTransition
    slots : sequence of (operation, feed)
    differentiate : callable
        ``differentiate(*inputs of the transition) -> D, [F, ...]``.
    """
    if not transition.remembers:
        return [False] * len(slots)
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in transition.program.invars]
    D, *F = constant_outputs(lambda *inputs: _flat(differentiate(*inputs)), avals)
    constant = _is_shared(D, 2)
    return [
        constant
        and _is_shared(f, 1)
        and feed.kind in (FeedKind.SAME, FeedKind.GATHER)
        and operation.x_var is not None
        and is_affine_in_input(operation)
        for f, (operation, feed) in zip(F, slots, strict=True)
    ]


def _flat(derivatives: tuple[Any, list[Any]]) -> list[Any]:
    return [derivatives[0], *derivatives[1]]


def _is_shared(value: np.ndarray | None, lead: int) -> bool:
    """Whether all positions, after `lead` axes, have the same values."""
    if value is None:
        return False
    flat = value.reshape(*value.shape[:lead], -1)
    return bool(flat.shape[-1] and np.all(flat == flat[..., :1]))


def constant_outputs(function: Callable[..., Sequence[Any]], avals: Iterable[Any]) -> list[np.ndarray | None]:
    """The outputs of a function that read none of its inputs, by value; None for the others."""
    avals = list(avals)
    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(function)(*avals))
    known = _unread(program, program.invars[len(consts) :])
    if not any(known):
        return [None] * len(known)
    values = eval_jaxpr(program, *consts, *(jnp.zeros(a.shape, a.dtype) for a in avals))
    return [np.asarray(value) if k else None for value, k in zip(values, known, strict=True)]


def is_affine_in_input(operation: MarkedOperation) -> bool:
    """Whether the derivative of an op with respect to its input does not read the input."""
    params, fn = operation.eqn.params, operation.spec.trace_rule.fn
    x = jax.ShapeDtypeStruct(operation.x_var.aval.shape, operation.x_var.aval.dtype)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return False
    weights = {n: jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for n, v in operation.weight_vars.items()}

    def slope(x, dx, weights):
        return jax.jvp(lambda x: fn(x, weights, params), (x,), (dx,))[1]

    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(slope)(x, x, weights))
    return all(_unread(program, program.invars[len(consts) : len(consts) + 1]))


def _unread(program: Any, inputs: Iterable[Any]) -> list[bool]:
    """For each output of a program, whether it depends on none of `inputs`."""
    varying = set(inputs)
    for eqn in program.eqns:
        if any(v in varying for v in eqn.invars if not isinstance(v, Literal)):
            varying.update(eqn.outvars)
    return [isinstance(v, Literal) or v not in varying for v in program.outvars]
