"""States that a step makes of the new values of others: h = o tanh(c) of an LSTM, whose past reaches h through c alone.

For such a state f, with leaders r,

    ∂h_f^t/∂w = sum_r J_fr^t ∂h_r^t/∂w + F_f ∂y^t/∂w,        J_fr^t = ∂h_f^t/∂h_r^t

where F_f is what an operation brings around the leaders, if anything. So f needs no trace of its own. The past of f may
be read by others only where F_f = 0, as a spike that resets the membrane it follows from.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ._derivatives import rows_of
from ._entries import Entry, Known
from ._feeds import Feed, LocalTransition
from ._jaxpr import Jaxpr, JaxprEqn, Literal, build_jaxpr, eval_jaxpr, needed, reads
from ._positions import NONE, propagate_targets

_Rows = tuple[tuple[Entry, ...], ...]


class Following(NamedTuple):
    """Some states of a group, and those that follow from them.

    Attributes
    ----------
    leaders, followers : tuple of int
        Ordinals of the states, of those at a position.
    direct : frozenset of int
        Numbers of the operations, among ``transition.y_vars``, that reach a follower around the leaders.
    forgotten : bool
        Whether no new value of the leaders depends on the past of a follower.
    """

    leaders: tuple[int, ...]
    followers: tuple[int, ...]
    direct: frozenset[int]
    forgotten: bool


def find_following(transition: LocalTransition, states: Sequence[int]) -> Following | None:
    """Which of some states of a group follow from the others.

    A follower's new value depends on what was before, in all of the group, through new values of its leaders alone, at
    the same position. If any new value of `states` depends on its past, no operation reaches it around its leaders.

    Parameters
    ----------
    transition : LocalTransition
    states : sequence of int
        Ordinals.

    Returns
    -------
    Following or None
    """
    if transition.mixes or not transition.remembers:
        return None
    followers: list[int] = []
    for s in reversed(states):
        others = [r for r in states if r != s and r not in followers]
        if others and _follows(transition, s, others):
            followers.insert(0, s)
    leaders = tuple(s for s in states if s not in followers)
    # A follower of one that has turned out to follow itself may have lost what stood between.
    if not followers or not all(_follows(transition, s, leaders) for s in followers):
        return None
    direct = {s: _direct(transition, s, leaders) for s in followers}
    forgotten = all(_is_forgotten(transition, s, leaders) for s in followers)
    if not forgotten and any(direct.values()):
        return None
    return Following(leaders, tuple(followers), frozenset().union(*direct.values()), forgotten)


def differentiate_following(
    following: Following, transition: LocalTransition, feeds: Sequence[tuple[int, Feed]], inputs: Sequence[Any]
) -> tuple[_Rows, list[tuple[Entry, ...]]]:
    """J, a row for each follower, and for each of `feeds` the derivatives of the followers with leaders held fixed.

    Parameters
    ----------
    following : Following
    transition : LocalTransition
    feeds : sequence of (int, Feed)
    inputs : sequence of arrays
        Of ``transition.program``.
    """
    program, count = transition.program, transition.group.num_state
    Y = len(transition.y_vars)
    new_vars = [program.outvars[r] for r in following.leaders]
    before = build_jaxpr(program.invars, new_vars, needed(program.eqns, new_vars), like=program)
    h, y, others = inputs[:count], list(inputs[count : count + Y]), inputs[count + Y :]
    leading = eval_jaxpr(before, *inputs)
    jacobian, F = [], [[] for _ in feeds]
    for s in following.followers:
        eqns, out = _beyond(transition, s, following.leaders), program.outvars[s]
        own = build_jaxpr([*new_vars, *program.invars], [out], eqns, like=program)
        read = {out, *(v for eqn in eqns for v in reads(eqn))}

        def follower(leading: Any, y: Any, own: Jaxpr = own) -> Any:
            return eval_jaxpr(own, *leading, *h, *y, *others)

        new, pull = jax.vjp(follower, leading, y)
        by_leaders, by_y = rows_of(transition, feeds, range(len(leading)), y, new, pull)
        jacobian.append(tuple(k if v in read else Known(0) for v, k in zip(new_vars, by_leaders, strict=True)))
        operands = _operands(transition)
        for column, (slot, _), value in zip(F, feeds, by_y, strict=True):
            column.append(value if operands[slot] in read else Known(0))
    return tuple(jacobian), [tuple(column) for column in F]


def _operands(transition: LocalTransition) -> Sequence[Any]:
    """The inputs of a transition's program that are outputs of operations."""
    count = transition.group.num_state
    return transition.program.invars[count : count + len(transition.y_vars)]


def _beyond(transition: LocalTransition, s: int, leaders: Sequence[int]) -> list[JaxprEqn]:
    """The equations that make state `s` of the new values of others and whatever else they need."""
    program = transition.program
    return needed(program.eqns, [program.outvars[s]], {program.outvars[r] for r in leaders})


def _direct(transition: LocalTransition, s: int, leaders: Sequence[int]) -> frozenset[int]:
    """Numbers of the operations that reach state `s` around the leaders."""
    read = {v for eqn in _beyond(transition, s, leaders) for v in reads(eqn)}
    return frozenset(slot for slot, y in enumerate(_operands(transition)) if y in read)


def _is_forgotten(transition: LocalTransition, s: int, states: Sequence[int]) -> bool:
    """Whether no new value of `states` depends on the past of state `s`."""
    program = transition.program
    outvars = [program.outvars[r] for r in states]
    old = program.invars[s]
    return old not in outvars and all(old not in reads(eqn) for eqn in needed(program.eqns, outvars))


def _follows(transition: LocalTransition, s: int, leaders: Sequence[int]) -> bool:
    """Whether what was before reaches the new state `s` through the others alone, position by position."""
    program, group = transition.program, transition.group
    out, new = program.outvars[s], [program.outvars[r] for r in leaders]
    past, given = program.invars[: group.num_state], set(program.invars)
    if any(isinstance(v, Literal) or v in given for v in (out, *new)) or len(set(new)) < len(new):
        return False
    eqns = _beyond(transition, s, leaders)
    if any(eqn.effects or not set(past).isdisjoint(reads(eqn)) for eqn in eqns):
        return False
    own = build_jaxpr([*new, *program.invars], [out], eqns, like=program)
    labels = propagate_targets(own, [group.positions])[: len(new)]
    return all(np.all((label == group.positions) | (label == NONE)) for label in labels)
