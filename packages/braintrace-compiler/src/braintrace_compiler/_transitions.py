"""The transition of each group along position-wise paths, and how marked operations feed it."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._constant_factors import find_constant_factors
from ._errors import NotSupportedError
from ._feeds import Feed, FeedKind, LocalTransition
from ._flow import between, dependence, influence, is_marked, join_bits, numbers, seeds_of
from ._hidden_groups import HiddenGroup, new_states_elsewhere
from ._jaxpr import Jaxpr, JaxprEqn, slice_program
from ._module_info import ModuleInfo
from ._operations import MarkedOperation
from ._positions import MANY, NONE, Constants, propagate_sources, propagate_targets
from ._positions_labels import join


class Transitions(NamedTuple):
    """What `find_local_transitions` gives, each in the order of the groups.

    Attributes
    ----------
    transitions : tuple of LocalTransition
    feeds : tuple of tuples of Feed
        One for each of the transition's `y_vars`.
    unmatched : tuple of tuples of MarkedOperation
        Operations that reach the group, but whose elements cannot be matched to its positions.
    """

    transitions: tuple[LocalTransition, ...]
    feeds: tuple[tuple[Feed, ...], ...]
    unmatched: tuple[tuple[MarkedOperation, ...], ...]


def find_local_transitions(
    minfo: ModuleInfo, groups: Sequence[HiddenGroup], operations: Sequence[MarkedOperation]
) -> Transitions:
    """The local transition of each group, and how each operation in it feeds the group's positions."""
    eqns = minfo.jaxpr.eqns
    closed = new_states_elsewhere(groups)
    behind = dependence(eqns, seeds_of(g.hidden_outvars for g in groups), barrier=is_marked, closed=closed)
    sources = seeds_of(g.hidden_invars for g in groups)
    for op in operations:
        fed = behind.get(op.y_var, 0) & ~closed.get(op.y_var, 0)
        if fed:
            sources[op.y_var] = fed
    ahead = influence(eqns, sources, barrier=is_marked, closed=closed)
    paths = between(eqns, ahead, behind, sources)
    known = minfo.constants()
    fed_by: list[list[MarkedOperation]] = [[] for _ in groups]
    for op in operations:
        for index in numbers(sources.get(op.y_var, 0)):
            fed_by[index].append(op)

    found = [_find_one(minfo, g, fed_by[g.index], paths.get(g.index, []), known) for g in groups]
    return Transitions(*zip(*found, strict=True)) if found else Transitions((), (), ())


def _find_one(
    minfo: ModuleInfo,
    group: HiddenGroup,
    fed_by: Sequence[MarkedOperation],
    eqns: Sequence[JaxprEqn],
    known: Constants,
) -> tuple[LocalTransition, tuple[Feed, ...], tuple[MarkedOperation, ...]]:
    states = len(group.hidden_invars)
    y_vars = tuple(op.y_var for op in fed_by)
    sources = [*group.hidden_invars, *y_vars]
    program, constvars = slice_program(minfo.jaxpr, eqns, sources, group.hidden_outvars)

    own = [group.positions_of(v) for v in group.hidden_outvars]
    labels = propagate_targets(program, own, known=known)
    moved = [label[(label != here) & (label != NONE)] for label, here in zip(labels[:states], own, strict=True)]
    remembers = any(np.any(label != NONE) for label in labels[:states])
    feeds = [
        _find_looped_feed(op, group, label) if op.loop else _find_feed(program, group, states + k, label, known)
        for k, (op, label) in enumerate(zip(fed_by, labels[states:], strict=False))
    ]

    unmatched = tuple(op for op, feed in zip(fed_by, feeds, strict=True) if feed is None)
    if unmatched:
        matched = [op for op in fed_by if op not in unmatched]
        ahead = influence(eqns, dict.fromkeys([*group.hidden_invars, *(op.y_var for op in matched)], 1))
        kept = [eqn for eqn in eqns if join_bits(ahead, eqn.outvars)]
        transition, rest, _ = _find_one(minfo, group, matched, kept, known)
        return transition, rest, unmatched
    transition = LocalTransition(
        group, y_vars, group.by_state(program), constvars, remembers, any(part.size > 0 for part in moved)
    )
    matches = tuple(feed for feed in feeds if feed is not None)
    return transition._replace(constants=find_constant_factors(transition, matches, known)), matches, ()


def _find_looped_feed(operation: MarkedOperation, group: HiddenGroup, label: np.ndarray) -> Feed:
    """How an operation on all iterations of a loop feeds the group: every iteration alike."""
    alike = functools.reduce(join, label)
    if np.any(alike == MANY):
        length = label.shape[0]
        raise NotSupportedError(
            "The iterations of a loop feed different positions of a hidden state, or several at once.",
            where=operation.source,
            found=f"{operation.spec.name} with outputs {label.shape[1:]} in {length} iterations, and the positions "
            f"{group.varshape} of {list(group.hidden_paths)}",
            expected="each element of the output feeding one position, the same in every iteration",
            fix=f"unroll the loop: control_flow=ControlFlowPolicy(unroll_limit={length}), or leave the weight to "
            'same-step gradients: ControlFlowPolicy(long_scan="close", closed="exclude")',
        )
    return Feed(FeedKind.GATHER, np.broadcast_to(alike, label.shape))


def _find_feed(program: Jaxpr, group: HiddenGroup, k: int, label: np.ndarray, known: Constants) -> Feed | None:
    """How input `k` of the transition feeds the group; None where elements and positions cannot be matched."""
    own = group.positions
    if not np.any(label == MANY):
        if label.shape == own.shape and np.all((label == own) | (label == NONE)):
            return Feed(FeedKind.SAME)
        return Feed(FeedKind.GATHER, label)
    sources: list[np.ndarray | None] = [None] * len(program.invars)
    sources[k] = np.arange(label.size).reshape(label.shape)
    reached = np.full(own.shape, NONE)
    for outputs in group.columns(propagate_sources(program, sources, known=known)):
        reached = np.where(reached == NONE, outputs, np.where((outputs == NONE) | (outputs == reached), reached, MANY))
    if not np.any(reached == MANY):
        return Feed(FeedKind.BROADCAST, reached)
    return Feed(FeedKind.DIAGONAL) if label.shape == own.shape else None
