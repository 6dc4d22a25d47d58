"""The static pattern of a sparse matrix."""

import hashlib
from typing import Any

import jax
import numpy as np

from ._errors import OperandError, OperandTypeError
from ._jax_compat import is_traced

_WHERE = "SparsityPattern"


class SparsityPattern:
    """Positions of the stored entries of a matrix; immutable, hashable, compared by value.

    Entry k of a data vector belongs to ``(rows[k], cols[k])``. Repeated positions add up.

    Parameters
    ----------
    rows, cols : integer arrays of shape (nnz,)
    shape : tuple of two ints

    Attributes
    ----------
    rows, cols : read-only NumPy arrays of shape (nnz,)
    shape : tuple of two ints
    nnz : int

    Raises
    ------
    OperandError
        If the positions do not lie inside the matrix.
    OperandTypeError
        If the positions are not concrete integers.

    Examples
    --------
    >>> pattern = SparsityPattern([0, 2], [1, 1], (3, 2))
    >>> pattern
    SparsityPattern(3x2, nnz=2)
    >>> pattern == SparsityPattern.from_dense([[0, 1], [0, 0], [0, 5]])
    True
    """

    __slots__ = ("_digest", "cols", "rows", "shape")

    def __init__(self, rows: Any, cols: Any, shape: tuple[int, int]):
        self.rows, self.cols = _indices(rows, "rows"), _indices(cols, "cols")
        self.shape = (int(shape[0]), int(shape[1]))
        if self.rows.shape != self.cols.shape:
            raise OperandError(
                "rows and cols differ in length.", where=_WHERE, found=f"{self.rows.size} and {self.cols.size}"
            )
        for name, indices, size in zip(("rows", "cols"), (self.rows, self.cols), self.shape, strict=True):
            if indices.size and (indices.min() < 0 or indices.max() >= size):
                raise OperandError(
                    f"{name} leave the matrix.",
                    where=_WHERE,
                    found=f"{name} from {indices.min()} to {indices.max()}",
                    expected=f"0 to {size - 1}",
                    fix="remove padding entries, for instance with sum_duplicates()",
                )
        self._digest = hashlib.sha256(self.rows.tobytes() + self.cols.tobytes()).digest()

    @classmethod
    def from_csr(cls, indices: Any, indptr: Any, shape: tuple[int, int]) -> "SparsityPattern":
        """The pattern of a compressed-row matrix: columns `indices`, row boundaries `indptr`."""
        return cls(_expand(indptr), indices, shape)

    @classmethod
    def from_dense(cls, mask: Any) -> "SparsityPattern":
        """The positions of the non-zero entries of `mask`, row by row."""
        rows, cols = np.nonzero(mask)
        return cls(rows, cols, np.shape(mask))

    @classmethod
    def from_matrix(cls, matrix: Any) -> "SparsityPattern":
        """The pattern of a sparse matrix, its data in the order of ``matrix.data``.

        Taken by duck typing: BCOO and BCSR of JAX, CSR, CSC and COO of brainevent or SciPy, or a pattern.

        Raises
        ------
        OperandTypeError
            If the format is unknown or its indices are traced.
        """
        if isinstance(matrix, cls):
            return matrix
        shape, indices = getattr(matrix, "shape", ()), getattr(matrix, "indices", np.zeros(()))
        if len(shape) == 2:
            if hasattr(matrix, "row") and hasattr(matrix, "col"):
                return cls(matrix.row, matrix.col, shape)
            if hasattr(matrix, "indptr") and np.ndim(indices) == 1:
                if type(matrix).__name__.lower().startswith("csc"):
                    return cls(indices, _expand(matrix.indptr), shape)
                return cls.from_csr(indices, matrix.indptr, shape)
            if np.ndim(indices) == 2:
                if not is_traced(indices):
                    indices = np.asarray(indices)  # a slice of a JAX array would be traced where the call is
                return cls(indices[:, 0], indices[:, 1], shape)
        raise OperandTypeError(
            "This is not a sparse matrix with two plain axes.",
            where=_WHERE,
            found=f"{type(matrix).__name__} of shape {shape}",
            expected="a SparsityPattern, BCOO, BCSR, CSR, CSC or COO matrix",
            fix="build SparsityPattern(rows, cols, shape)",
        )

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.rows.size

    def todense(self, data: Any) -> Any:
        """The matrix with entries `data` as a dense array."""
        return jax.numpy.zeros(self.shape, data.dtype).at[self.rows, self.cols].add(data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparsityPattern):
            return NotImplemented
        return self.shape == other.shape and self._digest == other._digest

    def __hash__(self) -> int:
        return hash((self.shape, self._digest))

    def __repr__(self) -> str:
        return f"SparsityPattern({self.shape[0]}x{self.shape[1]}, nnz={self.nnz})"


def _indices(values, name):
    if is_traced(values):
        raise OperandTypeError(
            f"{name} are traced, but the pattern of a sparse matrix is static.",
            where=_WHERE,
            expected="concrete integers",
            fix="build the SparsityPattern outside of the transformed function",
        )
    array = np.array(values)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise OperandTypeError(
            f"{name} must be a vector of integers.", where=_WHERE, found=f"{array.dtype} of shape {array.shape}"
        )
    array = array.astype(np.int32)
    array.flags.writeable = False
    return array


def _expand(indptr):
    counts = np.diff(_indices(indptr, "indptr"))
    return np.repeat(np.arange(counts.size), counts)
