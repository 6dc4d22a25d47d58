"""Stage 3: which marked operations drive which hidden groups, and from which parameters their weights come."""

import enum
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from braintrace_primitives import ETPPrimitiveSpec, get_primitive_spec
from braintrace_primitives._jax_compat import Primitive

from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path
from ._hidden_groups import HiddenGroup, is_marked, new_states
from ._jaxpr import (
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    between,
    build_jaxpr,
    needed,
    reached,
    reaching,
    reads,
    slice_program,
    source_line,
)
from ._module_info import ModuleInfo, StateKind
from ._positions import Constants, propagate_sources, propagate_targets


class MarkedOperation(NamedTuple):
    """An ETP operation whose weights come from parameters by a chain that does not vary in time.

    Attributes
    ----------
    eqn : JaxprEqn
    spec : ETPPrimitiveSpec
    weight_vars : mapping
        Trainable name -> the operand.
    weight_paths : mapping
        Trainable name -> paths of the parameters behind that operand; none behind a constant.
    source : str
        The user's line.
    """

    eqn: JaxprEqn
    spec: ETPPrimitiveSpec
    weight_vars: Mapping[str, Var]
    weight_paths: Mapping[str, tuple[Path, ...]]
    source: str

    @property
    def weight_path(self) -> Path:
        """Path of the first parameter behind the operation."""
        return self.parameter_paths[0]

    def index_of(self, name: str) -> int:
        """Position of a trainable operand among the operands."""
        return self.spec.trainable_invars(self.eqn.params)[name]

    @property
    def parameter_paths(self) -> tuple[Path, ...]:
        """Paths of all parameters behind the operation."""
        return tuple(dict.fromkeys(path for paths in self.weight_paths.values() for path in paths))

    @property
    def x_var(self) -> Any:
        """The input operand, or None."""
        return None if self.spec.x_invar_index is None else self.eqn.invars[self.spec.x_invar_index]

    @property
    def y_var(self) -> Var:
        """The output."""
        return self.eqn.outvars[0]


class FeedKind(enum.Enum):
    """How the elements of y and the positions of a group are matched."""

    SAME = "same"
    """y has the shape of the positions and every element feeds its own."""
    GATHER = "gather"
    """Every element of y feeds at most one position; the index gives it, for each element of y."""
    BROADCAST = "broadcast"
    """Every position is fed by at most one element of y; the index gives it, for each position."""
    DIAGONAL = "diagonal"
    """Positions are mixed on the way; only the path from an element to its own position is traced."""


class Feed(NamedTuple):
    """Which elements of y feed which positions of a group; see `FeedKind`."""

    kind: FeedKind
    index: np.ndarray | None = None


class HiddenParamOpRelation(NamedTuple):
    """A marked operation and the hidden groups that its output reaches directly.

    Attributes
    ----------
    primitive : Primitive
    weight_path : tuple
        Path of the parameter behind the weight.
    x_var : Var or None
    y_var : Var
    hidden_groups : tuple of HiddenGroup
    connected_hidden_paths : tuple of paths
    eqn_params : dict
    operation : MarkedOperation
    feeds : tuple of Feed
        One for each group.
    """

    primitive: Primitive
    weight_path: Path
    x_var: Var | None
    y_var: Var
    hidden_groups: tuple[HiddenGroup, ...]
    connected_hidden_paths: tuple[Path, ...]
    eqn_params: dict[str, Any]
    operation: MarkedOperation
    feeds: tuple[Feed, ...]


class LocalTransition(NamedTuple):
    """The transition of a group along paths that cross no ETP operation and no other group's new state.

    Attributes
    ----------
    group : HiddenGroup
    y_vars : tuple of Var
        Outputs of the operations that feed the group.
    program : Jaxpr
        ``(h^{t-1} of each state, each y, constants) -> h^t of each state``.
    constvars : tuple of Var
    remembers : bool
        Whether h^{t-1} reaches h^t at all; if not, D = 0.
    mixes : bool
        Whether h^{t-1} reaches other positions than its own.
    """

    group: HiddenGroup
    y_vars: tuple[Var, ...]
    program: Jaxpr
    constvars: tuple[Var, ...]
    remembers: bool
    mixes: bool


def trace_var_to_param(
    var: Any, producers: Mapping[Var, JaxprEqn], invar_to_weight_path: Mapping[Var, Path]
) -> tuple[Path, tuple[JaxprEqn, ...]] | None:
    """Follow an operand back to the first parameter behind it.

    Parameters
    ----------
    var : Var
        Operand of a marked operation.
    producers : mapping
        Of `build_producer_map`.
    invar_to_weight_path : mapping
        Of `ModuleInfo`.

    Returns
    -------
    tuple or None
        Path of the parameter, and the equations between the parameter and the operand in evaluation order; None
        where no parameter stands behind `var`.
    """
    path: Path | None = None
    chain: set[int] = set()
    stack, seen = [var], set()
    while stack:
        v = stack.pop()
        if isinstance(v, Literal) or v in seen:
            continue
        seen.add(v)
        if v in invar_to_weight_path:
            path = path or invar_to_weight_path[v]
        elif v in producers:
            chain.add(id(producers[v]))
            stack.extend(reversed(list(reads(producers[v]))))
    if path is None:
        return None
    in_order = {id(eqn): eqn for eqn in producers.values()}
    return path, tuple(eqn for key, eqn in in_order.items() if key in chain)


