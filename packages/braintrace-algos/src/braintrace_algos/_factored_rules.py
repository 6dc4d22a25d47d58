"""Traces that are outer products in all but name, kept as their factors: an exact gradient from less memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_primitives import TraceRule
from braintrace_primitives._precision import computed_in, narrowed, widened
from braintrace_primitives._trace_rule import mix, over_states

from ._entries import two_axes_as_one


class RecentStepsTraceRule(TraceRule):
    """The trace rule of an op of which the last R steps are remembered, as factors; the steps before them are dropped.

    The trace is ``{"factor": (n, R, S, *y), "x": (n, R, *x)}``, for each of the n uses of the weight the transported
    derivatives D^t ... D^{s+1} F^s and the inputs x^s of the steps s = t-R+1 ... t. With R = 1 nothing is dropped where
    the group has no memory of its own, D = 0.

    Parameters
    ----------
    rule : TraceRule
        Of an op with an input.
    uses : int
        n.
    steps : int
        R.
    """

    def __init__(self, rule: TraceRule, uses: int, steps: int = 1):
        super().__init__(rule.fn)
        self.rule, self.uses, self.steps = rule, uses, steps

    def init(self, x, weights, y, num_states, params, dtype):
        lead = (self.uses, self.steps)
        return {"factor": jnp.zeros((*lead, num_states, *y.shape), dtype), "x": jnp.zeros((*lead, *x.shape), x.dtype)}

    def accumulate(self, xs, factors, weights, params):
        return {"factor": self._recent(factors), "x": self._recent(xs)}

    def advance(self, trace, blocks, xs, factors, weights, params):
        old = trace["factor"]
        kept: Any = sum(blocks[:, r] * old[:, :, r, None] for r in range(old.shape[2]))
        factor = self._recent(factors.astype(old.dtype), kept.astype(old.dtype))
        return {"factor": factor, "x": self._recent(xs.astype(trace["x"].dtype), trace["x"])}

    def contract(self, trace, signal, weights, params):
        xs, sent = map(two_axes_as_one, self.sent(trace, signal))
        return self.rule.pullback(xs, weights, sent, params)

    def sent(self, trace: Any, signal: Any) -> tuple[Any, Any]:
        """Inputs (n, R, *x) of the steps that are kept, and what their outputs (n, R, *y) receive from a signal."""
        return trace["x"], over_states(trace["factor"].astype(signal.dtype) * signal, 2)

    def _recent(self, new: Any, old: Any = None) -> Any:
        """The last R of `old`, (n, R, ...), followed by `new`, (n · K, ...)."""
        new = new.reshape(self.uses, len(new) // self.uses, *new.shape[1:])
        if old is not None and new.shape[1] < self.steps:
            new = jnp.concatenate([old, new], 1)
        return new[:, -self.steps :]


class WaitingTraceRule(RecentStepsTraceRule):
    """The trace rule of an op whose latest steps, R at most, wait to be added to its trace.

    With e^0 the trace when the first of them came and P = D^t ... D^1, the trace is P e^0 and what the steps since have
    left of themselves, ``{"trace": e^0, "passage": P (S, S, *y), "factor": ..., "x": ...}`` with the factors of the
    last R steps as above, zero where there were none. So a step reads e^0, and writes only what is small.

    `contract` meets P e^0 alone: the steps that wait are `sent` what they receive, and learn with those of the window.

    Parameters
    ----------
    rule : TraceRule
        Of an op with an input, whose additions do not depend on the values of its weights.
    uses : int
        Of the weight in a step.
    steps : int
        R.
    """

    def begin(self, trace: Any, x: Any, y: Any, num_states: int, params: Any) -> Any:
        """`trace`, with no step waiting; `x` and `y` may be abstract."""
        dtype = computed_in(jax.tree.leaves(trace)[0].dtype)
        passage = jnp.eye(num_states, dtype=dtype).reshape(num_states, num_states, *(1,) * len(y.shape))
        held = super().init(x, {}, y, num_states, params, dtype)
        return held | {"passage": jnp.broadcast_to(passage, (num_states, num_states, *y.shape)), "trace": trace}

    def end(self, held: Any, weights: Any, params: Any) -> Any:
        """The trace, once all steps are added to it; `weights` may be abstract."""
        xs, factors = (two_axes_as_one(held[name]) for name in ("x", "factor"))
        return self.rule.advance_in_place(held["trace"], held["passage"], xs, factors, weights, params)

    def advance(self, trace, blocks, xs, factors, weights, params):
        recent = super().advance(trace, blocks, xs, factors, weights, params)
        passage = jnp.stack([mix(blocks, column) for column in jnp.moveaxis(trace["passage"], 1, 0)], 1)
        return recent | {"passage": passage, "trace": trace["trace"]}

    def contract(self, trace, signal, weights, params):
        entering = mix(jnp.moveaxis(trace["passage"], 1, 0), signal)
        return self.rule.contract(trace["trace"], entering, weights, params)

    def sent(self, trace, signal):
        # A step finds R - 1 others at most: before it would find R, they are added.
        return super().sent({name: trace[name][:, 1:] for name in ("factor", "x")}, signal)


class Norms(NamedTuple):
    """Largest norms, over positions, of the products of D in a window of K steps.

    Attributes
    ----------
    suffixes : array (K,)
        Of D^K ... D^{t+1} for t = 1 ... K.
    whole : array ()
        Of D^K ... D^1.
    single : array ()
        Of the largest D^t.
    """

    suffixes: Any
    whole: Any
    single: Any


class TruncatedTraceRule(RecentStepsTraceRule):
    """The trace rule of an op whose exact trace ε^t is replaced by the factors of the last R steps.

    Those steps alone have the trace

        ε^t  -  P ε^{t-R},        P = D^t D^{t-1} ... D^{t-R+1}

    so that a signal κ misses κᵀ P ε^{t-R}, at each position at most ‖κ‖ ‖P‖ ‖ε^{t-R}‖. The norms are followed beside
    the factors: ``"norms"`` (R + 1,) bound those of D^t ... D^{s+1} for the step s = t-R and the R steps that are kept,
    zero where there was no such step; ``"left"`` is the largest ‖P‖ that anything was left out behind, ``"largest"`` ρ,
    that of a single D, so that ‖P‖ ≤ ρ^R.

    Parameters
    ----------
    rule : TraceRule
        Of an op with an input.
    uses : int
        Of the weight in a step.
    steps : int
        R.
    exact : TraceRule
        Of the trace that this one stands for.
    """

    def __init__(self, rule: TraceRule, uses: int, steps: int, exact: TraceRule):
        super().__init__(rule, uses, steps)
        self.exact = exact

    def init(self, x, weights, y, num_states, params, dtype):
        trace = super().init(x, weights, y, num_states, params, dtype)
        zero = jnp.zeros((), jnp.float32)
        return trace | {"norms": jnp.zeros(self.steps + 1, jnp.float32), "left": zero, "largest": zero}

    def bounded(self, trace: Any, old: Any, norms: Norms) -> Any:
        """`trace` at the exit of a window, with the norms that follow from those in `old`, at its entry."""
        recent = jnp.concatenate([old["norms"] * norms.whole, norms.suffixes])[-self.steps - 1 :]
        return trace | {
            "norms": recent,
            "left": jnp.maximum(old["left"], recent[0]),
            "largest": jnp.maximum(old["largest"], norms.single),
        }


class FactoredTraceRule(TraceRule):
    """The trace rule of an op behind constant derivatives: the inputs, filtered as the states filter them.

    Which derivatives are constant the compiler proves (`braintrace_compiler.factored_states`).

    For the n states that factorise the trace is ``{"x": (n, *x), "one": (n,)}``: what ``sum_s D^{t-s} F`` makes of the
    inputs, and of a constant input of one, where weights act beside the input (a bias). The other states, if
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
        trace = {"x": jnp.zeros((n, *x.shape), dtype)}
        trace |= {"one": jnp.zeros(n, dtype)} if self.rule.acts_beside_input(weights) else {}
        return trace | ({"rest": self.rule.init(x, weights, y, rest, params, dtype)} if rest else {})

    def advance(self, trace, blocks, xs, factors, weights, params):
        return self._advanced(self.rule.advance, trace, blocks, xs, factors, weights, params)

    def advance_in_place(self, trace, blocks, xs, factors, weights, params):
        return self._advanced(self.rule.advance_in_place, trace, blocks, xs, factors, weights, params)

    def _advanced(self, advance, trace, blocks, xs, factors, weights, params):
        new = self._filtered(trace, blocks, xs, factors)
        if "rest" in trace:
            into_rest, further = self._into_rest(trace, blocks, xs, factors)
            advanced = advance(trace["rest"], *into_rest, weights, params)
            new["rest"] = self._with(further, advanced, weights, params)
        return new

    def turn(self, trace, signal, blocks, xs, factors, weights, params):
        if "rest" not in trace:
            return super().turn(trace, signal, blocks, xs, factors, weights, params)
        through = self._through_filtered(trace, signal, weights, params)
        into_rest, further = self._into_rest(trace, blocks, xs, factors)
        gradient, rest = self.rule.turn(trace["rest"], self._of_rest(signal), *into_rest, weights, params)
        new = self._filtered(trace, blocks, xs, factors) | {"rest": self._with(further, rest, weights, params)}
        return {name: through[name] + gradient[name] for name in weights}, new

    def contract(self, trace, signal, weights, params):
        gradient = self._through_filtered(trace, signal, weights, params)
        if "rest" not in trace:
            return gradient
        rest = self.rule.contract(trace["rest"], self._of_rest(signal), weights, params)
        return {name: gradient[name] + rest[name] for name in weights}

    def steps_at_once(self, trace, params):
        return self.rule.steps_at_once(trace["rest"], params) if "rest" in trace else 1

    def packed(self, trace):
        return trace | {"rest": self.rule.packed(trace["rest"])} if "rest" in trace else trace

    def _filtered(self, trace, blocks, xs, factors):
        """The filtered inputs, one step on."""
        x = widened(trace["x"])
        kept, added = (
            _shared(block_of(blocks, self.states, self.states), 2),
            _shared(columns_of(factors, self.states), 2),
        )
        new = {"x": jnp.tensordot(kept, x, 1) + jnp.tensordot(added.T, xs.astype(x.dtype), 1)}
        new |= {"one": kept @ widened(trace["one"]) + added.sum(0)} if "one" in trace else {}
        return {name: narrowed(value, trace[name].dtype) for name, value in new.items()}

    def _into_rest(self, trace, blocks, xs, factors):
        """Blocks, inputs and factors of the other states, and further steps: the filtered inputs."""
        own, rest, x = self.states, self._rest(factors.shape[1]), widened(trace["x"])
        across = jnp.moveaxis(block_of(blocks, rest, own), 1, 0)
        further = [(x, across)]
        if "one" in trace:
            beside = across * (widened(trace["one"]) - 1).reshape(-1, *(1,) * (across.ndim - 1))
            further.append((jnp.zeros_like(x), beside))
        xs, factors = xs.astype(x.dtype), columns_of(factors, rest)
        if len(xs) == 1:  # so few steps are one pass over the trace
            more_xs, more_factors = zip(*further, strict=True)
            xs, factors, further = jnp.concatenate([xs, *more_xs]), jnp.concatenate([factors, *more_factors]), []
        return (block_of(blocks, rest, rest), xs, factors), further

    def _with(self, further, trace, weights, params):
        """The trace of the other states and what further steps add, element by element, so that nothing is joined."""
        for xs, factors in further:
            for i in range(len(xs)):
                added = self.rule.accumulate(xs[i : i + 1], factors[i : i + 1], weights, params)
                trace = jax.tree.map(lambda old, new: narrowed(widened(old) + new, old.dtype), trace, added)
        return trace

    def _of_rest(self, signal):
        return rows_of(signal, self._rest(signal.shape[0]))

    def _through_filtered(self, trace, signal, weights, params):
        """The gradient by way of the states that factorise."""
        x, sent = trace["x"].astype(signal.dtype), rows_of(signal, self.states)
        of_x = self.rule.pullback(x, weights, sent, params)
        if "one" not in trace:
            return of_x
        one = trace["one"].reshape(-1, *(1,) * (signal.ndim - 1)).astype(signal.dtype)
        of_one = self.rule.pullback(jnp.zeros_like(x), weights, sent * (one - 1), params)
        return {name: of_x[name] + of_one[name] for name in weights}


def rows_of(values: Any, places: Sequence[int]) -> Any:
    """The rows of some states, of (S, ...)."""
    # One by one: XLA sees through slices and stacks, but not through a gather.
    return jnp.stack([values[place] for place in places])


def columns_of(values: Any, places: Sequence[int]) -> Any:
    """The entries of some states, of (K, S, ...)."""
    return jnp.stack([values[:, place] for place in places], 1)


def block_of(blocks: Any, rows: Sequence[int], columns: Sequence[int]) -> Any:
    """The block between some states, of (S, S, ...)."""
    return jnp.stack([jnp.stack([blocks[row][column] for column in columns]) for row in rows])


def _shared(values, lead):
    """The value that all elements, after `lead` axes, have."""
    return values.reshape(*values.shape[:lead], -1)[..., 0]
