"""Trace rules that users have written: whether they fit their operations in shape.

Arrays of other shapes might broadcast, to a gradient that is wrong and has the right shape. The rules that come with
the operations are held against derivatives by their own tests, and cost nothing here.
"""

from collections.abc import Iterable

import jax

from braintrace_compiler import MarkedOperation
from braintrace_primitives import TraceRule
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


def _is_foreign(rule: TraceRule) -> bool:
    return type(rule).__module__.partition(".")[0] != "braintrace_primitives"
