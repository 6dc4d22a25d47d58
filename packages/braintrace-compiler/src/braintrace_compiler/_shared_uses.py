"""Operations that may share one trace: the same weight, used several times in a step in the same way.

A trace is the derivative of the states of a group with respect to a weight. Several uses of the weight add to it, each
with a factor and an input of its own, as long as they lay it out alike: the same operation on inputs and outputs of
the same shapes, and the same way from the elements of an output to the positions of the group.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._feeds import Feed
from ._hidden_groups import HiddenGroup
from ._jaxpr import JaxprEqn, Literal, Var, needed
from ._module_info import ModuleInfo
from ._operations import MarkedOperation


def group_uses(
    minfo: ModuleInfo,
    operations: Sequence[MarkedOperation],
    pairs: Mapping[Var, Sequence[tuple[HiddenGroup, Feed]]],
) -> list[tuple[MarkedOperation, ...]]:
    """Operations that share a trace, together; in the order of the program.

    Parameters
    ----------
    minfo : ModuleInfo
    operations : sequence of MarkedOperation
    pairs : mapping
        Output of each operation -> the groups it feeds, and how.
    """
    number = _value_numbers(minfo, [v for op in operations for v in op.weight_vars.values()])
    uses: dict[Any, list[MarkedOperation]] = {}
    for op in operations:
        weights = tuple((name, number[v]) for name, v in op.weight_vars.items())
        feeds = tuple((group.index, feed.kind, _bytes(feed.index)) for group, feed in pairs[op.y_var])
        x = None if op.x_var is None else op.x_var.aval
        key = (op.eqn.primitive, _frozen(op.eqn.params), weights, str(x), str(op.y_var.aval), feeds)
        uses.setdefault(key, []).append(op)
    return [tuple(found) for found in uses.values()]


def _value_numbers(minfo: ModuleInfo, operands: Sequence[Var]) -> dict[Any, int]:
    """A number for each variable behind `operands`; variables that are computed alike have the same."""
    numbers: dict[Any, int] = {}
    found: dict[Any, int] = {}

    def number(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return str(atom.aval), np.asarray(atom.val).tobytes()
        return numbers.setdefault(atom, len(numbers))

    for eqn in needed([eqn for eqn in minfo.jaxpr.eqns if not eqn.effects], operands):
        key = _computation(eqn, tuple(map(number, eqn.invars)))
        for k, v in enumerate(eqn.outvars):
            numbers[v] = found.setdefault((key, k), len(numbers))
    return numbers | {v: number(v) for v in operands}


def _computation(eqn: JaxprEqn, operands: tuple[Any, ...]) -> Any:
    return eqn.primitive, _frozen(eqn.params), operands


def _frozen(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Parameters of an equation as something to compare; what has no hash is compared by identity."""
    return tuple((name, _hashable(value)) for name, value in sorted(params.items()))


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _bytes(index: np.ndarray | None) -> Any:
    return None if index is None else (index.shape, index.tobytes())
