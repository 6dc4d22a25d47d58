"""A trace in as few passes over memory as XLA's CPU backend can be brought to.

By itself it writes the products of a trace and a signal before it sums them, and copies a trace of several states that
goes on, since each new state depends on all old ones. Here a trace is taken a row at a time. A row is what belongs to
one position outside the weight: one sample, for a dense product.

Shapes: trace (S, n, *w); S signals (n, *p), blocks (S, S, n, *p) and factors (T, S, n, *p) where p has the axes of w,
some of them of size one; xs (T, n, *r), likewise.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._precision import BITS, as_bits, computed_in, narrowed, of_bits, widened
from ._sharding import explicit_sharding

_LEAST = 2**14
"""Elements of a row from which on a loop over rows pays."""
_TOGETHER = 4
"""Rows that are summed in one round: fewer read and write the sum more often, more fill the cache."""
MOST_STEPS = 4
"""Outer products that are made on the way; more are better made as one matrix product."""


def pays(trace: Any, count: int, steps: int = 0) -> bool:
    """Whether a trace is best taken a row at a time on a CPU, with `steps` outer products added to it.

    Its shape is (S, *n, *w), with `count` axes that are one as n.
    """
    n, row = (math.prod(axes) for axes in (trace.shape[1 : 1 + count], trace.shape[1 + count :]))
    large = n > 1 and row >= _LEAST
    fast = trace.dtype.itemsize >= 4 or as_bits(trace).dtype == BITS  # float16 is converted slowly in these loops
    return large and fast and steps <= MOST_STEPS and explicit_sharding(trace) is None


def contract(trace: Any, signal: Sequence[Any]) -> Any:
    """``sum_{s, n} signal[s][n] · trace[s, n]``."""
    S, n, *shape = trace.shape
    trace = as_bits(trace)
    # In a loop only, of at least two rounds: elsewhere XLA computes the sum wherever it is used, and fuses a row with
    # what made the trace, for which it keeps a copy of the one before; so it does with a reshaped trace.
    together = next((count for count in range(_TOGETHER, 1, -1) if n % count == 0 and n > count), 1)
    narrow = signal[0].shape[1:]
    signal = [of_s.reshape(-1, together, math.prod(narrow)) for of_s in signal]  # else XLA copies it for the loop

    def add(k, total):
        for s, b in itertools.product(range(S), range(together)):
            total = total + _row(signal[s], k, b).reshape(narrow) * widened(_row(trace, s, k * together + b))
        return total

    start = jnp.zeros(shape, jnp.result_type(computed_in(trace.dtype), *signal))
    return jax.lax.fori_loop(0, n // together, add, start)


def advance(trace: Any, blocks: Any, xs: Any, factors: Any) -> Any:
    """``sum_r blocks[s, r] · trace[r] + sum_t factors[t, s] · xs[t]`` in the place of the trace."""
    S, n = trace.shape[:2]
    dtype, trace = trace.dtype, as_bits(trace)

    def row(trace, b):
        """Row b of the new trace, a tuple over states."""
        old = [widened(_row(trace, r, b)) for r in range(S)]
        inputs = [_row(xs, t, b) for t in range(xs.shape[0])]

        def of_state(s):
            terms = [_row(blocks, s, r, b) * old[r] for r in range(S)]
            terms += [_row(factors, t, s, b) * x for t, x in enumerate(inputs)]
            return narrowed(functools.reduce(operator.add, terms), trace.dtype)

        return tuple(of_state(s) for s in range(S))

    def put(trace, row, b):
        for s in range(S):
            trace = jax.lax.dynamic_update_slice(trace, row[s][None, None], (s, b, *(0,) * (trace.ndim - 2)))
        return trace

    # The states of a row depend on each other: XLA writes them in place only if that happens one round later.
    def pass_row(b, held):
        trace, last = held
        trace = put(trace, last, b - 1)
        return trace, row(trace, b)

    trace, last = jax.lax.fori_loop(1, n, pass_row, (trace, row(trace, 0)))
    return of_bits(put(trace, last, n - 1), dtype)


def _row(values: Any, *at: Any) -> Any:
    """``values[at]``; each row by itself, so that XLA fuses the slice with what reads it."""
    rest = values.shape[len(at) :]
    start, sizes = (*at, *(0,) * len(rest)), (*(1,) * len(at), *rest)
    return jax.lax.dynamic_slice(values, start, sizes, allow_negative_indices=False).reshape(rest)
