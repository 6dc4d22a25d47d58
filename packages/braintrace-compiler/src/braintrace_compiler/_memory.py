"""Bytes of each carry (semantics, section 4), for the shapes that a model was compiled with."""

import math
from collections.abc import Container, Iterable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from ._absorption import LinearMemory
from ._certificate import Truncated
from ._constant_factors import factored_states, outlasts_step, reaches
from ._diagnostics import Path
from ._feeds import Feed, FeedKind, LocalTransition
from ._following import find_following
from ._hidden_groups import HiddenGroup
from ._jaxpr import Literal
from ._module_info import ModuleInfo
from ._perturbation import HiddenPerturbation, PerturbedStep
from ._relations import HiddenParamOpRelation


class RelationMemory(NamedTuple):
    """What carrying the past of one relation takes.

    Attributes
    ----------
    trace : int
        Bytes of the exact trace, kept as filtered inputs where it is `factored`.
    factors : int
        Bytes of two factors in its place, the input's apart.
    kept_as : str
        "a full trace"; "filtered inputs", wholly or "in part", where D and F into states are proven constant; "the
        latest step" where no state reads the past of one that the operation reaches; "the last R steps" where a learner
        cuts it short.
    """

    trace: int
    factors: int
    kept_as: str


def relation_memory(
    transitions: Sequence[LocalTransition],
    relation: HiddenParamOpRelation,
    read: Container[Path],
    absorbed: Sequence[LinearMemory] = (),
    truncated: Truncated = MappingProxyType({}),
) -> RelationMemory:
    """Bytes for one relation, all groups that it drives and all uses of its weight taken together.

    `read` names the hidden states whose past matters, see `states_read`; `absorbed` is what a learner takes in, and
    `truncated` what it cuts short.
    """
    operation, trace, factors, kept = relation.operation, 0, 0, set()
    x = None if operation.x_var is None else operation.x_var.aval
    x_bytes = 0 if x is None else int(x.size) * np.dtype(x.dtype).itemsize
    for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
        transition = transitions[group.index]
        elements = group.varshape if feed.kind is FeedKind.BROADCAST else tuple(operation.y_var.aval.shape)
        size = itemsize(operation.y_var)
        if x is None:
            factors += _trace_elements(relation, group, feed, group.num_state) * size
        else:
            factors += len(relation.uses) * group.num_state * math.prod(elements) * size
        states = live_states(group, read)
        more = sum(len(m.states) for m in absorbed if m.source.index == group.index)
        slots = [transition.y_vars.index(use.y_var) for use in relation.uses]
        if not more and not reaches(transition, slots, states):
            continue
        following = None if more else find_following(transition, states)
        around = len(following.followers) if following and not following.direct.isdisjoint(slots) else 0
        leaders = following.leaders if following else states
        factored = {states[place] for place in factored_states(transition, slots, feed, operation, states)}
        constant = len(factored & set(leaders))
        lasts = constant or more or outlasts_step(transition, slots, states)
        steps = truncated.get((relation.y_var, group.index), 0 if lasts else 1)
        if steps and x is not None:
            trace += len(relation.uses) * steps * ((len(states) + more) * math.prod(elements) * size + x_bytes)
            kept.add(f"the last {steps} steps" if steps > 1 else "the latest step")
            continue
        if around and x is not None:
            trace += len(relation.uses) * (around * math.prod(elements) * size + x_bytes)
            kept.add("the latest step")
            around = 0
        rest = len(leaders) - constant + more + around
        if constant:
            assert x is not None  # an operation without input is not affine in it
            ones = operation.spec.trace_rule.acts_beside_input(operation.weight_vars)
            trace += constant * (int(x.size) + ones) * size
            kept.add("filtered inputs")
        if rest:
            trace += _trace_elements(relation, group, feed, rest) * size
            kept.add("a full trace")
    saved = sorted(kept - {"a full trace"})
    part = " in part" if saved and "a full trace" in kept else ""
    return RelationMemory(trace, factors, " and ".join(saved) + part if saved else "a full trace")


def input_bytes(relations: Iterable[HiddenParamOpRelation]) -> int:
    """Bytes of the input factors of all operations; one input of several has one."""
    uses = [use for relation in relations for use in relation.uses if use.x_var is not None]
    widest: dict[Any, int] = {}
    for use in uses:
        key = use.addend_key
        widest[key] = max(widest.get(key, 0), itemsize(use.y_var))
    return sum(math.prod(shape) * size for (_, shape, _), size in widest.items())


def influence_bytes(minfo: ModuleInfo) -> tuple[int, int]:
    """Bytes of the full influence matrix, and of a random rank-one sketch of it."""
    units = sum(int(s.invars[0].aval.size) for s in minfo.hidden)
    leaves = [v.aval for s in minfo.parameters for v in s.invars]
    parameters = sum(int(leaf.size) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
    width = np.dtype(leaves[0].dtype).itemsize if leaves else 0
    return units * parameters, units * width + parameters


def states_read(perturb: HiddenPerturbation, step: PerturbedStep) -> frozenset[Path]:
    """The hidden states whose previous value `step` reads in perturbed form."""
    used = {v for eqn in step.jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)}
    return frozenset(
        path for path, var in zip(perturb.perturb_hidden_paths, perturb.previous_vars, strict=True) if var in used
    )


def live_states(group: HiddenGroup, read: Container[Path]) -> tuple[int, ...]:
    """Ordinals of those of the S states of a group that belong to hidden states in `read`."""
    return tuple(i for i, path in enumerate(group.path_of_each_state) if path in read)


def itemsize(var: Any) -> int:
    """Bytes of one element of a trace: at least those of single precision."""
    return max(np.dtype(var.aval.dtype).itemsize, 4)


def _trace_elements(relation: HiddenParamOpRelation, group: HiddenGroup, feed: Feed, num_states: int) -> int:
    operation = relation.operation
    rule, (x, weights, y) = operation.spec.trace_rule, operation.operand_types
    if feed.kind is FeedKind.BROADCAST:
        assert feed.index is not None
        rule, y = rule.expanded(feed.index), jax.ShapeDtypeStruct(feed.index.shape, y.dtype)
    return rule.trace_size(x, weights, y, num_states, operation.eqn.params)
