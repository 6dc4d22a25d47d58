"""Stage 3: which marked operations drive which hidden groups, and from which parameters their weights come."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from braintrace_primitives._jax_compat import Primitive

from ._diagnostics import CompilationRecord, Path, each_once
from ._feeds import Feed, LocalTransition
from ._hidden_groups import HiddenGroup, require_groups_of
from ._jaxpr import Var
from ._module_info import ModuleInfo
from ._operations import MarkedOperation, find_marked_operations, output_bits
from ._reach import by_operation, reach_of
from ._shared_uses import group_uses
from ._transitions import find_local_transitions
from ._verdicts import Verdict


class HiddenParamOpRelation(NamedTuple):
    """A marked operation and the hidden groups that its output reaches directly.

    Attributes
    ----------
    primitive : Primitive
    weight_path : tuple
        Path of the parameter behind the weight.
    x_var : Var or None
    y_var : Var
    hidden_groups : tuple of HiddenGroup
    connected_hidden_paths : tuple of paths
    eqn_params : dict
    operation : MarkedOperation
    feeds : tuple of Feed
        One for each group.
    uses : tuple of MarkedOperation
        The operation itself, and further ones that see the same weight and feed the same positions in the same way:
        the iterations of an unrolled loop, a layer called twice. One trace holds the sum of all.
    """

    primitive: Primitive
    weight_path: Path
    x_var: Var | None
    y_var: Var
    hidden_groups: tuple[HiddenGroup, ...]
    connected_hidden_paths: tuple[Path, ...]
    eqn_params: dict[str, Any]
    operation: MarkedOperation
    feeds: tuple[Feed, ...]
    uses: tuple[MarkedOperation, ...]


def find_hidden_param_op_relations_from_minfo(
    minfo: ModuleInfo, hid_path_to_group: Mapping[Path, HiddenGroup]
) -> tuple[HiddenParamOpRelation, ...]:
    """Connect marked operations to the hidden groups that they drive.

    Parameters
    ----------
    minfo : ModuleInfo
    hid_path_to_group : mapping
        Of `find_hidden_groups_from_minfo`.

    Returns
    -------
    tuple of HiddenParamOpRelation
        In the order of the program.
    """
    return find_relations(minfo, _groups_in_order(hid_path_to_group)).relations


def _groups_in_order(hid_path_to_group: Mapping[Path, HiddenGroup]) -> tuple[HiddenGroup, ...]:
    return tuple(sorted({g.index: g for g in hid_path_to_group.values()}.values(), key=lambda g: g.index))


class Relations(NamedTuple):
    """What stage 3 gives.

    Attributes
    ----------
    relations : tuple of HiddenParamOpRelation
    operations : tuple of MarkedOperation
        All that learn, related or not.
    transitions : tuple of LocalTransition
        One for each group.
    records : tuple of CompilationRecord
        What becomes of each marked operation.
    """

    relations: tuple[HiddenParamOpRelation, ...]
    operations: tuple[MarkedOperation, ...]
    transitions: tuple[LocalTransition, ...]
    records: tuple[CompilationRecord, ...]


def find_relations(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> Relations:
    """The relations of all groups, the local transitions they use, and records of all marked operations."""
    require_groups_of(minfo, groups)
    operations, skipped = find_marked_operations(minfo)
    found = find_local_transitions(minfo, groups, operations)
    pairs: dict[Var, list[tuple[HiddenGroup, Feed]]] = {}
    for transition, feeds in zip(found.transitions, found.feeds, strict=True):
        for y_var, feed in zip(transition.y_vars, feeds, strict=True):
            pairs.setdefault(y_var, []).append((transition.group, feed))
    unmatched: dict[Var, list[HiddenGroup]] = {}
    for group, ops in zip(groups, found.unmatched, strict=True):
        for op in ops:
            unmatched.setdefault(op.y_var, []).append(group)

    reach = reach_of(minfo, operations, {y: [group for group, _ in found] for y, found in pairs.items()})
    related = group_uses(minfo, [op for op in operations if op.y_var in pairs], pairs)
    bit_of = output_bits(operations)
    relations = tuple(
        _relate(
            uses, pairs[uses[0].y_var], reach.anyhow, functools.reduce(operator.or_, (bit_of[u.y_var] for u in uses))
        )
        for uses in related
    )
    paths = [by_operation(minfo, found) for found in (reach.anyhow, reach.direct, reach.crossing)]
    told = [
        record
        for k, op in enumerate(operations)
        for record in Verdict(
            op,
            tuple(group for group, _ in pairs.get(op.y_var, ())),
            tuple(unmatched.get(op.y_var, ())),
            *(tuple(found.get(k, ())) for found in paths),
        ).records()
    ]
    return Relations(relations, operations, found.transitions, each_once((*told, *skipped)))


def _relate(
    uses: tuple[MarkedOperation, ...], pairs: Sequence[tuple[HiddenGroup, Feed]], anyhow: Mapping[Var, int], bits: int
) -> HiddenParamOpRelation:
    operation = uses[0]
    return HiddenParamOpRelation(
        operation.eqn.primitive,
        operation.weight_path,
        operation.x_var,
        operation.y_var,
        tuple(group for group, _ in pairs),
        tuple(
            path
            for group, _ in pairs
            for path, var in zip(group.hidden_paths, group.hidden_outvars, strict=True)
            if anyhow.get(var, 0) & bits
        ),
        dict(operation.eqn.params),
        operation,
        tuple(feed for _, feed in pairs),
        uses,
    )
