"""Linear memory behind an operation, seen as memory before it (semantics, section 4).

Let states r of a group R leak and integrate what marked operations give, each by its own factor:

    r^t = K r^{t-1} + c A(z^t, W) + ...

with A affine in z, and with K (between the states) and c numbers: the same for all data, positions and times. Then

    r^t = A(z̄^t, W) + ...        z̄^t = K z̄^{t-1} + c z^t        (A without its constant part)

so what r remembers of z is z̄, whose elements are those of z. Where an element of z depends on one position of another
group G by paths that the trace of G follows, z̄ is a further state of that position:

    D of (h, z̄) = [[D, 0], [c ∂z/∂h^{t-1}, K]]        F of (h, z̄) = [F; c ∂z/∂y]        ∂l/∂z̄^{t-1} = Aᵀ ∂l/∂r^{t-1}

A is linear, so several operations may feed r, and several groups z: each group takes in its own part. Nothing is
absorbed unless all of this is proven, and z̄ is never computed: the trace needs its derivatives alone.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._jax_compat import while_p

from ._constant_factors import is_affine_in_input
from ._feeds import ConstantFactors, Feed, FeedKind, LocalTransition
from ._flow import influence, is_marked, join_bits, numbers, seeds_of
from ._hidden_groups import HiddenGroup, new_states_elsewhere, recurrent_operations
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, eval_jaxpr, reads, slice_program
from ._module_info import ModuleInfo
from ._operations import MarkedOperation
from ._positions import MANY, NONE, Constants, propagate_sources
from ._relations import HiddenParamOpRelation


class LinearMemory(NamedTuple):
    """States behind an operation that a group before it can take in.

    Attributes
    ----------
    operation : MarkedOperation
        A, with input z.
    source : HiddenGroup
        G, the group that takes the memory in.
    target : HiddenGroup
        R, the group that has it.
    states : tuple of int
        Ordinals of the n states among those of a position of R.
    decay : array (n, n)
        K.
    gain : array (n,)
        c.
    feed : Feed
        How the elements of y = A(z, W) feed the positions of R.
    program : Jaxpr
        ``(h^{t-1} of each state of G, each y that feeds G, constants) -> z``, as the trace of G follows it.
    constvars : tuple of Var
    elements : array of int
        For each position of G the flat element of z that depends on it, -1 where none does.
    feeds : tuple of Feed
        Of the operations that feed G.
    whole : bool
        Whether everything that R remembers of z is in `states`.
    """

    operation: MarkedOperation
    source: HiddenGroup
    target: HiddenGroup
    states: tuple[int, ...]
    decay: np.ndarray
    gain: np.ndarray
    feed: Feed
    program: Jaxpr
    constvars: tuple[Var, ...]
    elements: np.ndarray
    feeds: tuple[Feed, ...]
    whole: bool

    @property
    def names(self) -> str:
        """The absorbed states with their leaks, such as ``readout.r (k=0.9)``."""
        paths = [".".join(map(str, path)) for path in self.target.path_of_each_state]
        return ", ".join(f"{paths[s]} (k={self.decay[i, i]:.4g})" for i, s in enumerate(self.states))

    def derivatives(self, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """∂z/∂h^{t-1} for each state (*positions), and ∂z/∂y for each operation that feeds G (*elements).

        Parameters
        ----------
        inputs : sequence of arrays
            Of `program`.
        """
        S, Y = self.source.num_state, len(self.feeds)
        h, y, constants = list(inputs[:S]), list(inputs[S : S + Y]), inputs[S + Y :]
        z, pull = jax.vjp(lambda h, y: eval_jaxpr(self.program, *h, *y, *constants)[0], h, y)
        # Every position has one element of z at most, so that one cotangent serves them all.
        chosen = np.zeros(z.size, bool)
        chosen[self.elements[self.elements >= 0]] = True
        of_h, of_y = pull(jnp.asarray(chosen.reshape(z.shape), z.dtype))
        for k, feed in enumerate(self.feeds):
            if feed.kind is FeedKind.BROADCAST:
                _, push = jax.vjp(lambda ct, k=k: pull(ct)[1][k], jnp.zeros_like(z))
                of_y[k] = self.at_positions(push(jnp.ones_like(y[k]))[0])
        return of_h, of_y

    def at_positions(self, z: Any) -> Any:
        """What is given for the elements of z, at the positions of G; zero where there is none."""
        taken = jnp.take(z.reshape(-1), np.maximum(self.elements, 0))
        return jnp.where(self.elements >= 0, taken, 0)


def find_linear_memories(
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    relations: Sequence[HiddenParamOpRelation],
    transitions: Sequence[LocalTransition],
) -> tuple[LinearMemory, ...]:
    """What each group can take in of the linear memory behind the operations that read it.

    Nothing where loops hold marked operations: what such an operation gives has one element for each iteration.
    """
    if minfo.looped:
        return ()
    eqns, closed, known = minfo.jaxpr.eqns, new_states_elsewhere(groups), minfo.constants()
    feeds = {
        (use.y_var, group.index): feed
        for r in relations
        for use in r.uses
        for group, feed in zip(r.hidden_groups, r.feeds, strict=True)
    }
    sources = seeds_of([*t.group.hidden_invars, *t.y_vars] for t in transitions)
    ahead = influence(eqns, sources, barrier=is_marked, closed=closed)
    producers = {v: (order, eqn) for order, eqn in enumerate(eqns) for v in eqn.outvars}
    recurrent = recurrent_operations(minfo, groups)
    plain = {t.group.index for t in transitions if not t.mixes and _is_plain(t)}
    found = []
    for operation, target in ((use, group) for r in relations for use in r.uses for group in r.hidden_groups):
        z, y = operation.x_var, operation.y_var
        if z is None or isinstance(z, Literal):
            continue
        givers = [g for g in numbers(ahead.get(z, 0) & ~recurrent.get(y, 0)) if g != target.index and g in plain]
        slot, constants = transitions[target.index].y_vars.index(y), transitions[target.index].constants
        states, whole = _driven_linearly(constants, slot)
        if not givers or not states or not _is_linear(operation):
            continue
        decay = np.array([[constants.D[s][r] for r in states] for s in states])
        gain = np.array([constants.F[slot][s] for s in states])
        make = functools.partial(
            LinearMemory,
            operation=operation,
            target=target,
            states=states,
            decay=decay,
            gain=gain,
            feed=feeds[y, target.index],
            whole=whole,
        )
        taken = []
        for g in givers:
            own = tuple(feeds[v, g] for v in transitions[g].y_vars)
            local = _local_equations(z, 1 << g, ahead, sources, producers)
            tap = _tap(minfo, transitions[g], own, z, local, known)
            if tap is not None:
                program, constvars, elements = tap
                taken.append(make(source=groups[g], program=program, constvars=constvars, elements=elements, feeds=own))
        found += [m for m in taken if not _shares_an_input(m, taken, transitions)]
    return tuple(found)


def _is_plain(transition: LocalTransition) -> bool:
    """Whether every hidden state is one real state of a position, and driven by real operations."""
    group = transition.group
    real = all(
        not jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in (*group.hidden_invars, *transition.y_vars)
    )
    return real and not any(group.widths)


def _local_equations(
    z: Var,
    bit: int,
    ahead: Mapping[Var, int],
    sources: Mapping[Var, int],
    producers: Mapping[Var, tuple[int, JaxprEqn]],
) -> list[JaxprEqn]:
    """The equations between the sources of a group and z, in order."""
    on_path: dict[int, JaxprEqn] = {}
    stack = [z]
    while stack:
        v = stack.pop()
        if sources.get(v, 0) & bit or v not in producers:
            continue
        order, eqn = producers[v]
        if order not in on_path:
            on_path[order] = eqn
            stack += [u for u in reads(eqn) if ahead.get(u, 0) & bit]
    return [on_path[order] for order in sorted(on_path)]


def _is_linear(operation: MarkedOperation) -> bool:
    """Whether an operation is real, and affine in its input."""
    z, y = operation.x_var, operation.y_var
    return all(jnp.issubdtype(v.aval.dtype, np.floating) for v in (z, y)) and is_affine_in_input(operation)


def _shares_an_input(
    memory: LinearMemory, others: Iterable[LinearMemory], transitions: Sequence[LocalTransition]
) -> bool:
    """Whether an operation feeds two groups that read it into the same z: both would count what reaches z directly."""
    own = set(transitions[memory.source.index].y_vars)
    return any(own & set(transitions[m.source.index].y_vars) for m in others if m.source is not memory.source)


def _driven_linearly(constants: ConstantFactors, slot: int) -> tuple[tuple[int, ...], bool]:
    """The states that an operation reaches, if they depend on nothing but linear states; and whether all do."""
    D, F = constants.D, constants.F[slot]
    every = range(len(D))
    kept = {s for s in every if F[s] is not None and all(value is not None for value in D[s])}
    while any(D[s][r] != 0 for s in kept for r in every if r not in kept):
        kept = {s for s in kept if all(D[s][r] == 0 for r in every if r not in kept)}
    reached = {s for s in kept if F[s] != 0}
    while more := {s for s in kept - reached if any(D[s][r] != 0 for r in reached)}:
        reached |= more
    return tuple(sorted(reached)), len(kept) == len(every)


def _tap(
    minfo: ModuleInfo,
    transition: LocalTransition,
    feeds: Sequence[Feed],
    z: Var,
    eqns: Sequence[JaxprEqn],
    known: Constants,
) -> tuple[Jaxpr, tuple[Var, ...], np.ndarray] | None:
    """z from what the local transition of a group starts from, and its element at each position; None without proof."""
    group = transition.group
    if any(eqn.primitive is while_p for eqn in eqns):
        return None
    S = len(group.hidden_invars)
    program, constvars = slice_program(minfo.jaxpr, eqns, [*group.hidden_invars, *transition.y_vars], [z])
    rest = [None] * (len(program.invars) - S - len(feeds))
    sources: list[np.ndarray | None] = [group.positions_of(v) for v in group.hidden_invars]
    for v, feed in zip(transition.y_vars, feeds, strict=True):
        sources.append(_positions_of_output(group, feed, v))
    (at,) = propagate_sources(program, [*sources, *rest], known=known)
    for k, feed in enumerate(feeds):
        if feed.kind is not FeedKind.BROADCAST or feed.index is None:
            continue
        alone: list[np.ndarray | None] = [None] * len(program.invars)
        shape = transition.y_vars[k].aval.shape
        alone[S + k] = np.arange(int(np.prod(shape))).reshape(shape)
        (element,) = propagate_sources(program, alone, known=known)
        # The element of y that z reads must be the one that feeds the position which z reads.
        agrees = (at >= 0) & (element == feed.index.reshape(-1)[np.maximum(at, 0)])
        at = np.where((element == NONE) | agrees, at, MANY)
    positions, counts = np.unique(at[at != NONE], return_counts=True)
    if not positions.size or np.any(positions == MANY) or np.any(counts > 1):
        return None
    elements = np.full(group.positions.size, -1)
    flat = at.reshape(-1)
    elements[flat[flat != NONE]] = np.flatnonzero(flat != NONE)
    return program, constvars, elements.reshape(group.positions.shape)


def _positions_of_output(group: HiddenGroup, feed: Feed, y: Var) -> np.ndarray | None:
    """The position that each element of y feeds; MANY where it is not one."""
    if feed.kind is FeedKind.SAME:
        return group.positions
    if feed.kind is FeedKind.GATHER and feed.index is not None:
        return np.where(feed.index == NONE, MANY, feed.index)
    return None if feed.kind is FeedKind.BROADCAST else np.full(y.aval.shape, MANY)


def absorbed_groups(
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    transitions: Sequence[LocalTransition],
    memories: Sequence[LinearMemory],
) -> list[int]:
    """For each group the others, as bits, whose memory of it is taken in completely.

    Every path from the group, or from an operation that feeds it, into such a group leads by a trace's own way to an
    operation whose memory is absorbed, and the other group remembers nothing of it in another way.
    """
    eqns = minfo.jaxpr.eqns
    seeds = seeds_of([*t.group.hidden_invars, *t.group.hidden_outvars, *t.y_vars] for t in transitions)
    own = seeds_of([*t.group.hidden_outvars, *t.y_vars] for t in transitions)
    through: dict[Var, int] = {}
    for m in memories:
        through[m.operation.y_var] = through.get(m.operation.y_var, 0) | 1 << m.source.index
    reached = influence(eqns, seeds)
    elsewhere = influence(eqns, {v: bits & ~through.get(v, 0) for v, bits in seeds.items()}, closed=through)

    foreign = new_states_elsewhere(groups)
    away = {v: reached.get(v, 0) & bits for v, bits in foreign.items()}
    for eqn in filter(is_marked, eqns):
        away[eqn.outvars[0]] = away.get(eqn.outvars[0], 0) | join_bits(reached, reads(eqn))
    away = influence(eqns, {v: bits & ~own.get(v, 0) for v, bits in away.items()}, closed=own)

    absorbed = []
    for g in groups:
        bits = 0
        for target in groups:
            mine = [m for m in memories if m.source is g and m.target is target]
            complete = all(m.whole and not away.get(m.operation.x_var, 0) >> g.index & 1 for m in mine)
            if mine and complete and not join_bits(elsewhere, target.hidden_outvars) >> g.index & 1:
                bits |= 1 << target.index
        absorbed.append(bits)
    return absorbed
