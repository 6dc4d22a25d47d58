"""The base of all layers: typed sizes, and a printed form of sizes and names."""

from typing import TYPE_CHECKING, Any

import brainstate
import jax

from ._checks import shape_text


class _Verbatim(str):
    """A string that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Layer(brainstate.nn.Module):
    """A module that prints arrays as ``float32[4,3]``, functions by name, and initialisers not at all."""

    if TYPE_CHECKING:
        in_size: tuple[int, ...]
        out_size: tuple[int, ...]

        def __init__(self, name: str | None = None): ...

    def __pretty_repr_item__(self, name: str, value: Any) -> tuple[str, Any] | None:
        item = super().__pretty_repr_item__(name, value)
        if item is None or name.endswith("_init"):
            return None
        name, value = item
        if isinstance(value, jax.Array):
            return name, _Verbatim(shape_text(value))
        if callable(value) and hasattr(value, "__name__"):
            return name, _Verbatim(value.__name__)
        return name, value
