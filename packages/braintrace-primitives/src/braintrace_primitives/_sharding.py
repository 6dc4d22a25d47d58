"""Sharding of results: explicit mesh axes, and manual ones inside ``shard_map``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from ._jax_compat import ShapedArray


def explicit_sharding(array: Any) -> Any:
    """The sharding of `array` where its mesh has explicit axes, else None."""
    sharding = _type_of(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def explicit_spec(array: Any) -> PartitionSpec | None:
    """One mesh axis (or None) per axis of `array` where its mesh has explicit axes, else None."""
    sharding = explicit_sharding(array)
    return None if sharding is None else PartitionSpec(*sharding.spec, *(None,) * (array.ndim - len(sharding.spec)))


def explicit_specs(arrays: Mapping[str, Any]) -> dict[str, Any] | None:
    """`explicit_spec` of every array, None where the mesh has no explicit axes."""
    specs = {name: explicit_spec(array) for name, array in arrays.items()}
    return None if None in specs.values() else specs


def in_auto_axes(function: Callable[..., Any], out_spec: Any, *operands: Any) -> Any:
    """``function(*operands)``; with an `out_spec` (or several), XLA shards the inside, and the result like that."""
    if out_spec is None:
        return function(*operands)
    return jax.sharding.auto_axes(function, out_sharding=out_spec)(*operands)


def sum_over_replicas(value: Any, weight: Any) -> Any:
    """Inside ``shard_map``: the sum of `value` over the mesh axes along which `weight` is replicated."""
    axes = _varying(value) - _varying(weight)
    return jax.lax.psum(value, tuple(sorted(axes))) if axes else value


def varying_like(value: Any, *others: Any) -> Any:
    """`value`, of which every device of the mesh axes that `others` vary along has a copy of its own."""
    axes = frozenset().union(*map(_varying, others)) - _varying(value)
    return jax.lax.pcast(value, tuple(sorted(axes)), to="varying") if axes else value


def _varying(array):
    return _type_of(array).manual_axis_type.varying


def _type_of(value):
    return value if isinstance(value, (jax.ShapeDtypeStruct, ShapedArray)) else jax.typeof(value)
