"""How a layer prints itself: sizes and names, no initialisers and no numbers."""

from typing import Any

import jax

from ._checks import shape_text


class _Verbatim(str):
    """A string that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class ShortRepr:
    """Mixin of layers: arrays print as ``float32[4,3]``, functions by name, initialisers not at all."""

    def __pretty_repr_item__(self, name: str, value: Any) -> tuple[str, Any] | None:
        item = super().__pretty_repr_item__(name, value)  # pyright: ignore[reportAttributeAccessIssue]
        if item is None or name.endswith("_init"):
            return None
        name, value = item
        if isinstance(value, jax.Array):
            return name, _Verbatim(shape_text(value))
        if callable(value) and hasattr(value, "__name__"):
            return name, _Verbatim(value.__name__)
        return name, value
