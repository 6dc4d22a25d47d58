"""Traces that every step reads, and that are written once for several: where weights change from step to step.

The next step needs the gradient of this one, so each must read the whole trace. Nothing needs the trace advanced: up to
R steps wait as their factors, which are small, and are added in one pass.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from braintrace_primitives import TraceRule

from ._factored_rules import WaitingTraceRule
from ._feeds import feed_shape
from ._plan import Coupling, Plan
from .carries import TraceCarry


class Waiting:
    """A plan for runs of at most R steps, between `begin` and `end`.

    Parameters
    ----------
    plan : Plan
        Of a learner.
    traces : pytree
        Its traces; only shapes, dtypes and sharding matter.
    every : int
        Steps between two updates of the weights.
    T : int
        Steps in all: R is chosen so that it divides them, if it may, for a rest is compiled for itself.

    Attributes
    ----------
    plan : Plan
        For the steps of such a run; the carry that they meet and leave is of the kind that `begin` gives.
    steps : int
        R, or `every` where no trace waits.
    """

    def __init__(self, plan: Plan, traces: Any, every: int, T: int):
        most = {}
        if every == 1 and type(plan.carry) is TraceCarry and plan.batch is None:
            most = {key: _most_steps(plan, uses, traces[key]) for key, uses in plan.traces.items()}
        waiting = [steps for steps in most.values() if steps > 1]
        R = min(waiting, default=every)
        self.steps = next((r for r in range(R, R // 2, -1) if T % r == 0), R) if waiting else every

        def rule(c: Coupling) -> TraceRule:
            waits = most.get(c.trace, 1) > 1
            return WaitingTraceRule(c.rule, len(plan.traces[c.trace]), self.steps) if waits else c.rule

        self.plan = plan._replace(couplings=tuple(c._replace(rule=rule(c)) for c in plan.couplings))

    def packed(self, traces: Any) -> Any:
        """`traces` as the loop over all steps reads them fastest."""
        packed = {key: rule.rule.packed(traces[key]) for key, rule, _ in self._waiting()}
        return traces | packed if packed else traces

    def begin(self, traces: Any) -> Any:
        """`traces`, with no step waiting."""
        held = {}
        for key, rule, c in self._waiting():
            operation = self.plan.operations[c.operation]
            y = jax.ShapeDtypeStruct(feed_shape(c.feed, operation.y_var.aval.shape), operation.y_var.aval.dtype)
            S = self.plan.num_states(c.group)
            held[key] = rule.begin(traces[key], operation.x_var.aval, y, S, operation.eqn.params)
        return traces | held if held else traces

    def end(self, held: Any) -> Any:
        """The traces, with no step waiting any more."""
        traces = {}
        for key, rule, c in self._waiting():
            operation = self.plan.operations[c.operation]
            weights = {name: v.aval for name, v in operation.weight_vars.items()}
            traces[key] = rule.end(held[key], weights, operation.eqn.params)
        return held | traces if traces else held

    def _waiting(self) -> Iterator[tuple[str, WaitingTraceRule, Coupling]]:
        for key, (c, *_) in self.plan.traces.items():
            if isinstance(c.rule, WaitingTraceRule):
                yield key, c.rule, c


def _most_steps(plan: Plan, uses: Sequence[Coupling], trace: Any) -> int:
    """The most steps that may wait for a trace; one where it is better advanced at each."""
    c = uses[0]
    if not (plan.transitions[c.group].remembers or plan.memories_of(c.group)):
        return 1  # what was there before does not stay
    return c.rule.steps_at_once(trace, plan.operations[c.operation].eqn.params) // len(uses)
