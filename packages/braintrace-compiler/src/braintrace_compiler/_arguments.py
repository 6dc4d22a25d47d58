"""The arguments of a step: data that is traced, and static values that the program is compiled for."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class _Data(enum.Enum):
    DATA = "data"

    def __repr__(self) -> str:
        return "*"


DATA = _Data.DATA
"""Stands where a leaf is data."""


class Arguments(NamedTuple):
    """How a step is called: the structure of its arguments, and the values of those that are static.

    Arrays and numbers, alone or anywhere in a pytree, are data. Everything else (bools, strings, functions, ...) is
    static: the step is compiled for its value.

    Attributes
    ----------
    tree : PyTreeDef
        Of ``(positional arguments, keyword arguments)``.
    leaves : tuple
        One for each leaf: `DATA`, or a static value.

    Examples
    --------
    >>> arguments, data = Arguments.split((1.0, "sum"), {"training": True})
    >>> data
    [1.0]
    >>> arguments.join([2.0])
    ((2.0, 'sum'), {'training': True})
    """

    tree: Any
    leaves: tuple[Any, ...]

    @classmethod
    def split(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple["Arguments", list[Any]]:
        """The call ``(*args, **kwargs)``, and its data."""
        leaves, tree = jax.tree.flatten((tuple(args), dict(kwargs)))
        kinds, data = [], []
        for leaf in leaves:  # once, as every call of a learner comes here
            if is_data(leaf):
                kinds.append(DATA)
                data.append(leaf)
            else:
                kinds.append(leaf)
        return cls(tree, tuple(kinds)), data

    def join(self, data: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments from the data."""
        values = iter(data)
        return jax.tree.unflatten(self.tree, [next(values) if leaf is DATA else leaf for leaf in self.leaves])

    def names(self) -> list[str]:
        """A name for each leaf, such as ``argument 0['x']`` or ``keyword training``."""
        call = jax.tree.unflatten(self.tree, range(len(self.leaves)))
        names = []
        for (part, which, *inside), _ in jax.tree_util.tree_leaves_with_path(call):
            keyword = part.idx == 1
            names.append(f"keyword {which.key}" if keyword else f"argument {which.idx}")
            names[-1] += jax.tree_util.keystr(tuple(inside))
        return names


def is_data(leaf: Any) -> bool:
    """Whether a leaf of the arguments is traced."""
    if isinstance(leaf, jax.Array):
        return True
    if isinstance(leaf, (bool, str)):
        return False
    return isinstance(leaf, (int, float, complex, np.generic)) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
