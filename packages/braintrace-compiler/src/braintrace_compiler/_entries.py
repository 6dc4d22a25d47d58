"""Numbers known before anything runs, among arrays that are not."""

from collections.abc import Iterable
from typing import Any

import jax

Entry = Any
"""An entry of D or F: an array over positions, or a `Known` number."""


@jax.tree_util.register_pytree_node_class
class Known:
    """A number that holds at all positions and times; as a pytree it has no leaves.

    D has S x S entries at each position, and F has S. Many of them are structure, the zero where one state does not
    read another, or parameters, the 0.9 of a leak. As numbers they cost no memory and hardly any arithmetic: sums and
    products of numbers are numbers, and what is multiplied by zero is not computed.

    Parameters
    ----------
    value : int, float or complex

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> (Known(0.5) * jnp.array([2.0, 4.0])).tolist()
    [1.0, 2.0]
    >>> Known(0) * jnp.ones(2) + Known(0.5) * Known(3.0)
    Known(1.5)
    """

    __array_ufunc__ = None

    def __init__(self, value: complex):
        self.value = value

    def __mul__(self, other: Entry) -> Entry:
        if isinstance(other, Known):
            return Known(self.value * other.value)
        if self.value == 0:
            return self
        return other if self.value == 1 else self.value * other

    __rmul__ = __mul__

    def __add__(self, other: Entry) -> Entry:
        if isinstance(other, Known):
            return Known(self.value + other.value)
        return other if self.value == 0 else self.value + other

    def __radd__(self, other: Entry) -> Entry:
        # The sum of Python begins at the number zero.
        return self if isinstance(other, int) and other == 0 else self + other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self.value == other.value

    def __hash__(self) -> int:
        return hash((Known, self.value))

    def __repr__(self) -> str:
        return f"Known({self.value})"

    def tree_flatten(self) -> tuple[tuple[()], complex]:
        """Leaves and structure, for JAX."""
        return (), self.value

    @classmethod
    def tree_unflatten(cls, value: complex, _: Iterable[Any]) -> "Known":
        """The inverse of `tree_flatten`."""
        return cls(value)
