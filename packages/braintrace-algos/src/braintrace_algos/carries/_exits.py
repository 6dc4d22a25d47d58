"""What a window leaves in a trace, by the recursion of its group."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_algos._entries import Rows, stacked
from braintrace_algos._feeds import feed_shape, spread
from braintrace_algos._plan import Coupling, Operands, Plan
from braintrace_compiler._entries import Known
from braintrace_primitives._precision import computed_in

from ._recursion import Recursion


def received(own: Sequence[Coupling], recursion: Recursion) -> tuple[dict[str, tuple[Any, ...]], Rows]:
    """M^t F^t at the elements of each coupling of a group, S + 1 entries (K, *elements), and M^0.

    They are made inside the recursion or after it, whichever keeps fewer arrays.
    """

    def through(row, F):
        return {c.key: _through_F(c, row, F[c.key], len(recursion.positions)) for c in own}

    if len(own) * recursion.rows_of_arrays() <= recursion.arrays():
        received, M0 = recursion.run(through)
    else:
        M, M0 = recursion.run(lambda row, _: row)
        received = jax.vmap(lambda M, step: [through(row, recursion.blocks(step)[1]) for row in M])(M, recursion.steps)
    return {c.key: tuple(of[c.key] for of in received) for c in own}, M0


def _through_F(c: Coupling, row: Sequence[Any], F: Sequence[Any], axes: int) -> Any:
    """A row of M times F, at the elements that carry the trace."""
    at = (m if isinstance(m, Known) or m.ndim < axes else spread(c.feed, m, 0) for m in row)
    return sum(m * f for m, f in zip(at, F, strict=True))


def left_behind(plan: Plan, c: Coupling, recursion: Recursion, left: Sequence[Any]) -> tuple[tuple[int, ...], Any]:
    """What each step of a window leaves at its exit, (K, S, *elements), and the shape of an entry."""
    y = plan.operations[c.operation].y_var.aval
    shape = (recursion.K, *feed_shape(c.feed, y.shape))
    return shape, stacked(left, shape, jnp.result_type(recursion.dtype, y.dtype), 1)


def additions(uses: Sequence[Coupling], trace: Any, P: Any, PF: Mapping[str, Any], x: Any) -> tuple[Any, Any, Any]:
    """Blocks (None where nothing is remembered), inputs and factors that a window adds to a trace."""
    c = uses[0]
    dtype = computed_in(jax.tree.leaves(trace)[0].dtype)
    kept = slice(-1, None) if P is None else slice(None)  # without memory only the last step is still there
    # Each further use of a weight is so many more time steps to the sum.
    factors = _joined([PF[use.key][kept].astype(dtype) for use in uses])
    inputs = None if x[c.operation] is None else _joined([x[use.operation][kept] for use in uses])
    return None if P is None else spread(c.feed, P, 2).astype(dtype), inputs, factors


def exit_of(
    plan: Plan, uses: Sequence[Coupling], trace: Any, P: Any, PF: Mapping[str, Any], x: Any, weights: Operands
) -> Any:
    """The trace of the `uses` of a weight at the exit of a window.

    Parameters
    ----------
    P : array (R, S, *positions), or None
        The transition of the window; None where nothing is remembered.
    PF : mapping
        Key -> (K, R, *elements), what each step leaves at the exit.
    x : sequence
        Inputs of the operations, (K, *x) each.
    """
    c = uses[0]
    rule, params = c.rule, plan.operations[c.operation].eqn.params
    blocks, inputs, factors = additions(uses, trace, P, PF, x)
    if blocks is None:
        added = rule.accumulate(inputs, factors, weights[c.operation], params)
        return jax.tree.map(lambda old, value: value.astype(old.dtype), trace, added)
    return rule.advance(trace, blocks, inputs, factors, weights[c.operation], params)


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
