"""The carry of D-RTRL: one eligibility trace for each marked operation and hidden group."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_algos._feeds import feed_shape, rule_of, spread
from braintrace_algos._plan import Coupling, Operands, Plan

Traces = dict[str, Any]


class TraceCarry:
    """What is known of ∂h/∂w when a window begins, accumulated through D only.

    All methods are pure and work on one copy of a mapped model.
    """

    @staticmethod
    def init(plan: Plan, dtype: Any = None) -> Traces:
        """Zero traces by key, at least in single precision unless `dtype` says otherwise."""
        traces = {}
        for c in plan.traced_couplings:
            operation = plan.operations[c.operation]
            weights = {n: _struct(v.aval) for n, v in operation.weight_vars.items()}
            x = None if operation.x_var is None else _struct(operation.x_var.aval)
            aval = operation.y_var.aval
            y = jax.ShapeDtypeStruct(feed_shape(c.feed, aval.shape), aval.dtype)
            S = plan.transitions[c.group].group.num_state
            precision = dtype or jnp.promote_types(aval.dtype, jnp.float32)
            traces[c.key] = rule_of(operation, c.feed).init(x, weights, y, S, operation.eqn.params, precision)
        return traces

    @staticmethod
    def entry_gradient(
        plan: Plan, traces: Traces, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        """Gradient of the weights by way of the state at entry: the sum of signal · trace.

        Parameters
        ----------
        signals : mapping
            Group -> (S, *positions), the cotangent of the state at entry.
        """
        total: list[dict[str, Any]] = [{} for _ in plan.operations]
        for c in plan.traced_couplings:
            operation = plan.operations[c.operation]
            dw = rule_of(operation, c.feed).contract(
                traces[c.key], spread(c.feed, signals[c.group], 1), weights[c.operation], operation.eqn.params
            )
            for name, value in dw.items():
                total[c.operation][name] = total[c.operation].get(name, 0) + value
        return total

    @staticmethod
    def exit(
        plan: Plan,
        traces: Traces,
        P: Mapping[int, Any],
        PF: Mapping[str, Any],
        x: Sequence[Any],
        weights: Operands,
    ) -> Traces:
        """Traces at the exit of a window.

        Parameters
        ----------
        P : mapping
            Group -> (S, S, *positions), the transition of the whole window; absent where nothing is remembered.
        PF : mapping
            Key -> (K, S, *elements), what each step leaves at the exit.
        x : sequence
            Inputs of the operations, (K, *x) each.
        """
        new = {}
        for c in plan.traced_couplings:
            new[c.key] = _exit_one(plan, c, traces[c.key], P.get(c.group), PF[c.key], x[c.operation], weights)
        return new


def _exit_one(plan: Plan, c: Coupling, trace: Any, P: Any, PF: Any, x: Any, weights: Operands) -> Any:
    operation = plan.operations[c.operation]
    rule, params = rule_of(operation, c.feed), operation.eqn.params
    dtype = jax.tree.leaves(trace)[0].dtype
    if P is None:  # only the last step is still there
        PF, x = PF[-1:], None if x is None else x[-1:]
    added = rule.accumulate(x, PF.astype(dtype), weights[c.operation], params)
    if P is None:
        return jax.tree.map(lambda value: value.astype(dtype), added)
    kept = rule.decay(trace, spread(c.feed, P, 2).astype(dtype), params)
    return jax.tree.map(lambda old, value: (old + value).astype(dtype), kept, added)


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
