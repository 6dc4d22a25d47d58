"""Matrices at every position, by entries: tuples of rows, whose entries are arrays or `Known` numbers."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from braintrace_compiler._entries import Known

Rows = tuple[tuple[Any, ...], ...]
"""A matrix."""


def is_zero(entry: Any) -> bool:
    """Whether an entry is known to vanish."""
    return isinstance(entry, Known) and entry.value == 0


def full(entry: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """An entry as an array of some shape, whose leading axes it may have alone."""
    value = jnp.asarray(entry.value if isinstance(entry, Known) else entry, dtype)
    return jnp.broadcast_to(value.reshape(*value.shape, *(1,) * (len(shape) - value.ndim)), shape)


def stacked(entries: Iterable[Any], shape: tuple[int, ...], dtype: Any, axis: int = 0) -> Any:
    """Entries as one array: each as `full` gives it, along a new `axis`."""
    return jnp.stack([full(entry, shape, dtype) for entry in entries], axis)


def matrix(rows: Iterable[Iterable[Any]], shape: tuple[int, ...], dtype: Any) -> Any:
    """Rows of entries as one array (rows, columns, *shape)."""
    return jnp.stack([stacked(row, shape, dtype) for row in rows])


def two_axes_as_one(values: Any) -> Any:
    """The first two axes as one; the others may be empty."""
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])
