"""The local transition of a group, how operations feed it, and what is proven of both."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._hidden_groups import HiddenGroup
from ._jaxpr import Jaxpr, Var


class FeedKind(enum.Enum):
    """How the elements of y and the positions of a group are matched."""

    SAME = "same"
    """y has the shape of the positions and every element feeds its own."""
    GATHER = "gather"
    """Every element of y feeds at most one position; the index gives it, for each element of y."""
    BROADCAST = "broadcast"
    """Every position is fed by at most one element of y; the index gives it, for each position."""
    DIAGONAL = "diagonal"
    """Positions are mixed on the way; only the path from an element to its own position is traced."""


class Feed(NamedTuple):
    """Which elements of y feed which positions of a group; see `FeedKind`."""

    kind: FeedKind
    index: np.ndarray | None = None


class ConstantFactors(NamedTuple):
    """Which local derivatives of a group are numbers: the same for all data, at all positions, at all times.

    Attributes
    ----------
    D : tuple of tuples
        ``D[s][r]`` is ∂h_s^t/∂h_r^{t-1} where it is one number; None where that is not proven.
    F : tuple of tuples
        For each operation that feeds the group, ∂h_s^t/∂y likewise.
    """

    D: tuple[tuple[complex | None, ...], ...]
    F: tuple[tuple[complex | None, ...], ...]

    def decays(self, states: Sequence[int]) -> bool:
        """Whether D is known between all of `states`."""
        return all(self.D[s][r] is not None for s in states for r in states)

    def drives(self, slot: int, states: Sequence[int]) -> bool:
        """Whether F from the operation in `slot` to all of `states` is known."""
        return all(self.F[slot][s] is not None for s in states)


class LocalTransition(NamedTuple):
    """The transition of a group along paths that cross no ETP operation and no other group's new state.

    Attributes
    ----------
    group : HiddenGroup
    y_vars : tuple of Var
        Outputs of the operations that feed the group.
    program : Jaxpr
        ``(h^{t-1} of each of the S states of a position, each y, constants) -> h^t of each of them``.
    constvars : tuple of Var
    remembers : bool
        Whether h^{t-1} reaches h^t at all; if not, D = 0.
    mixes : bool
        Whether h^{t-1} reaches other positions than its own.
    constants : ConstantFactors
        What is proven of D and F.
    """

    group: HiddenGroup
    y_vars: tuple[Var, ...]
    program: Jaxpr
    constvars: tuple[Var, ...]
    remembers: bool
    mixes: bool
    constants: ConstantFactors = ConstantFactors((), ())
