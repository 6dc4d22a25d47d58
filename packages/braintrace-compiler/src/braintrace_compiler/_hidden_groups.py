"""Stage 2: which hidden states exchange information position by position."""

from collections.abc import Sequence
from typing import NamedTuple

import brainstate
import numpy as np

from braintrace_primitives import is_etp_primitive

from ._diagnostics import Path
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, between, reached, slice_program
from ._module_info import ModuleInfo, StateInfo
from ._positions import propagate_targets


class HiddenGroup(NamedTuple):
    """Hidden states whose memories meet position by position.

    Attributes
    ----------
    index : int
        Groups are numbered by their first state, in the order in which a step touches the states.
    hidden_paths : tuple of paths
    hidden_states : tuple of brainstate.HiddenState
    hidden_invars, hidden_outvars : tuple of Var
        h^{t-1} and h^t of each state.
    transition_jaxpr : Jaxpr
        h^t from h^{t-1}, recurrent ETP operations included; its inputs are `hidden_invars`, then
        `transition_jaxpr_constvars`.
    transition_jaxpr_constvars : tuple of Var
        What the transition needs from the rest of the step.
    """

    index: int
    hidden_paths: tuple[Path, ...]
    hidden_states: tuple[brainstate.State, ...]
    hidden_invars: tuple[Var, ...]
    hidden_outvars: tuple[Var, ...]
    transition_jaxpr: Jaxpr
    transition_jaxpr_constvars: tuple[Var, ...]

    @property
    def num_state(self) -> int:
        """S, the number of states at each position."""
        return len(self.hidden_paths)

    @property
    def varshape(self) -> tuple[int, ...]:
        """Shape of the positions, the batch axis included."""
        return tuple(self.hidden_invars[0].aval.shape)


def is_marked(eqn: JaxprEqn) -> bool:
    """Whether `eqn` is an ETP operation."""
    return is_etp_primitive(eqn.primitive)


def new_states(groups: Sequence[HiddenGroup]) -> set[Var]:
    """The variables of h^t of all `groups`."""
    return {v for g in groups for v in g.hidden_outvars if not isinstance(v, Literal)}


def find_hidden_groups_from_minfo(
    minfo: ModuleInfo,
) -> tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]]:
    """Group the hidden states of a model.

    Two states share a group when the previous value of one reaches the new value of the other by a path that crosses
    no ETP operation and keeps every position where it is; the relation is closed transitively.

    Parameters
    ----------
    minfo : ModuleInfo

    Returns
    -------
    tuple of HiddenGroup, dict
        The groups, and the group of each hidden state by path.
    """
    hidden = minfo.hidden
    leader = list(range(len(hidden)))

    def root(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for i, source in enumerate(hidden):
        downstream = reached(minfo.jaxpr.eqns, source.invars, barrier=is_marked)
        for j, target in enumerate(hidden):
            if root(i) != root(j) and target.outvars[0] in downstream and _keeps_positions(minfo, source, target):
                first, second = sorted((root(i), root(j)))
                leader[second] = first

    members: dict[int, list[StateInfo]] = {}
    for i, state in enumerate(hidden):
        members.setdefault(root(i), []).append(state)
    groups = tuple(_make_group(minfo, index, states) for index, states in enumerate(members.values()))
    return groups, {path: group for group in groups for path in group.hidden_paths}


def _keeps_positions(minfo: ModuleInfo, source: StateInfo, target: StateInfo) -> bool:
    """Whether h^{t-1} of `source` reaches h^t of `target`, and only at equal positions."""
    h_in, h_out = source.invars[0], target.outvars[0]
    if h_in.aval.shape != h_out.aval.shape:
        return False
    if h_in is h_out:
        return True
    eqns = between(minfo.jaxpr.eqns, [h_in], [h_out], barrier=is_marked)
    program, _ = slice_program(minfo.jaxpr, eqns, [h_in], [h_out])
    own = np.arange(h_out.aval.size).reshape(h_out.aval.shape)
    label = propagate_targets(program, [own], known=minfo.constants())[0]
    return label is not None and bool(np.all((label == own) | (label == -1))) and bool(np.any(label == own))


def _make_group(minfo: ModuleInfo, index: int, states: Sequence[StateInfo]) -> HiddenGroup:
    invars = tuple(s.invars[0] for s in states)
    outvars = tuple(s.outvars[0] for s in states)
    eqns = between(minfo.jaxpr.eqns, invars, outvars)
    transition, constvars = slice_program(minfo.jaxpr, eqns, invars, outvars)
    return HiddenGroup(
        index,
        tuple(s.path for s in states),
        tuple(s.state for s in states),
        invars,
        outvars,
        transition,
        constvars,
    )