def find_marked_operations(
    minfo: ModuleInfo,
) -> tuple[tuple[MarkedOperation, ...], tuple[CompilationRecord, ...]]:
    """The marked operations that learn, in the order of the program, and records of those that do not trace.

    An operation whose weight depends on data or state, or on no parameter, is left to ordinary differentiation.
    """
    varying = {
        *minfo.arg_invars,
        *(v for s in minfo.states if s.kind is not StateKind.PARAMETER for v in s.invars),
    }
    in_time = reached(minfo.jaxpr.eqns, varying, derivative=False)
    paths_behind: dict[Var, tuple[Path, ...]] = {v: (p,) for v, p in minfo.invar_to_weight_path.items()}
    for eqn in minfo.jaxpr.eqns:
        behind = tuple(dict.fromkeys(p for v in reads(eqn) for p in paths_behind.get(v, ())))
        paths_behind.update((v, behind) for v in eqn.outvars if behind)

    operations, records = [], []
    for eqn in filter(is_marked, minfo.jaxpr.eqns):
        spec = get_primitive_spec(eqn.primitive)
        operands = {name: eqn.invars[i] for name, i in spec.trainable_invars(eqn.params).items()}
        operands = {n: v for n, v in operands.items() if not isinstance(v, Literal)}
        paths = {n: paths_behind.get(v, ()) for n, v in operands.items()}
        source = source_line(eqn)
        if not any(paths.values()):
            kind, level, path = DiagnosticKind.RELATION_EXCLUDED_NO_PARAMSTATE, DiagnosticLevel.INFO, None
            message = f"ETP primitive {spec.name}: no parameter stands behind its weight. There is nothing to learn."
        elif any(v in in_time for v in operands.values()):
            path = next(filter(None, paths.values()))[0]
            kind, level = DiagnosticKind.TIME_VARYING_WEIGHT, DiagnosticLevel.WARNING
            message = (
                f"ETP primitive {spec.name} (weight={path}): its weight depends on data or state. "
                "It is not traced; its gradient covers the current step only."
            )
        else:
            operations.append(MarkedOperation(eqn, spec, operands, paths, source))
            continue
        records.append(CompilationRecord(kind, level, message, eqn.primitive, path, context={"source": source}))
    return tuple(operations), tuple(records)


def make_weight_program(minfo: ModuleInfo, operations: Sequence[MarkedOperation]) -> Jaxpr:
    """The program ``(constants, parameter leaves) -> weight operands of all operations``, in order."""
    operands = [v for op in operations for v in op.weight_vars.values()]
    inputs = [*minfo.const_invars, *(v for s in minfo.parameters for v in s.invars)]
    eqns = needed([eqn for eqn in minfo.jaxpr.eqns if not eqn.effects], operands, set(inputs))
    return build_jaxpr(inputs, operands, eqns, like=minfo.jaxpr)


def find_local_transition(
    minfo: ModuleInfo,
    group: HiddenGroup,
    groups: Sequence[HiddenGroup],
    operations: Sequence[MarkedOperation],
) -> tuple[LocalTransition, tuple[Feed, ...]]:
    """The local transition of `group`, and how each operation in it feeds the group's positions."""
    closed = new_states(groups) - set(group.hidden_outvars)
    eqns = minfo.jaxpr.eqns
    upstream = reaching(eqns, group.hidden_outvars, barrier=is_marked, closed=closed)
    y_vars = tuple(op.y_var for op in operations if op.y_var in upstream and op.y_var not in closed)
    sources = [*group.hidden_invars, *y_vars]
    local, constvars = slice_program(
        minfo.jaxpr,
        between(eqns, sources, group.hidden_outvars, barrier=is_marked, closed=closed),
        sources,
        group.hidden_outvars,
    )
    own = np.arange(int(np.prod(group.varshape))).reshape(group.varshape)
    known = minfo.constants()
    labels = propagate_targets(local, [own] * group.num_state, known=known)
    memory = [label for label in labels[: group.num_state] if label is not None and np.any(label != -1)]
    mixes = any(np.any((label != own) & (label != -1)) for label in memory)
    transition = LocalTransition(group, y_vars, local, constvars, bool(memory), bool(mixes))
    feeds = tuple(
        _find_feed(transition, k, label, own, known) for k, label in enumerate(labels[group.num_state : len(sources)])
    )
    return transition, feeds


