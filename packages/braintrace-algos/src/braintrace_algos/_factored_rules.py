"""Traces that are outer products in all but name, kept as their factors: an exact gradient from less memory."""

from collections.abc import Sequence

import jax.numpy as jnp

from braintrace_primitives import TraceRule


class LatestStepTraceRule(TraceRule):
    """The trace rule of an op that drives a group without memory of its own, D = 0: all there is, is the latest step.

    The trace is ``{"factor": (n, S, *y), "x": (n, *x)}``, F and the input of each of the n uses of the weight.

    Parameters
    ----------
    rule : TraceRule
        Of an op with an input.
    uses : int
        n.
    """

    def __init__(self, rule: TraceRule, uses: int):
        super().__init__(rule.fn)
        self.rule, self.uses = rule, uses

    def init(self, x, weights, y, num_states, params, dtype):
        factor = jnp.zeros((self.uses, num_states, *y.shape), dtype)
        return {"factor": factor, "x": jnp.zeros((self.uses, *x.shape), x.dtype)}

    def accumulate(self, xs, factors, weights, params):
        return {"factor": factors, "x": xs}

    def contract(self, trace, signal, weights, params):
        sent = (trace["factor"].astype(signal.dtype) * signal).sum(1)
        return self.rule.pullback(trace["x"], weights, sent, params)


class FactoredTraceRule(TraceRule):
    """The trace rule of an op behind constant derivatives: the inputs, filtered as the states filter them.

    Which derivatives are constant the compiler proves (`braintrace_compiler.factored_states`).

    For the n states that factorise the trace is ``{"x": (n, *x), "one": (n,)}``: what ``sum_s D^{t-s} F`` makes of the
    inputs, and of a constant input of one, for the weights that act beside the input (a bias). The other states, if
    any, keep under "rest" the trace that they would have anyhow; to it, a filtered input is one more time step.
    Factors, blocks and signals have the shapes that `TraceRule` gives them.

    Parameters
    ----------
    rule : TraceRule
        Of an op that is affine in its input.
    states : sequence of int
        Places of the states that factorise: they depend on the past of each other at most.
    """

    def __init__(self, rule: TraceRule, states: Sequence[int]):
        super().__init__(rule.fn)
        self.rule, self.states = rule, tuple(states)

    def _rest(self, num_states):
        return tuple(s for s in range(num_states) if s not in self.states)

    def init(self, x, weights, y, num_states, params, dtype):
        n, rest = len(self.states), len(self._rest(num_states))
        trace = {"x": jnp.zeros((n, *x.shape), dtype), "one": jnp.zeros(n, dtype)}
        return trace | ({"rest": self.rule.init(x, weights, y, rest, params, dtype)} if rest else {})

    def advance(self, trace, blocks, xs, factors, weights, params):
        new = self._filtered(trace, blocks, xs, factors)
        if "rest" in trace:
            new["rest"] = self.rule.advance(
                trace["rest"], *self._into_rest(trace, blocks, xs, factors), weights, params
            )
        return new

    def contract(self, trace, signal, weights, params):
        gradient = self._through_filtered(trace, signal, weights, params)
        if "rest" not in trace:
            return gradient
        rest = self.rule.contract(trace["rest"], self._of_rest(signal), weights, params)
        return {name: gradient[name] + rest[name] for name in weights}

    def turn(self, trace, signal, blocks, xs, factors, weights, params):
        if "rest" not in trace:
            return super().turn(trace, signal, blocks, xs, factors, weights, params)
        gradient, new = (
            self._through_filtered(trace, signal, weights, params),
            self._filtered(trace, blocks, xs, factors),
        )
        rest, new["rest"] = self.rule.turn(
            trace["rest"],
            self._of_rest(signal),
            *self._into_rest(trace, blocks, xs, factors),
            weights,
            params,
        )
        return {name: gradient[name] + rest[name] for name in weights}, new

    def _filtered(self, trace, blocks, xs, factors):
        """The filtered inputs, one step on."""
        x, one = trace["x"], trace["one"]
        kept, added = _shared(_block(blocks, self.states, self.states), 2), _shared(factors[:, self.states, ...], 2)
        new = jnp.tensordot(kept, x, 1) + jnp.tensordot(added.T, xs.astype(x.dtype), 1)
        return {"x": new, "one": kept @ one + added.sum(0)}

    def _into_rest(self, trace, blocks, xs, factors):
        """Blocks, inputs and factors of the other states: the filtered inputs are further steps."""
        own, rest, x = self.states, self._rest(factors.shape[1]), trace["x"]
        across = jnp.moveaxis(_block(blocks, rest, own), 1, 0)
        beside = across * (trace["one"] - 1).reshape(-1, *(1,) * (across.ndim - 1))
        return (
            _block(blocks, rest, rest),
            jnp.concatenate([xs.astype(x.dtype), x, jnp.zeros_like(x)]),
            jnp.concatenate([factors[:, rest, ...], across, beside]),
        )

    def _of_rest(self, signal):
        return signal[self._rest(signal.shape[0]), ...]

    def _through_filtered(self, trace, signal, weights, params):
        """The gradient by way of the states that factorise."""
        x, sent = trace["x"].astype(signal.dtype), signal[self.states, ...]
        one = trace["one"].reshape(-1, *(1,) * (signal.ndim - 1)).astype(signal.dtype)
        of_x = self.rule.pullback(x, weights, sent, params)
        of_one = self.rule.pullback(jnp.zeros_like(x), weights, sent * (one - 1), params)
        return {name: of_x[name] + of_one[name] for name in weights}


def _block(blocks, rows, columns):
    return blocks[rows, ...][:, columns, ...]


def _shared(values, lead):
    """The value that all elements, after `lead` axes, have."""
    return values.reshape(*values.shape[:lead], -1)[..., 0]
