"""The one recursion behind every fold of a position-wise trace.

For a group with transition blocks D^t (S x S per position) and past signals q^t, all that a window asks for is

    M^{t-1} = M^t D^t + [q^t ; 0],      M^K = [l ; I]

of S + 1 rows for each position, backwards over the window. Row 0 is kappa^t, the cotangent that the rest of the
window sends to h^t; the other rows are the suffix products P^t = D^K ... D^{t+1}. Multiplied by F^t, row 0 gives what
the operation's output receives, and the others what the step leaves at the exit. Nothing is divided, so exact zeros
in D (hard resets) are safe.

With signals q^t = dl^t/dh^{t-1} the last step has none behind it, l = 0. Signals L^t = dl^t/dh^t at the new states
are the same thing one step later: q^t = L^{t-1}, q^1 = 0 and l = L^K.

M is made entry by entry. An entry to which no known path leads is zero and left out. One whose paths have known factors
only is an element of a power of the known part of D: a number for each step, computed beforehand. The others are
arrays over the positions, and these alone are carried backwards; rows that have them in the same columns, and nothing
else, as one array for each column, which XLA computes with one kernel.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_algos._entries import Rows, full, is_zero, stacked
from braintrace_compiler._entries import Known


def past_signals(q: Any) -> tuple[Any, Any]:
    """(q, l) of signals at the previous states, (K, S, *positions)."""
    return q, jnp.zeros_like(q[0])


def state_signals(L: Any) -> tuple[Any, Any]:
    """(q, l) of signals at the new states, (K, S, *positions)."""
    return jnp.concatenate([jnp.zeros_like(L[:1]), L[:-1]]), L[-1]


class Recursion:
    """M^t of one group over a window.

    Parameters
    ----------
    D : S rows of S entries, or None
        Numbers that are known, and anything else for arrays. None where nothing is remembered, D = 0.
    steps : pytree
        What the steps of the window left, with a leading axis of K.
    blocks : callable
        Gives D of a step, of arrays (*positions) and numbers, or None, and whatever else is wanted of it, such as F.
    signals : (q, l), or None
        Arrays (K, S, *positions) and (S, *positions). None where row 0 is not asked for: it is zero then.
    K, S : int
    positions : tuple of int
    dtype : dtype
    """

    def __init__(
        self,
        D: Rows | None,
        steps: Any,
        blocks: Callable[[Any], tuple[Rows | None, Any]],
        signals: tuple[Any, Any] | None,
        K: int,
        S: int,
        positions: tuple[int, ...],
        dtype: Any,
    ):
        self.D = D if D is not None else tuple((Known(0),) * S for _ in range(S))
        self.steps, self.blocks = steps, blocks
        self.signals, self.K, self.S, self.positions, self.dtype = signals, K, S, positions, dtype
        self.steps_apart = all(is_zero(entry) for row in self.D for entry in row)
        rank = _closure([[_rank(entry) for entry in row] for row in self.D])
        self.rank = [[_ARRAY if signals is not None else _ZERO] * S, *rank]
        self.together = _alike(self.rank)
        self.powers = self._powers()

    def _powers(self) -> Any:
        """The known part of D to the power of 0 ... K."""
        known = np.array([[e.value if isinstance(e, Known) else 0 for e in row] for row in self.D])
        powers = [np.eye(self.S, dtype=np.result_type(known, float))]
        for _ in range(self.K if any(_NUMBER in row for row in self.rank) else 0):
            powers.append(powers[-1] @ known)
        return np.stack(powers)

    def arrays(self) -> int:
        """Number of the entries of M that are arrays."""
        return sum(row.count(_ARRAY) for row in self.rank)

    def rows_of_arrays(self) -> int:
        """Number of the rows of M that have such entries."""
        return sum(_ARRAY in row for row in self.rank)

    def run(self, emit: Callable[[tuple[Any, ...], Any], Any]) -> tuple[list[Any], Rows]:
        """What `emit` makes of each row of M^t for t = 1 ... K, with a leading time axis, and M^0.

        Parameters
        ----------
        emit : callable
            ``emit(row, F)`` with the S entries of a row, which are arrays (*positions), arrays without axes, or
            numbers, and with what `blocks` gives besides D.
        """
        K, S = self.K, self.S
        known = {rows: self._known(rows) for rows in self.together}

        def sent(M, F):
            return {rows: _each_row(lambda row: emit(row, F), entries, rows) for rows, entries in M.items()}

        apart = jax.vmap(lambda M, step: sent(M, self.blocks(step)[1]), axis_size=K)
        carried = [rows for rows in self.together if _ARRAY in self.rank[rows[0]]]
        emitted = apart({rows: known[rows] for rows in self.together if rows not in carried}, self.steps)
        if not carried:
            return self._by_row(emitted), self._first({})
        if self.steps_apart:  # row 0 is the signal of the next step, and the others are known
            assert self.signals is not None  # row 0 is the one that has arrays
            q, l = self.signals
            later = jnp.concatenate([q[1:], l[None]])
            emitted |= apart({(0,): tuple(later[:, None, j] for j in range(S))}, self.steps)
            return self._by_row(emitted), self._first({(0,): {j: q[:1, j] for j in range(S)}})

        def back(moving, step):
            known, step, q = step
            D, F = self.blocks(step)
            assert D is not None  # else steps are apart
            M = {rows: tuple(moving[rows].get(j, known[rows][j]) for j in range(S)) for rows in carried}

            def one_back(row, columns):
                made = {j: sum(row[s] * D[s][j] for s in range(S)) for j in columns}
                return {j: full(value, self.positions, self.dtype) for j, value in made.items()}

            before = {rows: _each_row(partial(one_back, columns=moving[rows]), M[rows], rows) for rows in carried}
            if q is not None:
                first = carried[0]
                enters = [(0, len(first) - 1, 0), *((0, 0, 0),) * len(self.positions)]
                zero = jnp.zeros((), self.dtype)
                before[first] = {j: v + jax.lax.pad(q[j][None], zero, enters) for j, v in before[first].items()}
            return before, sent(M, F)

        signals: tuple[Any, Any] = (None, None) if self.signals is None else self.signals
        q, l = signals
        last = {rows: {j: self._last(rows, j, l) for j in self._columns(rows)} for rows in carried}
        # States one by one, along the axis that they were stacked along: then XLA need not join them.
        states = None if q is None else tuple(jnp.moveaxis(q, 1, 0))
        numbers = {rows: known[rows] for rows in carried}
        first, moved = jax.lax.scan(back, last, (numbers, self.steps, states), K, reverse=True)
        return self._by_row(emitted | moved), self._first(first)

    def _columns(self, rows: tuple[int, ...]) -> list[int]:
        """Columns in which rows that go together have arrays."""
        return [j for j, rank in enumerate(self.rank[rows[0]]) if rank == _ARRAY]

    def _known(self, rows: tuple[int, ...]) -> tuple[Any, ...]:
        """The entries of rows that go together over time, (K, rows); `Known(0)` where they are zero or arrays."""
        at = [-1 if rank != _NUMBER else j for j, rank in enumerate(self.rank[rows[0]])]
        numbers = self.powers[self.K - 1 :: -1, rows[0] - 1, :, None]
        return tuple(Known(0) if j < 0 else jnp.asarray(numbers[:, j], self.dtype) for j in at)

    def _last(self, rows: tuple[int, ...], j: int, l: Any) -> Any:
        """A column of M^K."""
        entries = (l[j] if i == 0 else Known(int(i - 1 == j)) for i in rows)
        return stacked(entries, self.positions, self.dtype)

    def _by_row(self, emitted: dict[tuple[int, ...], Any]) -> list[Any]:
        """One by one what was made of rows together, (K, rows, ...)."""
        found = {
            i: jax.tree.map(lambda v, place=place: v[:, place], values)
            for rows, values in emitted.items()
            for place, i in enumerate(rows)
        }
        return [found[i] for i in range(self.S + 1)]

    def _first(self, moving: dict[tuple[int, ...], dict[int, Any]]) -> Rows:
        """M^0."""

        def entry(i: int, j: int) -> Any:
            if self.rank[i][j] == _NUMBER:
                return Known(self.powers[self.K, i - 1, j].item())
            arrays = next((rows for rows in moving if i in rows), ())
            return moving[arrays][j][arrays.index(i)] if arrays and j in moving[arrays] else Known(0)

        return tuple(tuple(entry(i, j) for j in range(self.S)) for i in range(self.S + 1))


def _each_row(of: Callable[[tuple[Any, ...]], Any], entries: tuple[Any, ...], rows: tuple[int, ...]) -> Any:
    """What is made of rows that go together, each by itself, along a leading axis."""
    return jax.vmap(of, axis_size=len(rows))(entries)


_ZERO, _NUMBER, _ARRAY = range(3)


def _rank(entry: Any) -> int:
    return _ZERO if is_zero(entry) else _NUMBER if isinstance(entry, Known) else _ARRAY


def _closure(D: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the entries of every product of blocks are, the identity among them, from what those of a block are."""
    S = range(len(D))
    found = [[_NUMBER if i == j else _ZERO for j in S] for i in S]
    while True:
        longer = [
            [max([found[i][j], *(max(found[i][s], D[s][j]) for s in S if found[i][s] and D[s][j])]) for j in S]
            for i in S
        ]
        if longer == found:
            return found
        found = longer


def _alike(rank: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Rows that go together: those that have arrays in the same columns and zeros beside, and others alone."""
    found: dict[Any, list[int]] = {}
    for i, row in enumerate(rank):
        alone = _NUMBER in row or _ARRAY not in row
        found.setdefault((tuple(row), i if alone else None), []).append(i)
    return [tuple(rows) for rows in found.values()]
