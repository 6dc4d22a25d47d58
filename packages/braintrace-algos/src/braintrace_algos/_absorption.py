"""Absorbed memory at work: the rows that it adds to D, F and the signals of a group (see `LinearMemory`)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_compiler import LinearMemory

from ._feeds import spread


def absorbed_signals(memory: LinearMemory, at_target: Sequence[Any], weights: dict[str, Any]) -> list[Any]:
    """∂l/∂z̄ at the positions of the group that takes the memory in, for each absorbed state.

    Parameters
    ----------
    memory : LinearMemory
    at_target : sequence of arrays (*positions)
        ∂l/∂r for each state of a position of the group that has the memory.
    weights : dict
        Of the operation between them.
    """
    operation = memory.operation
    z, y = operation.x_var.aval, operation.y_var.aval
    out, pull = jax.vjp(
        lambda z: operation.spec.trace_rule.fn(z, weights, operation.eqn.params), jnp.zeros(z.shape, z.dtype)
    )

    def back(signal: Any) -> Any:
        (of_z,) = pull(spread(memory.feed, signal, 0).reshape(y.shape).astype(out.dtype))
        return memory.at_positions(of_z).astype(signal.dtype)

    return [back(at_target[s]) for s in memory.states]


def absorb(
    memory: LinearMemory, live: Sequence[int], slots: Sequence[int], D: Any, F: Sequence[Any], inputs: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """D and F of a group with what it takes in, [[D, 0], [c ∂z/∂h, K]] and [F; c ∂z/∂y].

    Parameters
    ----------
    memory : LinearMemory
    live : sequence of int
        Ordinals of the states of the group that carry a trace; they come first among the S states.
    slots : sequence of int
        For each of `F` the number of the operation among those that feed the group.
    D : array (S, S, *positions)
    F : sequence of arrays (S, *elements)
    inputs : sequence of arrays
        Of the memory's program.
    """
    of_h, of_y = memory.derivatives(inputs)
    S, n, positions = D.shape[0], len(memory.states), D.shape[2:]

    def gained(value: Any, dtype: Any) -> Any:
        gain = jnp.asarray(memory.gain, dtype).reshape(n, *(1,) * value.ndim)
        return gain * value.astype(dtype)

    before = [gained(of_h[r], D.dtype)[:, None] for r in live]
    before += [jnp.zeros((n, S - len(live), *positions), D.dtype)]
    decay = jnp.asarray(memory.decay, D.dtype).reshape(n, n, *(1,) * len(positions))
    upper = jnp.concatenate([D, jnp.zeros((S, n, *positions), D.dtype)], 1)
    lower = jnp.concatenate([*before, jnp.broadcast_to(decay, (n, n, *positions))], 1)
    more = [gained(of_y[slot], f.dtype) for slot, f in zip(slots, F, strict=True)]
    return jnp.concatenate([upper, lower]), [jnp.concatenate([f, rows]) for f, rows in zip(F, more, strict=True)]
