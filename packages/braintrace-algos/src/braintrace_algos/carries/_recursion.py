"""The one recursion behind every fold of a position-wise trace.

For a group with transition blocks D^t (S x S per position) and past signals q^t, all that a window asks for is

    M^{t-1} = M^t D^t + [q^t ; 0],      M^K = [l ; I]

of S + 1 rows for each position, backwards over the window. Row 0 is kappa^t, the cotangent that the rest of the
window sends to h^t; the other rows are the suffix products P^t = D^K ... D^{t+1}. Multiplied by F^t, row 0 gives what
the operation's output receives, and the others what the step leaves at the exit. Nothing is divided, so exact zeros
in D (hard resets) are safe.

With signals q^t = dl^t/dh^{t-1} the last step has none behind it, l = 0. Signals L^t = dl^t/dh^t at the new states
are the same thing one step later: q^t = L^{t-1}, q^1 = 0 and l = L^K.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def past_signals(q: Any) -> tuple[Any, Any]:
    """(q, l) of signals at the previous states, (K, S, *positions)."""
    return q, jnp.zeros_like(q[0])


def state_signals(L: Any) -> tuple[Any, Any]:
    """(q, l) of signals at the new states, (K, S, *positions)."""
    return jnp.concatenate([jnp.zeros_like(L[:1]), L[:-1]]), L[-1]


def backwards(D: Any, q: Any, l: Any, emit: Callable[[Any, Any], Any], beside: Any) -> tuple[Any, Any]:
    """What `emit` makes of M^t for t = 1 ... K, with a leading time axis, and M^0.

    Parameters
    ----------
    D : array (K, S, S, *positions), or None
        None where nothing is remembered, D = 0.
    q : array (K, S, *positions)
    l : array (S, *positions)
    emit : callable
        ``emit(M, beside of the same step)`` with M of shape (S + 1, S, *positions).
    beside : pytree
        Of arrays with a leading axis of K.

    Returns
    -------
    pytree, array (S + 1, S, *positions)
    """
    S, positions = l.shape[0], l.shape[1:]
    eye = jnp.eye(S, dtype=l.dtype).reshape(S, S, *(1,) * len(positions))
    last = jnp.concatenate([l[None], jnp.broadcast_to(eye, (S, S, *positions))])
    if D is None:
        rows = jnp.concatenate([q[:, None], jnp.zeros((q.shape[0], S, S, *positions), l.dtype)], axis=1)
        return jax.vmap(emit)(jnp.concatenate([rows[1:], last[None]]), beside), rows[0]

    def back(M, step):
        D, q, beside = step
        before = sum(M[:, s, None] * D[s] for s in range(S))
        return before.at[0].add(q), emit(M, beside)

    M0, emitted = jax.lax.scan(back, last, (D, q, beside), reverse=True)
    return emitted, M0
