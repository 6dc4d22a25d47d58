"""What a strict gradient leaves out, read off the structure of the step (semantics, section 5)."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

from ._hidden_groups import HiddenGroup, is_marked
from ._jaxpr import Var, reached, reads
from ._module_info import ModuleInfo
from ._perturbation import recurrent_operations
from ._relations import FeedKind, HiddenParamOpRelation, LocalTransition, MarkedOperation


class Omission(enum.Enum):
    """A kind of credit that crosses a step boundary and that the strict rule does not carry."""

    RECURRENT_MIXING = "recurrent mixing"
    """h^{t-1} reaches the group's new states through an ETP operation."""
    DOWNSTREAM_MEMORY = "downstream memory"
    """The group drives another group that has memory of its own."""
    THROUGH_ANOTHER_OP = "through another op"
    """The weight also, or only, reaches hidden states through another ETP operation."""
    POSITION_MIXING = "position mixing"
    """Positions are mixed in the transition, or on the way from the operation into it."""


class Certificate(NamedTuple):
    """What is left out of the gradient of the weights of one marked operation.

    Attributes
    ----------
    operation : MarkedOperation
    omissions : tuple of Omission
        Empty where the strict gradient equals that of backpropagation through time.
    """

    operation: MarkedOperation
    omissions: tuple[Omission, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing is left out."""
        return not self.omissions


def certify(
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    operations: Sequence[MarkedOperation],
    relations: Sequence[HiddenParamOpRelation],
    transitions: Sequence[LocalTransition],
) -> tuple[Certificate, ...]:
    """The certificate of each marked operation, in the order of `operations`."""
    mixing = {g.index: bool(recurrent_operations(minfo, g)) for g in groups}
    remembering = {t.group.index for t in transitions if t.remembers or mixing[t.group.index]}
    remembered = {v for g in groups if g.index in remembering for v in g.hidden_outvars}
    driven = _driven_groups(minfo, groups)
    relation_of = {r.y_var: r for r in relations}
    mixed = {t.group.index for t in transitions if t.mixes}

    certificates = []
    for operation in operations:
        relation = relation_of.get(operation.y_var)
        own = relation.hidden_groups if relation else ()
        found = []
        if any(mixing[g.index] for g in own):
            found.append(Omission.RECURRENT_MIXING)
        if any(other in remembering for g in own for other in driven[g.index]):
            found.append(Omission.DOWNSTREAM_MEMORY)
        if _reached_across(minfo, operation, own) & remembered:
            found.append(Omission.THROUGH_ANOTHER_OP)
        if relation and (
            any(g.index in mixed for g in own) or any(f.kind is FeedKind.DIAGONAL for f in relation.feeds)
        ):
            found.append(Omission.POSITION_MIXING)
        certificates.append(Certificate(operation, tuple(found)))
    return tuple(certificates)


def _driven_groups(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> dict[int, set[int]]:
    """The other groups that each group reaches, within a step or from the last one."""
    driven = {}
    for group in groups:
        downstream = reached(minfo.jaxpr.eqns, [*group.hidden_invars, *group.hidden_outvars])
        driven[group.index] = {
            g.index for g in groups if g is not group and any(v in downstream for v in g.hidden_outvars)
        }
    return driven


def _reached_across(minfo: ModuleInfo, operation: MarkedOperation, own: Sequence[HiddenGroup]) -> set[Var]:
    """What the operation reaches through another ETP operation without passing a new state of its own groups."""
    eqns = minfo.jaxpr.eqns
    closed = {v for g in own for v in g.hidden_outvars}
    if operation.y_var in closed:
        return set()
    direct = reached(eqns, [operation.y_var], barrier=is_marked, closed=closed)
    crossed = [v for eqn in eqns if is_marked(eqn) and any(u in direct for u in reads(eqn)) for v in eqn.outvars]
    return reached(eqns, crossed)
