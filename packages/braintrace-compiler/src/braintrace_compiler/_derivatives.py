"""D and F of a group at one point, from its local transition, in reverse mode throughout."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._entries import Entry, Known
from ._feeds import Feed, FeedKind, LocalTransition
from ._jaxpr import build_jaxpr, eval_jaxpr, needed


def differentiate(
    transition: LocalTransition, feeds: Sequence[tuple[int, Feed]], states: Sequence[int], inputs: Sequence[Any]
) -> tuple[tuple[tuple[Entry, ...], ...], list[tuple[Entry, ...]]]:
    """D and F of some states of a group, by a reverse pass for each of them.

    Parameters
    ----------
    transition : LocalTransition
    feeds : sequence of (int, Feed)
        Numbers of the operations among ``transition.y_vars``, and how they feed the group.
    states : sequence of int
        Ordinals of the S states among those of a position.
    inputs : sequence of arrays
        Of ``transition.program``.

    Returns
    -------
    D : tuple of tuples
        ``D[s][r]`` is ∂h_s^t/∂h_r^{t-1} at equal positions; the true diagonal where positions mix. A `Known` number
        where that is proven, or an array of shape ``(*positions)``.
    F : list of tuples
        For each of `feeds` the S derivatives ∂h^t/∂y, each a number or an array of shape ``(*elements)``: per element
        of y, or per position where y is broadcast.
    """
    count, Y = transition.group.num_state, len(transition.y_vars)
    h, y, others = list(inputs[:count]), list(inputs[count : count + Y]), inputs[count + Y :]
    program, constants = transition.program, transition.constants
    D, F = [], [[] for _ in feeds]
    for s in states:
        known = [_proven(constants.D, s, r) for r in states], [_proven(constants.F, slot, s) for slot, _ in feeds]
        if None in (*known[0], *known[1]):
            # Of this state alone: zero cotangents of the others would be multiplied by all that they do not depend on.
            eqns, out = needed(program.eqns, [program.outvars[s]]), [program.outvars[s]]
            own = build_jaxpr(program.invars, out, eqns, like=program)
            new, pull = jax.vjp(lambda h, y, own=own: eval_jaxpr(own, *h, *y, *others), h, y)
            found = rows_of(transition, feeds, states, y, new, pull)
        else:
            found = known
        D.append(tuple(v if n is None else Known(n) for n, v in zip(known[0], found[0], strict=True)))
        for column, n, v in zip(F, known[1], found[1], strict=True):
            column.append(v if n is None else Known(n))
    return tuple(D), [tuple(column) for column in F]


def rows_of(
    transition: LocalTransition,
    feeds: Sequence[tuple[int, Feed]],
    states: Sequence[int],
    y: Sequence[Any],
    new: list[Any],
    pull: Callable[[list[Any]], Sequence[Any]],
) -> tuple[Sequence[Any], Sequence[Any]]:
    """The derivatives of one new state, in a list, by each state and by what each of `feeds` brings."""
    by_h, by_y = pull([jnp.ones_like(new[0])])
    D = (
        true_diagonals(lambda ct: [pull(ct)[0][r] for r in states], new, 0)
        if transition.mixes
        else [by_h[r] for r in states]
    )
    F = []
    for slot, feed in feeds:
        if feed.kind is FeedKind.BROADCAST:
            # One source for each position: the forward derivative along ones, as the transpose of the reverse one,
            # since a custom reverse rule may have no forward counterpart.
            _, push = jax.vjp(lambda cts, slot=slot: pull(cts)[1][slot], [jnp.zeros_like(new[0])])
            pushed = push(jnp.ones_like(y[slot]))[0][0]
            if jnp.iscomplexobj(y[slot]):  # states are real: the two parts of F one after the other
                pushed = pushed + 1j * push(jnp.full_like(y[slot], -1j))[0][0]
            F.append(pushed)
        elif feed.kind is FeedKind.DIAGONAL:
            F.append(true_diagonals(lambda ct, slot=slot: [pull(ct)[1][slot]], new, 0)[0])
        else:
            F.append(by_y[slot])
    return D, F


def _proven(numbers: Sequence[Sequence[complex | None]], i: int, j: int) -> complex | None:
    """The number that is proven of an entry, if any."""
    return numbers[i][j] if numbers else None


def true_diagonals(pull: Callable[[list[Any]], Sequence[Any]], new: Sequence[Any], s: int) -> Any:
    """Derivatives of state `s` at each position by inputs at the same position, from the full Jacobian."""
    size = int(np.prod(new[s].shape))

    def at(position):
        one_hot = jnp.zeros(size, new[s].dtype).at[position].set(1).reshape(new[s].shape)
        seed = [one_hot if r == s else jnp.zeros_like(v) for r, v in enumerate(new)]
        return jnp.stack([v.reshape(-1)[position] for v in pull(seed)])

    return jax.vmap(at, out_axes=-1)(jnp.arange(size)).reshape(-1, *new[s].shape)
