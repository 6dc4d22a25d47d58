"""Which influences of a parameter leaf are kept, and how: as dense blocks of states by elements, or as one matrix."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

_WASTE = 0.9
"""Blocks of different sizes are stored apart where that leaves at most this share of the numbers."""

_DENSE_SHARE = 0.5
"""From this share of all influences on, and of all states in a block, one matrix takes less time than blocks do."""


class Block(NamedTuple):
    """Weight elements that influence the same states.

    Attributes
    ----------
    rows : array of int
        States; those that the elements reach within one step come first.
    first : int
        How many those are.
    cols : array of int
        Elements of a parameter leaf.
    """

    rows: np.ndarray
    first: int
    cols: np.ndarray


class Batch(NamedTuple):
    """G blocks of R states by M weight elements, filled up.

    Attributes
    ----------
    rows : array (G, R)
        States; their number N stands for none.
    cols : array (G, M)
        Elements of the leaf; its size stands for none.
    passes : array (G, F)
        Of the first F rows, the reverse pass that gives the derivatives by the elements; -1 for none.
    between : array (G, R, R)
        Index of the derivative of row by row among those of the reverse passes, (passes, N) flat; -1 for zero.
    """

    rows: np.ndarray
    cols: np.ndarray
    passes: np.ndarray
    between: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(G, R, M)."""
        return (*self.rows.shape, self.cols.shape[1])

    def meet(self, q: Any, C: Any, total: Any) -> Any:
        """Add q · C to `total`, the gradient of the leaf's elements; q and `total` end with a place for none."""
        met = (q[self.rows].astype(C.dtype)[:, :, None] * C).sum(1)
        return total.at[self.cols].add(met.astype(total.dtype))

    def advance(self, C: Any, between: Any, direct: Any) -> Any:
        """The blocks one step on: D C, and what the step adds.

        Parameters
        ----------
        between : array
            What the reverse passes give of the derivatives between states, flat, and a zero at the end.
        direct : array
            Of those by the elements, with a row and a column of zeros at the end.
        """
        D = between[self.between]
        if C.shape[1] <= 4:  # a product so small is faster as one fused sum
            new: Any = sum(D[:, :, k, None] * C[:, k, None, :] for k in range(C.shape[1]))
        else:
            new = jnp.einsum("grk,gkm->grm", D, C)
        added = direct[self.passes[:, :, None], self.cols[:, None, :]]
        return new.at[:, : added.shape[1]].add(added)


