"""A trace in as few passes over memory as XLA's CPU backend can be brought to.

By itself it makes several passes over a trace that is contracted with a signal and then goes on: it writes the products
before it sums them, and copies the trace because it does not see that the sum comes first. Here a trace is taken a row
at a time, while the row is in cache; XLA writes a row from one core. Where there are more, a trace of one state is read
once for the sum, and then read and written in place, both by all cores. A row is what belongs to one position outside
the weight: one sample, for a dense product.

Shapes: trace (S, n, *w); S signals (n, *p), blocks (S, S, n, *p) and factors (T, S, n, *p) where p has the axes of w,
some of them of size one; xs (T, n, *r), likewise.
"""

import functools
import itertools
import math
import operator
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._sharding import explicit_sharding
from ._trace_rule import after

_LEAST = 2**14
"""Elements of a row from which on a loop over rows pays."""
_TOGETHER = 4
"""Rows that are summed in one round: fewer read and write the sum more often, more fill the cache."""
MOST_STEPS = 4
"""Outer products that are made on the way; more are better made as one matrix product."""


def pays(trace: Any, steps: int = 0) -> bool:
    """Whether a trace (S, n, *w) is best taken a row at a time on a CPU, with `steps` outer products added to it."""
    large = trace.shape[1] > 1 and math.prod(trace.shape[2:]) >= _LEAST
    wide = trace.dtype.itemsize >= 4  # half precision is converted slowly in these loops
    return large and wide and steps <= MOST_STEPS and explicit_sharding(trace) is None


def contract(trace: Any, signal: Sequence[Any]) -> Any:
    """``sum_{s, n} signal[s][n] · trace[s, n]``."""
    S, n, *shape = trace.shape
    # In a loop only, of at least two rounds: elsewhere XLA computes the sum wherever it is used, and fuses a row with
    # what made the trace, for which it keeps a copy of the one before; so it does with a reshaped trace.
    together = next((count for count in range(_TOGETHER, 1, -1) if n % count == 0 and n > count), 1)
    narrow = signal[0].shape[1:]
    signal = [of_s.reshape(-1, together, math.prod(narrow)) for of_s in signal]  # else XLA copies it for the loop

    def add(k, total):
        for s, b in itertools.product(range(S), range(together)):
            total = total + _row(signal[s], k, b).reshape(narrow) * _row(trace, s, k * together + b)
        return total

    start = jnp.zeros(shape, jnp.result_type(trace, *signal))
    return jax.lax.fori_loop(0, n // together, add, start)


def turn(trace: Any, signal: Sequence[Any], blocks: Any, xs: Any, factors: Any) -> tuple[Any, Any]:
    """`contract`, and in the place of the trace ``sum_r blocks[s, r] · trace[r] + sum_t factors[t, s] · xs[t]``."""
    S, n = trace.shape[:2]

    def advanced(trace, b):
        """Row b of the new trace, a tuple over states."""
        old = [_row(trace, r, b) for r in range(S)]
        inputs = [_row(xs, t, b) for t in range(xs.shape[0])]

        def of_state(s):
            terms = [_row(blocks, s, r, b) * old[r] for r in range(S)]
            terms += [_row(factors, t, s, b) * x for t, x in enumerate(inputs)]
            return functools.reduce(operator.add, terms).astype(trace.dtype)

        return tuple(of_state(s) for s in range(S))

    def put(trace, row, b):
        for s in range(S):
            trace = jax.lax.dynamic_update_slice(trace, row[s][None, None], (s, b, *(0,) * (trace.ndim - 2)))
        return trace

    if S == 1:
        one_state = _in_two_passes if _cores() > 1 else _in_one_pass
        return one_state(trace, signal, blocks, xs, factors)

    # The states of a row depend on each other: XLA writes them in place only if that happens one round later.
    def pass_row(b, held):
        total, trace, row = held
        trace = put(trace, row, b - 1)
        return total + _contracted(trace, signal, b), trace, advanced(trace, b)

    first = _contracted(trace, signal, 0), trace, advanced(trace, 0)
    total, trace, row = jax.lax.fori_loop(1, n, pass_row, first)
    return total, put(trace, row, n - 1)


def _in_one_pass(trace: Any, signal: Sequence[Any], blocks: Any, xs: Any, factors: Any) -> tuple[Any, Any]:
    n = trace.shape[1]
    together = 2 if n % 2 == 0 else 1

    def pass_rows(k, held):
        total, trace = held
        begin = k * together

        def rows(values, axis):
            return jax.lax.dynamic_slice_in_dim(values, begin, together, axis)

        for b in range(together):
            total = total + _contracted(trace, signal, begin + b)
        old = total, rows(trace, 1), rows(blocks[0], 1), rows(factors, 2), rows(xs, 1)
        return total, jax.lax.dynamic_update_slice_in_dim(trace, _advanced(*old), begin, 1)

    start = jnp.zeros_like(_contracted(trace, signal, 0))
    return jax.lax.fori_loop(0, n // together, pass_rows, (start, trace))


def _in_two_passes(trace: Any, signal: Sequence[Any], blocks: Any, xs: Any, factors: Any) -> tuple[Any, Any]:
    total = contract(trace, signal)
    return total, _advanced(total, trace, blocks[0], factors, xs)


def _advanced(total: Any, trace: Any, decay: Any, factors: Any, xs: Any) -> Any:
    """The new trace of one state, in the place of the old one, which `total` reads before."""
    new = after(decay, total) * trace
    for factor, x in zip(factors, xs, strict=True):
        new = new + factor * x
    return new.astype(trace.dtype)


def _cores() -> int:
    """Cores that XLA shares a loop among."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _contracted(trace: Any, signal: Sequence[Any], b: Any) -> Any:
    """Row b of ``sum_s signal[s] · trace[s]``."""
    return functools.reduce(operator.add, (_row(of_s, b) * _row(trace, s, b) for s, of_s in enumerate(signal)))


def _row(values: Any, *at: Any) -> Any:
    """``values[at]``; each row by itself, so that XLA fuses the slice with what reads it."""
    rest = values.shape[len(at) :]
    start, sizes = (*at, *(0,) * len(rest)), (*(1,) * len(at), *rest)
    return jax.lax.dynamic_slice(values, start, sizes, allow_negative_indices=False).reshape(rest)
