"""The trace of an operation into a group some of whose states follow from others."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from braintrace_primitives import TraceRule

from ._factored_rules import FactoredTraceRule, RecentStepsTraceRule, block_of, columns_of, rows_of


class LedTraceRule(TraceRule):
    """The trace rule of an op into states that lead and states that follow from them, see `Followed`.

    The trace is that of the leaders; and where the op reaches followers around their leaders, what it brought them in
    the latest step, under "last" (with underscores behind it, where a trainable of the op is called so).

    Parameters
    ----------
    rule : TraceRule
        For the leaders.
    leaders, followers : sequence of int
        Their places among the states.
    latest : RecentStepsTraceRule, optional
        For the followers.
    names : container of str
        Of what the trace of the leaders may hold.
    """

    def __init__(
        self,
        rule: TraceRule,
        leaders: Sequence[int],
        followers: Sequence[int],
        latest: RecentStepsTraceRule | None = None,
        names: Container[str] = (),
    ):
        super().__init__(rule.fn)
        self.rule, self.latest = rule, latest
        self.leaders, self.followers = tuple(leaders), tuple(followers)
        self.last = "last"
        while self.last in names:
            self.last += "_"

    def init(self, x, weights, y, num_states, params, dtype):
        lead = self.rule.init(x, weights, y, len(self.leaders), params, dtype)
        if self.latest is None:
            return lead
        return lead | {self.last: self.latest.init(x, weights, y, len(self.followers), params, dtype)}

    def advance(self, trace, blocks, xs, factors, weights, params):
        return self._advanced(self.rule.advance, trace, blocks, xs, factors, weights, params)

    def advance_in_place(self, trace, blocks, xs, factors, weights, params):
        return self._advanced(self.rule.advance_in_place, trace, blocks, xs, factors, weights, params)

    def _advanced(self, advance: Callable[..., Any], trace, blocks, xs, factors, weights, params):
        lead = advance(self._lead(trace), *self._into_leaders(blocks, xs, factors), weights, params)
        return lead | self._last(trace, xs, factors, weights, params)

    def contract(self, trace, signal, weights, params):
        gradient = self.rule.contract(self._lead(trace), rows_of(signal, self.leaders), weights, params)
        return self._with_last(gradient, trace, signal, weights, params)

    def turn(self, trace, signal, blocks, xs, factors, weights, params):
        into_leaders = self._into_leaders(blocks, xs, factors)
        gradient, lead = self.rule.turn(
            self._lead(trace), rows_of(signal, self.leaders), *into_leaders, weights, params
        )
        gradient = self._with_last(gradient, trace, signal, weights, params)
        return gradient, lead | self._last(trace, xs, factors, weights, params)

    def steps_at_once(self, trace, params):
        return self.rule.steps_at_once(self._lead(trace), params)

    def packed(self, trace):
        return trace | self.rule.packed(self._lead(trace))

    def _lead(self, trace):
        """The trace of the leaders."""
        return {name: value for name, value in trace.items() if name != self.last}

    def _into_leaders(self, blocks, xs, factors):
        return block_of(blocks, self.leaders, self.leaders), xs, columns_of(factors, self.leaders)

    def _last(self, trace, xs, factors, weights, params):
        """What followers keep of a window, by name."""
        if self.latest is None:
            return {}
        last, old = self.latest.accumulate(xs, columns_of(factors, self.followers), weights, params), trace[self.last]
        return {self.last: {name: value.astype(old[name].dtype) for name, value in last.items()}}

    def _with_last(self, gradient, trace, signal, weights, params):
        """A gradient by way of the leaders, and that by way of what followers keep."""
        if self.latest is None:
            return gradient
        more = self.latest.contract(trace[self.last], rows_of(signal, self.followers), weights, params)
        return {name: gradient[name] + more[name] for name in gradient}


def factored_places(rule: TraceRule) -> tuple[int, ...]:
    """Places of the states whose trace is kept as filtered inputs, among those that carry one."""
    if isinstance(rule, LedTraceRule):
        return tuple(rule.leaders[place] for place in factored_places(rule.rule))
    return rule.states if isinstance(rule, FactoredTraceRule) else ()