def _find_feed(
    transition: LocalTransition, k: int, label: np.ndarray | None, own: np.ndarray, known: Constants
) -> Feed:
    if label is not None and not np.any(label == -2):
        if label.shape == own.shape and np.all((label == own) | (label == -1)):
            return Feed(FeedKind.SAME)
        return Feed(FeedKind.GATHER, label)
    y_var, states = transition.y_vars[k], transition.group.num_state
    in_labels: list[np.ndarray | None] = [None] * len(transition.program.invars)
    in_labels[states + k] = np.arange(y_var.aval.size).reshape(y_var.aval.shape)
    source = np.full(own.shape, -1)
    for out in propagate_sources(transition.program, in_labels, known=known):
        if out is not None:
            source = np.where(source == -1, out, np.where((out == -1) | (out == source), source, -2))
    if not np.any(source == -2):
        return Feed(FeedKind.BROADCAST, source)
    return Feed(FeedKind.DIAGONAL)


def find_hidden_param_op_relations_from_minfo(
    minfo: ModuleInfo, hid_path_to_group: Mapping[Path, HiddenGroup]
) -> tuple[HiddenParamOpRelation, ...]:
    """Connect marked operations to the hidden groups that they drive.

    Parameters
    ----------
    minfo : ModuleInfo
    hid_path_to_group : mapping
        Of `find_hidden_groups_from_minfo`.

    Returns
    -------
    tuple of HiddenParamOpRelation
        In the order of the program.
    """
    return find_relations(minfo, _groups_in_order(hid_path_to_group))[0]


def _groups_in_order(hid_path_to_group: Mapping[Path, HiddenGroup]) -> tuple[HiddenGroup, ...]:
    return tuple(sorted({g.index: g for g in hid_path_to_group.values()}.values(), key=lambda g: g.index))


def find_relations(
    minfo: ModuleInfo, groups: Sequence[HiddenGroup]
) -> tuple[tuple[HiddenParamOpRelation, ...], tuple[LocalTransition, ...], tuple[CompilationRecord, ...]]:
    """The relations of all groups, the local transitions they use, and a record for each marked operation."""
    operations, skipped = find_marked_operations(minfo)
    found = [find_local_transition(minfo, group, groups, operations) for group in groups]
    feeds_of: dict[Var, list[tuple[HiddenGroup, Feed]]] = {}
    for transition, feeds in found:
        for y_var, feed in zip(transition.y_vars, feeds, strict=True):
            feeds_of.setdefault(y_var, []).append((transition.group, feed))

    relations, records = [], []
    for operation in operations:
        pairs = feeds_of.get(operation.y_var, [])
        records.append(_record(minfo, operation, [group for group, _ in pairs]))
        if not pairs:
            continue
        downstream = reached(minfo.jaxpr.eqns, [operation.y_var])
        relations.append(
            HiddenParamOpRelation(
                operation.eqn.primitive,
                operation.weight_path,
                operation.x_var,
                operation.y_var,
                tuple(group for group, _ in pairs),
                tuple(
                    path
                    for group, _ in pairs
                    for path, var in zip(group.hidden_paths, group.hidden_outvars, strict=True)
                    if var in downstream
                ),
                dict(operation.eqn.params),
                operation,
                tuple(feed for _, feed in pairs),
            )
        )
    return tuple(relations), tuple(transition for transition, _ in found), (*records, *skipped)


def _record(minfo: ModuleInfo, operation: MarkedOperation, groups: Sequence[HiddenGroup]) -> CompilationRecord:
    """Say what becomes of one marked operation."""
    name, path = operation.spec.name, operation.weight_path
    downstream = reached(minfo.jaxpr.eqns, [operation.y_var])
    context: dict[str, Any] = {}
    if groups:
        crossing = _reached_across_operations(minfo, operation)
        context["hidden_group_indices"] = tuple(g.index for g in groups)
        context["path_classification"] = {
            p: "partial" if v in crossing else "all_direct"
            for g in groups
            for p, v in zip(g.hidden_paths, g.hidden_outvars, strict=True)
            if v in downstream
        }
        kind, level = DiagnosticKind.RELATION_INCLUDED, DiagnosticLevel.INFO
        message = f"{name}({path}) -> {[g.index for g in groups]}"
        hidden_paths = tuple(context["path_classification"])
    else:
        hidden_paths = tuple(s.path for s in minfo.hidden if s.outvars[0] in downstream) or None
        if hidden_paths:
            kind, level = DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT, DiagnosticLevel.INFO
            message = (
                f"ETP primitive {name} (weight={path}) reaches hidden states only through another ETP operation. "
                "Its gradient covers the current step."
            )
        else:
            kind, level = DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL, DiagnosticLevel.WARNING
            message = (
                f"ETP primitive {name} (weight={path}) has no connected hidden states. "
                "It will be treated as a non-temporal parameter."
            )
    context["source"] = operation.source
    return CompilationRecord(kind, level, message, operation.eqn.primitive, path, hidden_paths, context)


def _reached_across_operations(minfo: ModuleInfo, operation: MarkedOperation) -> set[Var]:
    """What the operation's output reaches through at least one other ETP operation."""
    eqns = minfo.jaxpr.eqns
    direct = reached(eqns, [operation.y_var], barrier=is_marked)
    crossed = [v for eqn in eqns if is_marked(eqn) and any(u in direct for u in reads(eqn)) for v in eqn.outvars]
    return reached(eqns, crossed)
