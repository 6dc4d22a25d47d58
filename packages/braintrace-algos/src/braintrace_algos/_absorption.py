"""Absorbed memory at work: the rows that it adds to D, F and the signals of a group (see `LinearMemory`)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_compiler import LinearMemory
from braintrace_compiler._entries import Known

from ._entries import Rows
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
    memory: LinearMemory,
    live: Sequence[int],
    slots: Sequence[int],
    D: Rows,
    F: Sequence[tuple[Any, ...]],
    inputs: Sequence[Any],
) -> tuple[Rows, list[tuple[Any, ...]]]:
    """D and F of a group with what it takes in, [[D, 0], [c ∂z/∂h, K]] and [F; c ∂z/∂y].

    Parameters
    ----------
    memory : LinearMemory
    live : sequence of int
        Ordinals of the states of the group that carry a trace; they come first among the S states.
    slots : sequence of int
        For each of `F` the number of the operation among those that feed the group.
    D : S rows of S entries
    F : sequence of S entries each
    inputs : sequence of arrays
        Of the memory's program.
    """
    of_h, of_y = memory.derivatives(inputs)
    gains, zero = [Known(c.item()) for c in memory.gain], Known(0)
    upper = [(*row, *(zero for _ in gains)) for row in D]
    lower = [
        (*(gain * of_h[r] for r in live), *(zero for _ in range(len(D) - len(live))), *(Known(k.item()) for k in decay))
        for gain, decay in zip(gains, memory.decay, strict=True)
    ]
    gained = [(*f, *(gain * of_y[slot] for gain in gains)) for slot, f in zip(slots, F, strict=True)]
    return (*upper, *lower), gained
