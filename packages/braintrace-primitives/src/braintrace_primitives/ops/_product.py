"""The trace rule shared by all operations that are an einsum of input and weight."""

import functools
import math
import operator
import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_primitives import _rows
from braintrace_primitives._precision import as_bits, narrowed, widened
from braintrace_primitives._sharding import explicit_sharding
from braintrace_primitives._trace_rule import TraceRule, cast_like, in_precision_of, mix, sum_leading

_FEW = 64
"""Terms of a weight's gradient for which no layout of its own pays."""


class Equation(NamedTuple):
    """Axis letters of ``y = einsum(x, weight)``; input and output may have further leading axes in common."""

    x: str
    weight: str
    y: str

    def layout(self) -> str:
        """Axes of the trace: those of y that the weight lacks, then those of the weight.

        A weight axis that is merely summed out, shared with neither x nor y, needs no trace of its own.
        """
        free = [c for c in self.y if c not in self.weight]
        return "".join(free) + self.kept()

    def kept(self) -> str:
        """Axes of the weight that x or y have too."""
        return "".join(c for c in self.weight if c in self.x + self.y)

    def spare(self) -> str:
        """Letters that do not occur."""
        return "".join(c for c in string.ascii_letters if c not in "".join(self))


class ProductTraceRule(TraceRule):
    """Trace ``F · x`` kept on the axes of y and of the weight together.

    With ``y = einsum(x, weight)``, ``∂y/∂weight`` is `x` where the axes that y and weight share agree, and
    zero elsewhere. So the trace needs each axis of y and of the weight once: (S, ..., I, O) for a dense
    product. The bias, of the shape of y without its leading axes, has a trace of shape (S, *y).

    Parameters
    ----------
    fn : callable
    equation : callable
        ``equation(params) -> Equation``.
    """

    def __init__(self, fn: Callable[..., Any], equation: Callable[[Mapping[str, Any]], Equation]):
        super().__init__(fn)
        self.equation = equation

    def pullback(self, xs, weights, gs, params):
        equation = self.equation(params)
        gs = gs.astype(jnp.result_type(xs, *weights.values()))
        return {name: cast_like(_pullback(name, equation, xs, gs, w), w) for name, w in weights.items()}

    def acts_beside_input(self, weights):
        return "bias" in weights

    def fan_in(self, name, weights, params):
        if name != "weight":
            return 1
        equation = self.equation(params)
        axes = zip(equation.weight, weights[name].shape, strict=True)
        return math.prod(size for axis, size in axes if axis not in equation.y)

    def init(self, x, weights, y, num_states, params, dtype):
        equation = self.equation(params)
        lead = y.shape[: len(y.shape) - len(equation.y)]
        sizes = dict(zip(equation.y, y.shape[len(lead) :], strict=True))
        sizes |= dict(zip(equation.weight, weights["weight"].shape, strict=True))
        shapes = {"weight": (*lead, *(sizes[c] for c in equation.layout())), "bias": y.shape}
        return {name: jnp.zeros((num_states, *shapes[name]), dtype) for name in weights}

    def accumulate(self, xs, factors, weights, params):
        equation = self.equation(params)
        trace = {"weight": outer(equation, in_precision_of(factors, xs), factors)}
        return trace | {"bias": _summed(equation, factors)} if "bias" in weights else trace

    def decay(self, trace, blocks, params):
        aligned = {"weight": align(self.equation(params), blocks), "bias": blocks}
        return {name: mix(aligned[name], old).astype(old.dtype) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        equation = self.equation(params)
        # States one by one before they are aligned: then XLA sees through the stack that they come from.
        aligned = {"weight": [align(equation, of_s) for of_s in signal], "bias": list(signal)}
        kept = {"weight": equation.kept(), "bias": equation.y}

        def gradient(name, w):
            total = _contracted(trace[name], aligned[name], len(kept[name]))
            return cast_like(_spread(total, name, equation, w), w)

        return {name: gradient(name, w) for name, w in weights.items()}

    def advance_in_place(self, trace, blocks, xs, factors, weights, params):
        equation, whole = self.equation(params), trace["weight"]
        count = whole.ndim - 1 - len(equation.kept())

        def plain(trace, blocks, xs, factors):
            return self.advance(trace, blocks, xs, factors, weights, params)

        def by_rows(trace, blocks, xs, factors):
            new = _rows.advance(
                _in_rows(trace["weight"], 1, count),
                _in_rows(align(equation, blocks), 2, count),
                _in_rows(_align_input(equation, in_precision_of(factors, xs)), 1, count),
                _in_rows(align(equation, factors), 2, count),
            )
            advanced = {"weight": new.reshape(whole.shape)}
            if "bias" in trace:
                kept = mix(blocks, widened(trace["bias"]))
                advanced["bias"] = narrowed(kept + _summed(equation, factors), trace["bias"].dtype)
            return advanced

        operands = trace, blocks, xs, factors
        if len(whole) == 1 or not _rows.pays(whole, count, len(factors)):  # XLA advances one state in place by itself
            return plain(*operands)
        return jax.lax.platform_dependent(*operands, cpu=by_rows, default=plain)

    def steps_at_once(self, trace, params):
        whole = trace["weight"]
        count = whole.ndim - 1 - len(self.equation(params).kept())
        return _rows.MOST_STEPS if jax.default_backend() == "cpu" and _rows.pays(whole, count) else 1

    def packed(self, trace):
        return trace | {"weight": as_bits(trace["weight"])}


def outer(equation: Equation, xs: Any, factors: Any) -> Any:
    """``sum_t factors[t] · x[t]`` in the layout of the trace, for xs (T, *x) and factors (T, S, *y)."""
    if 0 < len(xs) <= _rows.MOST_STEPS:  # element by element they fuse with what they are added to, a product does not
        steps = zip(_align_input(equation, xs), align(equation, factors), strict=True)
        return functools.reduce(operator.add, (x * f for x, f in steps))
    t, *rest = equation.spare()
    lead = "".join(rest[: xs.ndim - 1 - len(equation.x)])
    subscripts = f"{t}{lead}{equation.x},{t}{lead}{equation.y}->{lead}{equation.layout()}"
    # One contraction per state is faster than one over all: the factors of a state stay as they lie.
    return jnp.stack([jnp.einsum(subscripts, xs, factors[:, s]) for s in range(factors.shape[1])])


def _summed(equation: Equation, factors: Any) -> Any:
    """``sum_t factors[t]``, for factors (T, S, *y)."""
    lead = factors.shape[2 : factors.ndim - len(equation.y)]
    if not lead or len(factors) <= _rows.MOST_STEPS or explicit_sharding(factors) is not None:
        return sum_leading(factors, 1)
    # As a product with ones that reads the factors as they are laid out for `outer`: XLA makes them but once.
    t, *rest = equation.spare()
    steps, y = t + "".join(rest[: len(lead)]), "".join(rest[: len(lead)]) + equation.y
    ones = jnp.ones((len(factors), *lead), factors.dtype)
    return jnp.stack([jnp.einsum(f"{steps},{t}{y}->{y}", ones, factors[:, s]) for s in range(factors.shape[1])])


def align(equation: Equation, values: Any) -> Any:
    """Values (..., *y) with their axes in the order of the trace, size one where y lacks the axis."""
    layout, front = equation.layout(), values.ndim - len(equation.y)
    order = sorted(range(len(equation.y)), key=lambda i: layout.index(equation.y[i]))
    values = values.transpose(*range(front), *(front + i for i in order))
    return jnp.expand_dims(values, [front + i for i, c in enumerate(layout) if c not in equation.y])


def _align_input(equation: Equation, xs: Any) -> Any:
    """Inputs (..., *x) with their axes in the order of the trace, as `align` does for y; other axes are summed out."""
    layout = equation.layout()
    own = "".join(c for c in layout if c in equation.x)
    values = jnp.einsum(f"...{equation.x}->...{own}", xs)
    front = values.ndim - len(own)
    return jnp.expand_dims(values, [front + i for i, c in enumerate(layout) if c not in own])


def _in_rows(values: Any, front: int, count: int) -> Any:
    """The `count` axes behind the first `front` ones as one."""
    n = math.prod(values.shape[front : front + count])
    return values.reshape(*values.shape[:front], n, *values.shape[front + count :])


def _contracted(trace: Any, signal: Any, kept: int) -> Any:
    """``signal · trace`` summed over states and over all axes but the last `kept`."""
    count = trace.ndim - 1 - kept

    def plain(trace, signal):
        terms = (of_s * widened(trace[s]) for s, of_s in enumerate(signal))
        return sum_leading(functools.reduce(operator.add, terms), count)

    def by_rows(trace, signal):
        return _rows.contract(_in_rows(trace, 1, count), [_in_rows(of_s, 0, count) for of_s in signal])

    if not _rows.pays(trace, count):
        return plain(trace, signal)
    return jax.lax.platform_dependent(trace, signal, cpu=by_rows, default=plain)


def _pullback(name, equation, xs, gs, w):
    if name == "bias":
        return gs.sum(tuple(range(gs.ndim - len(equation.y))))
    count = xs.ndim - len(equation.x)
    if count > 1 and math.prod(xs.shape[:count]) <= _FEW and explicit_sharding(xs) is None:
        # XLA lays out a sum over several axes anew, with a kernel to compile for it, and one over a single axis not.
        xs, gs, count = _in_rows(xs, 0, count), _in_rows(gs, 0, count), 1
    front = equation.spare()[:count]
    subscripts = f"{front}{equation.x},{front}{equation.y}->{equation.kept()}"
    sharding = explicit_sharding(w) if equation.kept() == equation.weight else None
    return _spread(jnp.einsum(subscripts, xs, gs, out_sharding=sharding), name, equation, w)


def _spread(total, name, equation, w):
    """Broadcast along the weight axes that the op sums out."""
    if name == "bias" or equation.kept() == equation.weight:
        return total
    missing = [i for i, c in enumerate(equation.weight) if c not in equation.kept()]
    return jnp.broadcast_to(jnp.expand_dims(total, missing), w.shape)
