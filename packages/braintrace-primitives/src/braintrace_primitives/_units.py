"""Physical units by duck typing: anything with a ``mantissa`` and a ``unit`` is a quantity.

An operation strips units from its operands, binds its primitive on plain arrays and puts the unit of the
result back, so that primitives, traces and compilers see arrays only. No unit library is imported.
"""

from typing import Any, NamedTuple

from ._errors import OperandError


class Split(NamedTuple):
    """A value as plain number, unit and quantity class; the latter two are None for a plain array."""

    mantissa: Any
    unit: Any
    kind: Any


def is_quantity(value: Any) -> bool:
    """Whether `value` carries a unit."""
    return hasattr(value, "mantissa") and hasattr(value, "unit")


def split(value: Any) -> Split:
    """Separate a quantity into its number and its unit."""
    return Split(value.mantissa, value.unit, type(value)) if is_quantity(value) else Split(value, None, None)


def product(*factors: Split) -> tuple[Any, Any]:
    """Unit and quantity class of a product; ``(None, None)`` when no factor carries a unit."""
    unit = kind = None
    for factor in factors:
        if factor.unit is not None:
            unit = factor.unit if unit is None else unit * factor.unit
            kind = factor.kind
    return unit, kind


def in_unit(value: Any, unit: Any, kind: Any, *, name: str, where: str) -> Any:
    """The number of `value` when it is measured in `unit` (None: plain numbers).

    Raises
    ------
    OperandError
        If the dimensions differ. A plain array counts as dimensionless.
    """
    if not is_quantity(value):
        if unit is None or value is None:
            return value
        value = kind(value)
    target = value.unit / value.unit if unit is None else unit
    if not value.unit.has_same_dim(target):
        raise OperandError(
            f"The unit of {name} does not fit the unit of the result.",
            where=where,
            found=f"{name} in {value.unit}",
            expected="a plain array" if unit is None else f"{name} in {unit}",
            fix=f"give {name} the unit of the result",
        )
    return value.in_unit(target).mantissa


def join(number: Any, unit: Any, kind: Any) -> Any:
    """Put `unit` back on `number`; a result without dimension becomes a plain array."""
    if unit is None:
        return number
    quantity = kind(number, unit=unit)
    return quantity.to_decimal() if unit.has_same_dim(unit / unit) else quantity
