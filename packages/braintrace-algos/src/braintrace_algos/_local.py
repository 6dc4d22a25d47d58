"""D and F of a group: what a step keeps for them, and how they are made of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_compiler._derivatives import differentiate
from braintrace_compiler._entries import Known
from braintrace_compiler._following import Following, differentiate_following, find_following
from braintrace_compiler._narrow import NarrowCut, narrow_cut
from braintrace_primitives._jax_compat import eval_jaxpr, make_jaxpr_without_consts

from ._absorption import absorb
from ._entries import Rows, is_zero
from ._plan import Plan

Blocks = tuple[Rows | None, dict[str, tuple[Any, ...]]]
"""D, S rows of S entries, or None where nothing is remembered; and F, S entries for each coupling, by key.

Each entry is an array (*positions), of F (*elements), or a number that is known.
"""


class LocalDerivatives(NamedTuple):
    """Derivatives within a group, as a step that keeps little and a program that makes them of what was kept.

    Attributes
    ----------
    variables : tuple of Var
        Of the step, whose values are needed.
    cut : NarrowCut
    tree : PyTreeDef
        Of `Blocks` or `Rows`, whose leaves are the entries that are arrays.
    """

    variables: tuple[Any, ...]
    cut: NarrowCut
    tree: Any

    @classmethod
    def of(cls, variables: Sequence[Any], derivatives: Callable[..., Any]) -> "LocalDerivatives":
        """Of a function that takes the values of `variables`."""
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in variables]
        traced, blocks = jax.make_jaxpr(derivatives, return_shape=True)(*shapes)
        return cls(tuple(variables), narrow_cut(*make_jaxpr_without_consts(traced)), jax.tree.structure(blocks))

    @property
    def pattern(self) -> Any:
        """The derivatives with numbers that are known, and None for arrays."""
        return self.tree.unflatten([None] * self.tree.num_leaves)

    def keep(self, values: Sequence[Any]) -> list[Any]:
        """What to keep of a step, from the values of `variables`."""
        return eval_jaxpr(self.cut.first, *self.cut.consts, *values)

    def blocks(self, kept: Sequence[Any]) -> Any:
        """The derivatives of the step of which `kept` is left."""
        return self.tree.unflatten(eval_jaxpr(self.cut.second, *self.cut.consts, *kept))


class Followed(NamedTuple):
    """States of a group that follow from others, h = o tanh(c) of an LSTM, and need no trace of their own.

    With J = ∂h_f^t/∂h_r^t the trace of a follower f is e_f^t = sum_r J_fr^t e_r^t + F_f^t ∂y^t/∂w, where F_f is what an
    operation brings around its leaders r. A signal L is one of L_r + sum_f J_fr L_f at the leaders, and of L_f at that
    second part, which stands for e_f: its rows of D are zero. Leaders that read the past of a follower, for which there
    is no such part, have D_rs + sum_f D_rf J_fs^{t-1} for D_rs.

    Attributes
    ----------
    names : tuple of str
        Of the followers, and of the leaders.
    states : Following
    leaders, followers : tuple of int
        Their places among the states that carry a trace.
    jacobian : LocalDerivatives
        Of a step, a row for each follower.
    """

    names: tuple[str, str]
    states: Following
    leaders: tuple[int, ...]
    followers: tuple[int, ...]
    jacobian: LocalDerivatives

    @classmethod
    def of(cls, plan: Plan, index: int) -> "Followed | None":
        """What follows in a traced group, if anything."""
        transition, live = plan.transitions[index], plan.live[index]
        states = None if plan.memories_of(index) else find_following(transition, live)
        if states is None:
            return None
        leaders, followers = (tuple(live.index(s) for s in part) for part in (states.leaders, states.followers))
        variables, inputs_of = _inputs(plan, index)
        own, of = (" and ".join(plan.live_names(index, places)) for places in (followers, leaders))

        def jacobian(*values: Any) -> Rows:
            return differentiate_following(states, transition, [], inputs_of(values))[0]

        return cls((own, of), states, leaders, followers, LocalDerivatives.of(variables, jacobian))

    @property
    def key(self) -> str:
        """Under which J is carried."""
        return "{} from {}".format(*self.names)

    def blocks(self, D: Rows, F: Sequence[Sequence[Any]], around: Sequence[Sequence[Any]]) -> Any:
        """D and F, from those of all states and what reaches followers around their leaders.

        Columns of the followers are those of their past, until it is `passed_on`.
        """
        S, lost = range(len(D)), self.followers if self.states.forgotten else ()
        rows = tuple(tuple(Known(0) if s in self.followers or r in lost else D[s][r] for r in S) for s in S)
        own = {f: i for i, f in enumerate(self.followers)}
        pairs = zip(F, around, strict=True)
        return rows, [tuple(more[own[s]] if s in own else f[s] for s in S) for f, more in pairs]

    def passed_on(self, D: Rows, jacobian: Any = None) -> Rows:
        """D with the past of followers as that of their leaders.

        Parameters
        ----------
        D : rows
            Or their pattern, see `LocalDerivatives`.
        jacobian : array (followers, leaders, *positions), optional
            Of the step before; without it, what is no number is None.
        """
        place, S = {r: i for i, r in enumerate(self.leaders)}, range(len(D))

        def entry(s: int, r: int) -> Any:
            if s not in place or r not in place:
                return Known(0)
            i = place[r]
            read = [(j, D[s][f]) for j, f in enumerate(self.followers) if self._leads(i, j) and not is_zero(D[s][f])]
            if read and jacobian is None:
                return None
            return sum((d * jacobian[j, i] for j, d in read), D[s][r])

        return tuple(tuple(entry(s, r) for r in S) for s in S)

    def led(self, signals: Any, jacobian: Any, axis: int = 0) -> Any:
        """Signals, (S, *positions) from `axis` on, as leaders meet them; J is (followers, leaders, *positions)."""
        rows = list(jnp.moveaxis(signals, axis, 0))
        weights = jnp.moveaxis(jacobian, (axis, axis + 1), (0, 1)).astype(signals.dtype)
        for i, r in enumerate(self.leaders):
            rows[r] = rows[r] + sum(weights[j, i] * rows[f] for j, f in enumerate(self.followers) if self._leads(i, j))
        return jnp.stack(rows, axis)

    def _leads(self, i: int, j: int) -> bool:
        """Whether the j-th follower depends on the i-th leader."""
        return not is_zero(self.jacobian.pattern[j][i])


def _inputs(plan: Plan, index: int) -> tuple[tuple[Any, ...], Callable[[Sequence[Any]], list[Any]]]:
    """The variables of the step that a transition depends on, and the function that makes its inputs of these."""
    transition = plan.transitions[index]
    count = len(transition.group.hidden_invars)
    variables = (*transition.group.hidden_invars, *transition.y_vars, *transition.constvars)
    return variables, lambda values: [*transition.group.split(list(values[:count])), *values[count:]]


def derivatives_of(plan: Plan, index: int) -> tuple[tuple[Any, ...], Callable[..., Blocks]]:
    """The variables of the step that D and F of a traced group depend on, and the function that makes them of these.

    Both have the rows of what the group takes in.
    """
    transition, live, memories = plan.transitions[index], plan.live[index], plan.memories_of(index)
    remembers, followed = transition.remembers or bool(memories), plan.followed.get(index)
    couplings = [c for c in plan.couplings if c.group == index]
    feeds = [(c.slot, c.feed) for c in couplings]
    variables, inputs_of = _inputs(plan, index)

    def derivatives(*values: Any) -> Blocks:
        own, taps = values[: len(variables)], iter(values[len(variables) :])
        inputs = inputs_of(own)
        D, F = differentiate(transition, feeds, live, inputs)
        if followed is not None:
            D, F = followed.blocks(D, F, differentiate_following(followed.states, transition, feeds, inputs)[1])
        inner = inputs[: transition.group.num_state + len(transition.y_vars)]
        for memory in memories:
            tap = [next(taps) for _ in memory.constvars]
            D, F = absorb(memory, live, [slot for slot, _ in feeds], D, F, [*inner, *tap])
        return D if remembers else None, {c.key: tuple(f) for c, f in zip(couplings, F, strict=True)}

    return (*variables, *(v for m in memories for v in m.constvars)), derivatives


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
