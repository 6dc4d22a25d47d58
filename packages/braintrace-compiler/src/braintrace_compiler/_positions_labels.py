"""Labels on array elements, and the relations between the elements of two arrays that move them.

A label is an integer per element: ``NONE``, one position (zero or more), or ``MANY``. Labels join: ``NONE``
gives way, two different positions make ``MANY``.
"""

import enum
from dataclasses import dataclass

import numpy as np

NONE = -1
MANY = -2


def no_labels(shape: tuple[int, ...]) -> np.ndarray:
    """Labels of an array no element of which depends on anything."""
    return np.full(shape, NONE, np.int64)


def join(left: np.ndarray | None, right: np.ndarray) -> np.ndarray:
    """Element-wise join of two label arrays of one shape; None stands for no labels at all."""
    if left is None or left is right:
        return right
    return np.where(left == NONE, right, np.where((right == NONE) | (left == right), left, MANY))


def join_all(labels: np.ndarray) -> int:
    """The join of all elements of `labels`."""
    present = labels[labels != NONE]
    if present.size == 0:
        return NONE
    return int(present[0]) if (present == present[0]).all() else MANY


def take(labels: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``labels[index]`` over flat indices, where index -1 gives ``NONE``."""
    return np.append(labels, NONE)[index]


def put(labels: np.ndarray, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Drop every label at its flat `index` into an array of `shape` and join those that meet."""
    kept = (index >= 0) & (labels != NONE)
    where, what = index[kept], labels[kept]
    out = no_labels(shape).reshape(-1)
    out[where] = what
    clash = out[where] != what
    out[where[clash]] = MANY
    return out.reshape(shape)


class Whole(enum.Enum):
    """Relations that need no indices.

    ``SAME``: equal sizes, and elements correspond in row-major order. ``MIXING``: every output element may
    depend on every input element.
    """

    SAME = enum.auto()
    MIXING = enum.auto()

    def backward(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels of the input, of `shape`, from those of the output."""
        if self is Whole.SAME:
            return labels.reshape(shape)
        return np.full(shape, join_all(labels), np.int64)

    def forward(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels of the output, of `shape`, from those of the input."""
        return self.backward(labels, shape)


@dataclass(frozen=True, eq=False)
class Gather:
    """Every output element comes from at most one input element.

    Parameters
    ----------
    source : numpy.ndarray
        Flat input index per output element, -1 for none.
    """

    source: np.ndarray

    def backward(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels of the input, of `shape`, from those of the output."""
        return put(labels, self.source, shape)

    def forward(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels of the output, of `shape`, from those of the input."""
        return take(labels, self.source).reshape(shape)


@dataclass(frozen=True, eq=False)
class Scatter:
    """Every input element feeds at most one output element.

    Parameters
    ----------
    target : numpy.ndarray
        Flat output index per input element, -1 for none.
    """

    target: np.ndarray

    def backward(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels of the input, of `shape`, from those of the output."""
        return take(labels, self.target).reshape(shape)

    def forward(self, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Labels of the output, of `shape`, from those of the input."""
        return put(labels, self.target, shape)


Relation = Whole | Gather | Scatter
RelationTable = dict[tuple[int, int], Relation]