class Matrix(NamedTuple):
    """All influences, those that are not kept at zero.

    Attributes
    ----------
    passes : array (N,)
        Of each state, the reverse pass that gives the derivatives by the elements.
    present : booleans (N, size)
        Which of these may differ from zero.
    kept : booleans (N, size)
    between : array (N, N)
        As in `Batch`.
    """

    passes: np.ndarray
    present: np.ndarray
    kept: np.ndarray
    between: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(N, size)."""
        return self.kept.shape

    def meet(self, q: Any, C: Any, total: Any) -> Any:
        """As of `Batch`."""
        return total.at[:-1].add((q[:-1].astype(C.dtype) @ C).astype(total.dtype))

    def advance(self, C: Any, between: Any, direct: Any) -> Any:
        """As of `Batch`."""
        new = between[self.between] @ C + jnp.where(self.present, direct[self.passes, :-1], 0)
        return new if self.kept.all() else jnp.where(self.kept, new, 0)


def kept_blocks(between: sparse.csr_array, direct: sparse.csr_array, unit: np.ndarray, n: int) -> list[Block]:
    """The influences of a parameter leaf that arrive within n steps.

    Parameters
    ----------
    between : booleans (N, N)
        New states by previous ones.
    direct : booleans (N, size of the leaf)
        New states by the elements of the leaf.
    unit : array of int (N,)
        The unit of each state: what reaches one state of a unit is kept for all of them.
    n : int
        Steps.
    """
    by_element = sparse.csr_array(direct.T)
    by_element.sort_indices()
    elements: dict[bytes, list[int]] = {}
    for element, (a, b) in enumerate(zip(by_element.indptr[:-1], by_element.indptr[1:], strict=True)):
        if a < b:
            elements.setdefault(by_element.indices[a:b].tobytes(), []).append(element)
    if not elements:
        return []
    first = by_element[[members[0] for members in elements.values()]]
    same = sparse.csr_array((np.ones(unit.size, bool), (unit, np.arange(unit.size))))
    together = sparse.csr_array(same.T @ same)
    onwards = sparse.csr_array(between.T @ together)
    reached = sparse.csr_array(first @ together)
    for _ in range(n - 1):
        further = sparse.csr_array(reached + reached @ onwards)
        if further.nnz == reached.nnz:
            break
        reached = further
    blocks = []
    for k, members in enumerate(elements.values()):
        states = reached.indices[reached.indptr[k] : reached.indptr[k + 1]]
        at_once = np.zeros(unit.size, bool)
        at_once[first.indices[first.indptr[k] : first.indptr[k + 1]]] = True
        inside = between[states][:, states] + together[states][:, states]
        count, part = csgraph.connected_components(inside, directed=False)
        for p in range(count):
            rows = states[part == p]
            if at_once[rows].any():  # nothing ever enters the other parts
                rows = np.concatenate([rows[at_once[rows]], rows[~at_once[rows]]])
                blocks.append(Block(rows, int(at_once[rows].sum()), np.asarray(members)))
    return blocks


def needed_between(blocks: Sequence[Block], between: sparse.csr_array) -> sparse.csr_array:
    """The derivatives between states that some block needs."""
    distinct = {block.rows.tobytes(): block.rows for block in blocks}.values()
    pairs = [(np.repeat(rows, rows.size), np.tile(rows, rows.size)) for rows in distinct]
    i, j = (np.concatenate([np.zeros(0, int), *side]) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    inside = sparse.csr_array((np.ones(len(i), bool), (i, j)), between.shape)
    return sparse.csr_array(inside * between)


def reverse_passes(needed: sparse.csr_array, present: sparse.csr_array) -> np.ndarray:
    """Which rows of a Jacobian one reverse pass can give together, so that what is needed can be told apart.

    Returns
    -------
    array of int (rows,)
        Number of the pass; -1 for rows of which nothing is needed.
    """
    wanted = np.diff(needed.indptr) > 0
    kept = sparse.csr_array(sparse.dia_array((wanted[None], [0]), shape=(wanted.size,) * 2) @ present)
    shape: Any = kept.shape
    if kept.nnz > shape[0] * shape[1] / 16:
        meet = sparse.csr_array(needed.toarray().astype(np.float32) @ kept.toarray().astype(np.float32).T > 0)
    else:
        meet = sparse.csr_array(needed @ kept.T)
    meet = sparse.csr_array(meet + meet.T)
    found = np.full(wanted.size, -1)
    for row in np.flatnonzero(wanted):
        taken = np.zeros(wanted.size + 1, bool)
        taken[found[meet.indices[meet.indptr[row] : meet.indptr[row + 1]]]] = True  # -1 marks the last, unused place
        found[row] = np.argmin(taken)
    return found


def stored(
    blocks: Sequence[Block],
    passes: np.ndarray,
    between: np.ndarray,
    direct: sparse.csr_array,
    present: sparse.csr_array,
) -> list[Batch | Matrix]:
    """Blocks of a leaf, stacked with others of about their size; or one matrix, where they would be as large.

    Parameters
    ----------
    passes, between : array of int (N,)
        The reverse pass of each state, for derivatives by the leaf and by the previous states.
    direct, present : booleans (N, size of the leaf) and (N, N)
        Which of these derivatives may differ from zero.
    """
    shape: Any = direct.shape
    N, size = shape
    found: list[Batch | Matrix] = [_stack(group, passes, between, present, size) for group in _alike(list(blocks))]
    numbers, widest = sum(np.prod(batch.shape) for batch in found), max((b.rows.size for b in blocks), default=0)
    if numbers < _DENSE_SHARE * N * size or widest < _DENSE_SHARE * N:
        return found
    kept = np.zeros((N, size), bool)
    for block in blocks:
        kept[np.ix_(block.rows, block.cols)] = True
    everywhere = np.where(present.toarray(), between[:, None] * N + np.arange(N), -1)
    return [Matrix(passes, direct.toarray(), kept, np.where(between[:, None] < 0, -1, everywhere))]


def _alike(blocks: list[Block]) -> list[list[Block]]:
    """Divide blocks, by rows or by columns, where storing them apart saves enough."""
    found, pending = [], [(blocks, 2)] if blocks else []
    while pending:
        part, depth = pending.pop()
        sizes = np.array([(b.rows.size, b.cols.size) for b in part])
        whole = len(part) * sizes.max(0).prod()
        cost, order, at = min((_cut(sizes, axis) for axis in (0, 1)), key=lambda cut: cut[0])
        if depth and cost <= _WASTE * whole:
            apart = [part[k] for k in order]
            pending += [(apart[at:], depth - 1), (apart[:at], depth - 1)]
        else:
            found.append(part)
    return found


def _cut(sizes: np.ndarray, axis: int) -> tuple[float, np.ndarray, int]:
    """The best cut of blocks sorted along one axis: numbers to store, order, and place."""
    order = np.argsort(sizes[:, axis], kind="stable")
    below = np.maximum.accumulate(sizes[order])[:-1].prod(1)
    above = np.maximum.accumulate(sizes[order][::-1])[::-1][1:].prod(1)
    count = np.arange(1, len(sizes))
    cost = count * below + count[::-1] * above
    at = int(cost.argmin()) if cost.size else 0
    return (float(cost[at]) if cost.size else np.inf), order, at + 1


def _stack(blocks: list[Block], passes: np.ndarray, between: np.ndarray, present: sparse.csr_array, size: int) -> Batch:
    N, G = passes.size, len(blocks)
    R, M, F = (max(f(b) for b in blocks) for f in (lambda b: b.rows.size, lambda b: b.cols.size, lambda b: b.first))
    rows, cols = np.full((G, R), N, np.int32), np.full((G, M), size, np.int32)
    fresh, D = np.full((G, F), -1, np.int32), np.full((G, R, R), -1, np.int32)
    for g, b in enumerate(blocks):
        k = b.rows.size
        rows[g, :k], cols[g, : b.cols.size] = b.rows, b.cols
        fresh[g, : b.first] = passes[b.rows[: b.first]]
        linked = present[b.rows][:, b.rows].toarray()
        D[g, :k, :k] = np.where(linked, between[b.rows][:, None] * N + b.rows[None], -1)
    return Batch(rows, cols, fresh, D)
