"""Trace rules that users have written: whether they fit their operations in shape, and factors in value.

Arrays of other shapes might broadcast, to a gradient that is wrong and has the right shape. The rules that come with
the operations are held against derivatives by their own tests, and cost nothing here.
"""

from collections.abc import Iterable

import jax

from braintrace_compiler import MarkedOperation, NotSupportedError
from braintrace_compiler._constant_factors import is_affine_in_addend
from braintrace_primitives import GenericTraceRule, RepeatedTraceRule, TraceRule
from braintrace_primitives._rule_shapes import require_pullback, require_trace


def check_pullbacks(operations: Iterable[MarkedOperation]) -> None:
    """Refuse rules whose gradient within a window does not have the shapes of the weights."""
    for operation in operations:
        if _is_foreign(operation.spec.trace_rule):
            x, weights, y = operation.operand_types
            require_pullback(operation.spec.name, operation.spec.trace_rule, x, weights, y, operation.eqn.params)


def check_trace(operation: MarkedOperation, rule: TraceRule, shape: tuple[int, ...], num_states: int) -> None:
    """Refuse a rule whose methods do not agree on the trace of an output of some `shape`, at the elements it drives."""
    if _is_foreign(rule):
        x, weights, y = operation.operand_types
        y = jax.ShapeDtypeStruct(shape, y.dtype)
        require_trace(operation.spec.name, rule, x, weights, y, num_states, operation.eqn.params)


def check_addend(operation: MarkedOperation, decay: float) -> None:
    """Refuse operations of users whose inputs cannot be added up, for factors that do so; without a decay none does."""
    rule = operation.spec.trace_rule
    rule = rule.rule if isinstance(rule, RepeatedTraceRule) else rule
    if not decay or not (_is_foreign(rule) or type(rule) is GenericTraceRule) or is_affine_in_addend(operation):
        return
    x, _, _ = operation.operand_types
    raise NotSupportedError(
        "The inputs of this operation cannot be added up over time, as a presynaptic factor does.",
        where=operation.source,
        found=f"{operation.spec.name} of an input {x.dtype.name}{list(x.shape)}, weights "
        f"{[list(path) for path in operation.parameter_paths]}, whose gradient is not shown to be affine in the input",
        expected="a gradient ∂y/∂w that is affine in x, such as that of y = x @ w",
        fix="compute what is not affine before the operation, op(jnp.tanh(x), w); or give its trace rule `addend` and "
        "`pullback_of_sums`; or take an algorithm that keeps whole traces, such as d_rtrl",
    )


def _is_foreign(rule: TraceRule) -> bool:
    return type(rule).__module__.partition(".")[0] != "braintrace_primitives"
