"""Stage 2: which hidden states exchange information position by position."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ._diagnostics import Path
from ._errors import CompilationError
from ._flow import between, dependence, influence, is_marked, join_bits, numbers, seeds_of
from ._jaxpr import Jaxpr, JaxprEqn, Var, build_jaxpr, emit, fresh_var, reads, resolve, slice_program, splice
from ._module_info import ModuleInfo, StateInfo
from ._positions import NONE, propagate_targets


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
    widths : tuple of int or None
        How many of the S states each hidden state holds along its last axis; None for one without such an axis.
    """

    index: int
    hidden_paths: tuple[Path, ...]
    hidden_states: tuple[brainstate.State, ...]
    hidden_invars: tuple[Var, ...]
    hidden_outvars: tuple[Var, ...]
    transition_jaxpr: Jaxpr
    transition_jaxpr_constvars: tuple[Var, ...]
    widths: tuple[int | None, ...]

    @property
    def held(self) -> tuple[int, ...]:
        """How many of the S states each hidden state holds; a complex one holds its real and imaginary parts."""
        pairs = zip(self.hidden_invars, self.widths, strict=True)
        return tuple((width or 1) * (2 if _is_complex(v) else 1) for v, width in pairs)

    @property
    def num_state(self) -> int:
        """S, the number of states at each position; all are real, a complex hidden state counts as two."""
        return sum(self.held)

    @property
    def dtype(self) -> Any:
        """Of the S states together."""
        return jnp.result_type(*(_real_dtype(v.aval.dtype) for v in self.hidden_invars))

    @property
    def path_of_each_state(self) -> tuple[Path, ...]:
        """Path of each of the S states of a position; a `HiddenGroupState` holds several."""
        return tuple(p for p, held in zip(self.hidden_paths, self.held, strict=True) for _ in range(held))

    @property
    def varshape(self) -> tuple[int, ...]:
        """Shape of the positions, the batch axis included."""
        shape = tuple(self.hidden_invars[0].aval.shape)
        return shape if self.widths[0] is None else shape[:-1]

    @property
    def positions(self) -> np.ndarray:
        """The number of each position."""
        return np.arange(int(np.prod(self.varshape))).reshape(self.varshape)

    def positions_of(self, var: Any) -> np.ndarray:
        """The position of each element of a hidden state of the group."""
        return position_numbers(self.varshape, var.aval.shape)

    def columns(self, values: Sequence[Any]) -> list[Any]:
        """Values given for each hidden state, as arrays (..., *varshape), complex where they are."""
        return [part for value, width in zip(values, self.widths, strict=True) for part in _columns(value, width)]

    def split(self, values: Sequence[Any]) -> list[Any]:
        """Values given for each hidden state, as values for each of the S states of a position.

        Parameters
        ----------
        values : sequence of array
            Of shape (..., *shape of the hidden state).

        Returns
        -------
        list of array
            S arrays of shape (..., *varshape).
        """
        return [part for value in self.columns(values) for part in _parts(value)]

    def split_cotangents(self, values: Sequence[Any]) -> list[Any]:
        """Cotangents of the hidden states as cotangents of the S states; that of a + ib is ∂l/∂a - i ∂l/∂b."""
        return self.split([value.conj() if jnp.iscomplexobj(value) else value for value in values])

    def join(self, parts: Sequence[Any]) -> list[Any]:
        """What `split` took apart."""
        each, joined = iter(parts), []
        for v, width, held in zip(self.hidden_invars, self.widths, self.held, strict=True):
            own = [next(each) for _ in range(held)]
            joined.append(_joined(own, width, _is_complex(v)))
        return joined

    def by_state(self, program: Jaxpr) -> Jaxpr:
        """`program`, from hidden states and more to hidden states, with each of the S states on its own."""
        if self.num_state == len(self.widths):
            return program
        eqns: list[JaxprEqn] = []
        env: dict[Var, Any] = {}
        inputs: list[Var] = []
        for v, width, held in zip(self.hidden_invars, self.widths, self.held, strict=True):
            if held == 1 and width is None:
                inputs.append(v)
                continue
            aval = v.aval.update(shape=self.varshape, dtype=_real_dtype(v.aval.dtype))
            own = [fresh_var(aval) for _ in range(held)]
            joining, (env[v],) = splice(lambda *parts, v=v, w=width: _joined(parts, w, _is_complex(v)), *own)
            inputs += own
            eqns += joining
        emit(eqns, program.eqns, env)
        outputs: list[Any] = []
        for v, width in zip(program.outvars, self.widths, strict=True):
            taking, taken = splice(
                lambda whole, w=width: [part for c in _columns(whole, w) for part in _parts(c)], resolve(env, v)
            )
            eqns += taking
            outputs += taken
        return build_jaxpr([*inputs, *program.invars[len(self.widths) :]], outputs, eqns, like=program)


def _columns(value: Any, width: int | None) -> list[Any]:
    """The states that a hidden state of this width holds along its last axis."""
    return [value] if width is None else [value[..., k] for k in range(width)]


def _parts(value: Any) -> list[Any]:
    """Real and imaginary parts; what is real is its own."""
    return [jnp.real(value), jnp.imag(value)] if jnp.iscomplexobj(value) else [value]


