"""D and F of a group at one point, from its local transition, in reverse mode throughout."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._entries import Entry, Known
from ._feeds import Feed, FeedKind, LocalTransition
from ._jaxpr import eval_jaxpr


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
        where that is proven, or an array of shape (*positions).
    F : list of tuples
        For each of `feeds` the S derivatives ∂h^t/∂y, each a number or an array of shape (*elements): per element of y,
        or per position where y is broadcast.
    """
    count, Y = transition.group.num_state, len(transition.y_vars)
    h, y, constants = list(inputs[:count]), list(inputs[count : count + Y]), inputs[count + Y :]

    def advance(h, y):
        return eval_jaxpr(transition.program, *h, *y, *constants)

    new, pull = jax.vjp(advance, h, y)
    seeds = [[jnp.ones_like(v) if r == s else jnp.zeros_like(v) for r, v in enumerate(new)] for s in states]
    rows = [pull(seed) for seed in seeds]

    if transition.mixes:
        D = [true_diagonals(lambda ct: [pull(ct)[0][r] for r in states], new, s) for s in states]
    else:
        D = [[h_bar[r] for r in states] for h_bar, _ in rows]
    F = []
    for slot, feed in feeds:
        if feed.kind is FeedKind.BROADCAST:
            # One source for each position: the forward derivative along ones, as the transpose of the reverse one,
            # since a custom reverse rule may have no forward counterpart.
            _, push = jax.vjp(lambda cts, slot=slot: pull(cts)[1][slot], [jnp.zeros_like(v) for v in new])
            pushed = push(jnp.ones_like(y[slot]))[0]
            if jnp.iscomplexobj(y[slot]):  # states are real: the two parts of F one after the other
                pushed = [a + 1j * b for a, b in zip(pushed, push(jnp.full_like(y[slot], -1j))[0], strict=True)]
            F.append([pushed[s] for s in states])
        elif feed.kind is FeedKind.DIAGONAL:
            F.append([true_diagonals(lambda ct, slot=slot: [pull(ct)[1][slot]], new, s)[0] for s in states])
        else:
            F.append([y_bar[slot] for _, y_bar in rows])
    constants = transition.constants
    return (
        tuple(
            tuple(_known(constants.D, s, r, value) for r, value in zip(states, row, strict=True))
            for s, row in zip(states, D, strict=True)
        ),
        [
            tuple(_known(constants.F, slot, s, value) for s, value in zip(states, column, strict=True))
            for (slot, _), column in zip(feeds, F, strict=True)
        ],
    )


def _known(proven: Sequence[Sequence[complex | None]], i: int, j: int, value: Any) -> Entry:
    """The number that is proven of an entry, or else its value."""
    number = proven[i][j] if proven else None
    return value if number is None else Known(number)


def true_diagonals(pull: Callable[[list[Any]], Sequence[Any]], new: Sequence[Any], s: int) -> Any:
    """Derivatives of state `s` at each position by inputs at the same position, from the full Jacobian."""
    size = int(np.prod(new[s].shape))

    def at(position):
        one_hot = jnp.zeros(size, new[s].dtype).at[position].set(1).reshape(new[s].shape)
        seed = [one_hot if r == s else jnp.zeros_like(v) for r, v in enumerate(new)]
        return jnp.stack([v.reshape(-1)[position] for v in pull(seed)])

    return jax.vmap(at, out_axes=-1)(jnp.arange(size)).reshape(-1, *new[s].shape)
