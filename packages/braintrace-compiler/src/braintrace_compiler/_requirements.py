"""What a caller may demand of a compiled graph."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal as OneOf

from braintrace_primitives._jax_compat import cond_p, make_jaxpr_without_consts, scan_arity, scan_p, while_p

from ._certificate import Certificate
from ._diagnostics import CompilationRecord, DiagnosticKind
from ._errors import CompilationError, NotSupportedError
from ._feeds import FeedKind, LocalTransition
from ._flow import dependence, influence, join_bits, seeds_of
from ._hidden_groups import HiddenGroup
from ._jaxpr import Jaxpr, Literal, Var, bodies, source_line
from ._module_info import ModuleInfo
from ._operations import MarkedOperation
from ._relations import HiddenParamOpRelation

OnMixing = OneOf["diagonal", "error", "exact"]
_CHOICES = ("diagonal", "error", "exact")
_MIXING_LIMIT = 2**28
"""Elements of a local Jacobian whose diagonal is taken."""

_NEVER_STRICT = (
    DiagnosticKind.PLAIN_PARAMETER_TEMPORAL,
    DiagnosticKind.WEIGHT_IN_CONTROL_FLOW,
)


def require_positions(
    transitions: Sequence[LocalTransition], relations: Sequence[HiddenParamOpRelation], on_mixing: OnMixing
) -> None:
    """Refuse position mixing, or a local Jacobian that is too large to take the diagonal of.

    Raises
    ------
    CompilationError
    """
    if on_mixing not in _CHOICES:
        raise CompilationError(
            "There is no such policy for position mixing.",
            found=f"on_mixing={on_mixing!r}",
            expected=f"one of {_CHOICES}",
        )
    if on_mixing == "exact":
        return
    mixed = {t.group.index: f"the transition of {list(t.group.hidden_paths)}" for t in transitions if t.mixes}
    for relation in relations:
        for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
            if feed.kind is FeedKind.DIAGONAL:
                where = f"the way from {relation.operation.source} into {list(group.hidden_paths)}"
                mixed.setdefault(group.index, where)
    for index, where in mixed.items():
        group = transitions[index].group
        size = (group.num_state * math.prod(group.varshape)) ** 2
        if on_mixing == "error" or size > _MIXING_LIMIT:
            raise CompilationError(
                "Positions are mixed where traces need them apart (a normalisation, a softmax, an unmarked product, "
                "a buffer that shifts).",
                where=where,
                found=f"a local Jacobian of {size} elements, on_mixing={on_mixing!r}",
                expected="position by position memory"
                if on_mixing == "error"
                else f"at most {_MIXING_LIMIT} elements, to take its diagonal",
                fix="mix by a marked operation (matmul, conv, ...), or outside of the state's own memory; "
                "give each step of a delay a state of its own",
            )


def require_reverse_derivatives(minfo: ModuleInfo) -> None:
    """Refuse a ``while`` loop that is left between hidden states or parameters and the results of a step.

    Raises
    ------
    NotSupportedError
    """
    _require_reverse(minfo.jaxpr, [v for s in (*minfo.hidden, *minfo.parameters) for v in s.invars])


def _require_reverse(jaxpr: Jaxpr, sources: Iterable[Var]) -> None:
    suspects = [eqn for eqn in jaxpr.eqns if eqn.primitive in (while_p, scan_p, cond_p)]
    if not suspects:
        return
    ahead = influence(jaxpr.eqns, dict.fromkeys(sources, 1))
    behind = dependence(jaxpr.eqns, dict.fromkeys((v for v in jaxpr.outvars if not isinstance(v, Literal)), 1))
    for eqn in suspects:
        if not join_bits(ahead, eqn.outvars) & join_bits(behind, eqn.outvars):
            continue
        if eqn.primitive is while_p:
            raise NotSupportedError(
                "A `while` loop mixes positions on the way of a gradient, which has no reverse derivative.",
                where=source_line(eqn),
                found="an unknown number of iterations between a hidden state or a weight and the step's results",
                expected="a loop that keeps positions, or one with a fixed number of iterations",
                fix="use lax.scan, or lax.fori_loop with constant bounds; or put the operand under stop_gradient",
            )
        moved = {i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and v in ahead}
        for body in bodies(eqn):
            program, values = make_jaxpr_without_consts(body)
            operands = program.invars[len(values) :]
            if eqn.primitive is scan_p:  # what an iteration moves is moved in the next one
                arity = scan_arity(eqn)
                moved |= {arity.num_consts + k for k, v in enumerate(eqn.outvars[: arity.num_carry]) if v in ahead}
            offset = len(eqn.invars) - len(operands)
            _require_reverse(program, [v for i, v in enumerate(operands) if i + offset in moved])


def require_even_cuts(
    minfo: ModuleInfo, groups: Sequence[HiddenGroup], operations: Sequence[MarkedOperation], cuts: Mapping[Var, int]
) -> None:
    """Refuse a loop in whose last iterations an operation no longer leads to a group that its input is cut for.

    Raises
    ------
    NotSupportedError
    """
    looped = [op for op in operations if op.loop is not None and cuts.get(op.y_var)]
    if not looped:
        return
    leads = dependence(minfo.jaxpr.eqns, seeds_of(g.hidden_outvars for g in groups))
    for op in looped:
        if op.loop is not None and join_bits(leads, op.loop.results) & ~join_bits(leads, op.loop.last) & cuts[op.y_var]:
            length = op.y_var.aval.shape[0]
            raise NotSupportedError(
                "In the last iterations of a loop, a marked operation no longer leads to the states that it reads.",
                where=op.source,
                found="iterations whose recurrence is cut between steps, and others where there is none",
                expected="the same in all iterations",
                fix=f"unroll the loop: control_flow=ControlFlowPolicy(unroll_limit={length})",
            )


def require_exact(certificates: Sequence[Certificate], records: Sequence[CompilationRecord]) -> None:
    """Refuse any weight whose strict gradient leaves something out.

    Raises
    ------
    CompilationError
        That names every such weight and what is left out.
    """
    missing = [
        f"{c.operation.spec.name}({c.operation.weight_path}) omits {', '.join(o.value for o in c.omissions)}"
        f" ({c.operation.source})"
        for c in certificates
        if not c.exact
    ]
    missing += [r.message for r in records if r.kind in _NEVER_STRICT]
    if missing:
        raise CompilationError(
            "strict=True asks for exact gradients, and this model has others.",
            found="\n".join(missing),
            expected="every weight certified EXACT",
            fix='compile without strict=True, or use an algorithm that keeps what is missing (vjp_method="multi-step")',
        )