def _joined(parts: Sequence[Any], width: int | None, is_complex: bool) -> Any:
    if is_complex:
        parts = [jax.lax.complex(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0] if width is None else jnp.stack(parts, -1)


def _is_complex(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.complexfloating)


def _real_dtype(dtype: Any) -> Any:
    return jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.complexfloating) else dtype


def position_numbers(varshape: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The position of each element of a hidden state of `shape`, which may have one more axis for several states."""
    numbered = np.arange(int(np.prod(varshape))).reshape(varshape)
    return np.broadcast_to(numbered if len(shape) == len(varshape) else numbered[..., None], shape)


def new_states_elsewhere(groups: Sequence[HiddenGroup]) -> dict[Var, int]:
    """For the variable of each h^t, the bits of the groups that it does not belong to."""
    return {v: ~bits for v, bits in seeds_of(g.hidden_outvars for g in groups).items()}


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
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for i, j in _exchanges(minfo):
        first, second = sorted((root(i), root(j)))
        leader[second] = first

    members: dict[int, list[StateInfo]] = {}
    for i, state in enumerate(hidden):
        members.setdefault(root(i), []).append(state)
    groups = _make_groups(minfo, list(members.values()))
    return groups, {path: group for group in groups for path in group.hidden_paths}


def require_groups_of(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> None:
    """Refuse groups that are not those of this program, every hidden state in one and numbered in order.

    Raises
    ------
    CompilationError
    """
    grouped = [entry for g in groups for entry in zip(g.hidden_paths, g.hidden_invars, g.hidden_outvars, strict=True)]
    own = {(s.path, s.invars[0], s.outvars[0]) for s in minfo.hidden}
    in_order = [g.index for g in groups] == list(range(len(groups)))
    if set(grouped) != own or len(grouped) != len(own) or not in_order:
        raise CompilationError(
            "The hidden groups are not those of this program.",
            found=f"groups of {[list(g.hidden_paths) for g in groups]}, a program of {[s.path for s in minfo.hidden]}",
            expected="every hidden state of the program in one group",
            fix="pass what find_hidden_groups_from_minfo gives for the same ModuleInfo",
        )


def _exchanges(minfo: ModuleInfo) -> list[tuple[int, int]]:
    """Pairs (i, j) of hidden states where h^{t-1} of i reaches h^t of j, and only at equal positions."""
    hidden, eqns = minfo.hidden, minfo.jaxpr.eqns
    ahead = influence(eqns, seeds_of(s.invars for s in hidden), barrier=is_marked)
    behind = dependence(eqns, seeds_of(s.outvars for s in hidden), barrier=is_marked)
    paths = between(eqns, dict.fromkeys(ahead, -1), behind)
    known = minfo.constants()
    pairs = []
    for j, target in enumerate(hidden):
        sources = [i for i in numbers(ahead.get(target.outvars[0], 0)) if i != j]
        sources = [i for i in sources if hidden[i].varshape == target.varshape]
        if not sources:
            continue
        h_in = [hidden[i].invars[0] for i in sources]
        program, _ = slice_program(minfo.jaxpr, paths.get(j, []), h_in, target.outvars)
        own = position_numbers(target.varshape, target.outvars[0].aval.shape)
        labels = propagate_targets(program, [own], known=known)
        pairs += [(i, j) for i, label in zip(sources, labels, strict=False) if _keeps_positions(hidden[i], label)]
    return pairs


def _keeps_positions(source: StateInfo, label: np.ndarray) -> bool:
    own = position_numbers(source.varshape, label.shape)
    return bool(np.all((label == own) | (label == NONE)) and np.any(label == own))


def _make_groups(minfo: ModuleInfo, members: Sequence[Sequence[StateInfo]]) -> tuple[HiddenGroup, ...]:
    eqns = minfo.jaxpr.eqns
    ahead = influence(eqns, seeds_of([s.invars[0] for s in states] for states in members))
    behind = dependence(eqns, seeds_of([s.outvars[0] for s in states] for states in members))
    paths = between(eqns, ahead, behind)
    return tuple(_make_group(minfo, k, states, paths.get(k, [])) for k, states in enumerate(members))


def _make_group(minfo: ModuleInfo, index: int, states: Sequence[StateInfo], eqns: Sequence[JaxprEqn]) -> HiddenGroup:
    invars = tuple(s.invars[0] for s in states)
    outvars = tuple(s.outvars[0] for s in states)
    transition, constvars = slice_program(minfo.jaxpr, eqns, invars, outvars)
    return HiddenGroup(
        index,
        tuple(s.path for s in states),
        tuple(s.state for s in states),
        invars,
        outvars,
        transition,
        constvars,
        tuple(s.width for s in states),
    )


def recurrent_operations(minfo: ModuleInfo, groups: Sequence[HiddenGroup]) -> dict[Var, int]:
    """For each ETP operation, named by its output, the groups whose h^{t-1} leads through it to their new states."""
    eqns = minfo.jaxpr.eqns
    ahead = influence(eqns, seeds_of(g.hidden_invars for g in groups))
    behind = dependence(eqns, seeds_of(g.hidden_outvars for g in groups))
    found = {
        eqn.outvars[0]: join_bits(ahead, reads(eqn)) & behind.get(eqn.outvars[0], 0) for eqn in eqns if is_marked(eqn)
    }
    return {v: bits for v, bits in found.items() if bits}
