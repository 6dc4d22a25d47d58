"""Exact factoring of traces whose D and F the compiler has proven constant (`braintrace_compiler.factorises`)."""

import jax.numpy as jnp

from braintrace_primitives import TraceRule


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
