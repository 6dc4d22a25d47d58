"""D and F of a group: what a step keeps for them, and how they are made of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from braintrace_compiler import NarrowCut, differentiate, narrow_cut
from braintrace_primitives._jax_compat import eval_jaxpr, make_jaxpr_without_consts

from ._absorption import absorb
from ._entries import Rows
from ._plan import Plan

Blocks = tuple[Rows | None, dict[str, tuple[Any, ...]]]
"""D, S rows of S entries, or None where nothing is remembered; and F, S entries for each coupling, by key.

Each entry is an array (*positions), of F (*elements), or a number that is known.
"""


class LocalDerivatives(NamedTuple):
    """D and F of a group, as a step that keeps little and a program that makes them of what was kept.

    Attributes
    ----------
    variables : tuple of Var
        Of the step, whose values are needed.
    cut : NarrowCut
    tree : PyTreeDef
        Of `Blocks`, whose leaves are the entries that are arrays.
    """

    variables: tuple[Any, ...]
    cut: NarrowCut
    tree: Any

    @classmethod
    def of(cls, variables: Sequence[Any], derivatives: Callable[..., Blocks]) -> "LocalDerivatives":
        """Of a function that takes the values of `variables`."""
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]
        traced, blocks = jax.make_jaxpr(derivatives, return_shape=True)(*shapes)
        return cls(tuple(variables), narrow_cut(*make_jaxpr_without_consts(traced)), jax.tree.structure(blocks))

    @property
    def pattern(self) -> Blocks:
        """The blocks with numbers that are known, and None for arrays."""
        return self.tree.unflatten([None] * self.tree.num_leaves)

    def keep(self, values: Sequence[Any]) -> list[Any]:
        """What to keep of a step, from the values of `variables`."""
        return eval_jaxpr(self.cut.first, *self.cut.consts, *values)

    def blocks(self, kept: Sequence[Any]) -> Blocks:
        """D and F of the step of which `kept` is left."""
        return self.tree.unflatten(eval_jaxpr(self.cut.second, *self.cut.consts, *kept))


def derivatives_of(plan: Plan, index: int) -> tuple[tuple[Any, ...], Callable[..., Blocks]]:
    """The variables of the step that D and F of a traced group depend on, and the function that makes them of these.

    Both have the rows of what the group takes in.
    """
    transition, live, memories = plan.transitions[index], plan.live[index], plan.memories_of(index)
    group, remembers = transition.group, transition.remembers or bool(memories)
    couplings = [c for c in plan.couplings if c.group == index]
    feeds = [(c.slot, c.feed) for c in couplings]
    parts = [group.hidden_invars, transition.y_vars, transition.constvars, *(m.constvars for m in memories)]

    def derivatives(*values: Any) -> Blocks:
        taken = iter(values)
        h, y, constants, *taps = ([next(taken) for _ in part] for part in parts)
        inputs = [*group.split(h), *y]
        D, F = differentiate(transition, feeds, live, [*inputs, *constants])
        for memory, tap in zip(memories, taps, strict=True):
            D, F = absorb(memory, live, [slot for slot, _ in feeds], D, F, [*inputs, *tap])
        return D if remembers else None, {c.key: tuple(f) for c, f in zip(couplings, F, strict=True)}

    return tuple(v for part in parts for v in part), derivatives


def with_local(plan: Plan, derivatives: Callable[[Plan, int], tuple[tuple[Any, ...], Callable[..., Blocks]]]) -> Plan:
    """The plan with D and F of its traced groups, as `derivatives` gives them."""
    return plan._replace(local={index: LocalDerivatives.of(*derivatives(plan, index)) for index in plan.traced})


def blocks_of(plan: Plan, kept: Mapping[int, Sequence[Any]]) -> tuple[dict[int, Rows], dict[str, tuple[Any, ...]]]:
    """D by group, of those that remember, and F by key, from what a step left."""
    D: dict[int, Rows] = {}
    F: dict[str, tuple[Any, ...]] = {}
    for index, parts in kept.items():
        d, f = plan.local[index].blocks(parts)
        F |= f
        if d is not None:
            D[index] = d
    return D, F
