"""What a strict gradient leaves out, read off the structure of the step (semantics, section 5)."""

import enum
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ._absorption import LinearMemory, absorbed_groups
from ._diagnostics import Path
from ._feeds import FeedKind, LocalTransition
from ._flow import influence, join_bits, numbers, seeds_of
from ._hidden_groups import HiddenGroup, recurrent_operations
from ._jaxpr import Jaxpr, Var
from ._module_info import ModuleInfo
from ._operations import MarkedOperation, time_varying_operations
from ._reach import reach_of
from ._relations import HiddenParamOpRelation

Truncated = Mapping[tuple[Var, int], int]
"""Output of an operation and number of a group -> the number of steps that a learner keeps in place of the trace."""


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
    NOT_CARRIED = "not carried"
    """The operation was told to keep no trace of one of its weights, such as `lora_matmul` with ``carry_b=False``."""
    OLDER_STEPS = "older steps"
    """The learner was told to keep the last steps only, in place of the trace (``carry="truncate"``)."""
    TIME_VARYING_WEIGHT = "time-varying weight"
    """The weight depends on data or state: no trace follows it."""
    UNTRACED_USE = "untraced use"
    """A parameter of the weight also feeds memory where no trace follows: unmarked, or in a weight that varies."""


class Certificate(NamedTuple):
    """What is left out of the gradient of the weights of one marked operation.

    Attributes
    ----------
    operation : MarkedOperation
    omissions : tuple of Omission
        Empty where the strict gradient equals that of backpropagation through time.
    absorbed : tuple of LinearMemory
        Memory of other groups that the traces of the operation's groups take in.
    """

    operation: MarkedOperation
    omissions: tuple[Omission, ...]
    absorbed: tuple[LinearMemory, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing is left out."""
        return not self.omissions


def summarise(certificates: Sequence[Certificate]) -> str:
    """In words, for all uses of a weight, such as ``omits recurrent mixing; absorbed: r (k=0.9)``."""
    omissions = dict.fromkeys(o.value for c in certificates for o in c.omissions)
    absorbed = dict.fromkeys(m.names for c in certificates for m in c.absorbed)
    words = "omits " + ", ".join(omissions) if omissions else "exact"
    return f"{words}; absorbed: {', '.join(absorbed)}" if absorbed else words


def certify(
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    operations: Sequence[MarkedOperation],
    relations: Sequence[HiddenParamOpRelation],
    transitions: Sequence[LocalTransition],
    program: Jaxpr,
    absorbed: Sequence[LinearMemory] = (),
    truncated: Truncated = MappingProxyType({}),
) -> tuple[Certificate, ...]:
    """The certificate of each marked operation, in the order of `operations`; those of time-varying weights last.

    `program` is the perturbed step, in which the weights of `operations` are inputs.
    `absorbed` and `truncated` are as in `ETraceGraph.certificates`.
    """
    mixing = _union(recurrent_operations(minfo, groups).values())
    remembering = recalled_groups(minfo, groups)
    taken = [bits & ~mixing for bits in absorbed_groups(minfo, groups, transitions, absorbed)]
    driven = [bits & ~taken[g] for g, bits in enumerate(driven_groups(minfo, groups))]
    relation_of = {use.y_var: r for r in relations for use in r.uses}
    reach = reach_of(minfo, operations, {y_var: r.hidden_groups for y_var, r in relation_of.items()})
    mixed = _bits(t.group.index for t in transitions if t.mixes)
    lasting = {path for g in groups if remembering >> g.index & 1 for path in g.hidden_paths}
    besides = {path for path, fed in untraced_feeds(minfo, program).items() if lasting.intersection(fed)}

    certificates = []
    for k, operation in enumerate(operations):
        relation = relation_of.get(operation.y_var)
        own = _bits(g.index for g in relation.hidden_groups) if relation else 0
        found = []
        if own & mixing:
            found.append(Omission.RECURRENT_MIXING)
        if _union(driven[g] for g in numbers(own)) & remembering:
            found.append(Omission.DOWNSTREAM_MEMORY)
        around = _groups_at(reach.around, groups, k)
        if own:
            around &= ~functools.reduce(operator.and_, (taken[g] for g in numbers(own)))
        across = around | _groups_at(reach.crossing, groups, k) & own
        if across & remembering:
            found.append(Omission.THROUGH_ANOTHER_OP)
        unmatched = _groups_at(reach.apart, groups, k) & ~own & remembering
        if own & mixed or unmatched or (relation and any(f.kind is FeedKind.DIAGONAL for f in relation.feeds)):
            found.append(Omission.POSITION_MIXING)
        if any((operation.y_var, g) in truncated for g in numbers(own & remembering)):
            found.append(Omission.OLDER_STEPS)
        elif own & remembering and operation.spec.trace_rule.uncarried(operation.eqn.params):
            found.append(Omission.NOT_CARRIED)
        if besides.intersection(operation.parameter_paths):
            found.append(Omission.UNTRACED_USE)
        mine = tuple(m for m in absorbed if own >> m.source.index & 1)
        certificates.append(Certificate(operation, tuple(found), mine))
    for operation in time_varying_operations(minfo):
        reached = influence(minfo.jaxpr.eqns, {operation.y_var: 1})
        memory = [v for g in groups if remembering >> g.index & 1 for v in g.hidden_outvars]
        found = (Omission.TIME_VARYING_WEIGHT,) if join_bits(reached, memory) else ()
        certificates.append(Certificate(operation, found))
    return tuple(certificates)


def untraced_feeds(minfo: ModuleInfo, program: Jaxpr) -> dict[Path, tuple[Path, ...]]:
    """The hidden states that parameters still reach in `program`, where the weights of all operations are inputs."""
    outputs = iter(program.outvars[len(minfo.out_outvars) :])
    new = {s.path: [next(outputs) for _ in s.outvars] for s in minfo.states}
    feeding = influence(program.eqns, seeds_of(p.invars for p in minfo.parameters))
    into = {s.path: join_bits(feeding, new[s.path]) for s in minfo.hidden}
    fed = {p.path: tuple(path for path, bits in into.items() if bits >> k & 1) for k, p in enumerate(minfo.parameters)}
    return {path: states for path, states in fed.items() if states}


def recalled_groups(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> int:
    """The groups, as bits, whose h^{t-1} reaches a result of the step."""
    reached = influence(minfo.jaxpr.eqns, seeds_of(g.hidden_invars for g in groups))
    results = [*minfo.out_outvars, *(v for g in groups for v in g.hidden_outvars)]
    return join_bits(reached, results)


def driven_groups(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> list[int]:
    """The other groups that each group reaches, within a step or from the last one, as bits."""
    seeds = seeds_of([*g.hidden_invars, *g.hidden_outvars] for g in groups)
    reached = influence(minfo.jaxpr.eqns, seeds)
    sources = [join_bits(reached, g.hidden_outvars) for g in groups]
    return [_bits(t for t, bits in enumerate(sources) if t != g and bits >> g & 1) for g in range(len(groups))]


def _groups_at(found: Mapping[Var, int], groups: Sequence[HiddenGroup], k: int) -> int:
    """The groups whose new states operation `k` reaches."""
    return _bits(g.index for g in groups if join_bits(found, g.hidden_outvars) >> k & 1)


def _bits(indices: Iterable[int]) -> int:
    return _union(1 << i for i in indices)


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)
