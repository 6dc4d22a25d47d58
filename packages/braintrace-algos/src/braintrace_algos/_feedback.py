"""Random feedback: signals pass the readout by fixed weights, not by the readout's own."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_compiler import DiagnosticKind, MarkedOperation, NotSupportedError
from braintrace_compiler._way_back import with_way_back
from braintrace_primitives._jax_compat import Literal, build_jaxpr, eval_jaxpr

from ._plan import Plan


def random_feedback(plan: Plan, recurrent: frozenset[int], key: Any) -> Plan:
    """Give the readout's operations fixed random weights for the way back.

    An operation belongs to the readout where it leads to none of the `recurrent` groups. Its feedback weights are
    shaped like its own (hidden x readout for a dense readout), and normal with variance 1 / fan-in, which is the number
    of weights that an output sums up.
    """
    leading = {plan.operations[c.operation].weight_path for c in plan.couplings if c.group in recurrent}
    leading |= {
        r.weight_path for r in plan.graph.diagnostics if r.kind is DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT
    }
    feedback = {}
    for k, operation in enumerate(plan.operations):
        if operation.weight_path in leading or operation.x_var is None:
            continue
        if operation.loop is not None and operation.loop.echo is not None:
            raise NotSupportedError(
                "Random feedback does not reach into a loop whose iterations depend on the operation of earlier ones.",
                where=operation.source,
                found=f"{operation.spec.name}, weights {[list(path) for path in operation.parameter_paths]}",
                expected="a readout outside of loops, or in loops that are unrolled",
                fix="control_flow=ControlFlowPolicy(unroll_limit=n), with n iterations at least",
            )
        keys = jax.random.split(jax.random.fold_in(key, k), len(operation.weight_vars))
        _, weights, _ = operation.operand_types
        feedback[k] = {
            name: _draw(own, weight, operation.spec.trace_rule.fan_in(name, weights, operation.eqn.params))
            for own, (name, weight) in zip(keys, weights.items(), strict=True)
        }
    return plan._replace(feedback=feedback)


def _draw(key: Any, weight: Any, fan_in: float) -> Any:
    return jax.random.normal(key, weight.shape, weight.dtype) / jnp.sqrt(max(fan_in, 1)).astype(weight.dtype)


def evaluate(plan: Plan, inputs: Sequence[Any], steps: int = 0) -> list[Any]:
    """Run the step program, with the feedback weights in place where signals pass backwards.

    `steps` says how many of them a loop takes with the same weights; 0 that it is no loop.

    ``y = A(x, w)`` becomes ``A(stop(x), w) + A(x, B) - stop(A(x, B))``: the value is that of w, and the cotangent of x
    that of B.
    """
    program = plan.step.jaxpr
    if not plan.feedback:
        if steps:
            program = with_way_back(program, plan.moving if plan.splits(steps) else frozenset())
        return eval_jaxpr(program, *inputs)
    first = len(plan.graph.module_info.jaxpr.invars)
    weight_vars = iter(program.invars[first:])
    operation_of = {}
    for k, operation in enumerate(plan.operations):
        operation_of.update({next(weight_vars): k for _ in operation.weight_vars})

    env = dict(zip(program.invars, inputs, strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for eqn in program.eqns:
        values = [read(v) for v in eqn.invars]
        k = next((operation_of[v] for v in eqn.invars if not isinstance(v, Literal) and v in operation_of), None)
        if k is not None and k in plan.feedback:
            env[eqn.outvars[0]] = _with_feedback(plan.operations[k], plan.feedback[k], eqn, values)
            continue
        variables = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, Literal)))
        single = build_jaxpr(variables, eqn.outvars, [eqn], like=program)
        env.update(zip(eqn.outvars, eval_jaxpr(single, *map(read, variables)), strict=True))
    return [read(v) for v in program.outvars]


def _with_feedback(operation: MarkedOperation, weights: dict[str, Any], eqn: Any, values: list[Any]) -> Any:
    stop = jax.lax.stop_gradient
    forward, back = list(values), list(values)
    at = operation.spec.x_invar_index
    assert at is not None  # only operations with an input get feedback weights
    forward[at] = stop(values[at])
    for name, value in weights.items():
        back[operation.index_of(name)] = value
    y = eqn.primitive.bind(*forward, **eqn.params)
    returned = eqn.primitive.bind(*back, **eqn.params)
    return y + (returned - stop(returned))
