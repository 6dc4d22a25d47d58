"""Which hidden states each marked operation reaches, and what it crosses on the way."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ._diagnostics import Path
from ._flow import influence, is_marked, join_bits, numbers
from ._hidden_groups import HiddenGroup
from ._jaxpr import Var, reads
from ._module_info import ModuleInfo
from ._operations import MarkedOperation, output_bits


class Reach(NamedTuple):
    """Which operations reach each variable, as bits.

    Attributes
    ----------
    anyhow : dict
        By any path.
    direct : dict
        Without crossing another ETP operation.
    crossing : dict
        Through another ETP operation.
    apart : dict
        Without crossing another ETP operation or a new state of the operation's own groups.
    around : dict
        Through another ETP operation, and up to it as in `apart`.
    """

    anyhow: dict[Var, int]
    direct: dict[Var, int]
    crossing: dict[Var, int]
    apart: dict[Var, int]
    around: dict[Var, int]


def reach_of(
    minfo: ModuleInfo, operations: Sequence[MarkedOperation], related: Mapping[Var, Sequence[HiddenGroup]]
) -> Reach:
    """Follow all operations through the step at once; `related` names the own groups of each by its output."""
    eqns, outputs = minfo.jaxpr.eqns, output_bits(operations)
    own: dict[Var, int] = {}
    for y_var, groups in related.items():
        for v in (v for group in groups for v in group.hidden_outvars):
            own[v] = own.get(v, 0) | outputs[y_var]
    direct = influence(eqns, outputs, barrier=is_marked)
    apart = influence(eqns, {v: bit & ~own.get(v, 0) for v, bit in outputs.items()}, barrier=is_marked, closed=own)

    def crossed(before: Mapping[Var, int]) -> dict[Var, int]:
        return influence(eqns, {eqn.outvars[0]: join_bits(before, reads(eqn)) for eqn in eqns if is_marked(eqn)})

    return Reach(influence(eqns, outputs), direct, crossed(direct), apart, crossed(apart))


def by_operation(minfo: ModuleInfo, found: Mapping[Var, int]) -> dict[int, list[Path]]:
    """The hidden states that each operation reaches, by its number."""
    paths: dict[int, list[Path]] = {}
    for state in minfo.hidden:
        for k in numbers(found.get(state.outvars[0], 0)):
            paths.setdefault(k, []).append(state.path)
    return paths
