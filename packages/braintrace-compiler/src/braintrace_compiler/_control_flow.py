"""What is done with marked operations inside branches and loops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from braintrace_primitives import is_etp_primitive
from braintrace_primitives._jax_compat import cond_p, jit_p, scan_arity, scan_p, while_p

from ._descent import Descent, LoopedOperation, Refusal
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ._errors import CompilationError, NotSupportedError
from ._jaxpr import JaxprEqn, Opening, Var, bodies, eval_jaxpr, source_line


@dataclass(frozen=True)
class ControlFlowPolicy:
    """How the compiler opens control flow that holds marked operations. Other control flow is left as it is.

    Parameters
    ----------
    cond : {"select", "error"}
        ``"select"`` evaluates every branch of a ``cond`` or ``switch`` and selects; derivatives stay exact, and a
        branch that is not taken must not give NaN.
    unroll_limit : int
        Loops of at most so many iterations are unrolled.
    long_scan : {"descend", "close"}
        What is done with longer ones. ``"descend"``: a marked operation of the body becomes one operation on all
        iterations; gradients are those of the unrolled loop, and the program does not grow. ``"close"``: they stay
        closed.
    closed : {"error", "exclude"}
        What stays closed (``while``, and what the other choices leave) is an error; or it is left to ordinary
        differentiation, so that the strict gradient of the weights in it covers the current step only.

    Raises
    ------
    CompilationError
        If a value is not one of these.

    Notes
    -----
    All iterations of a loop share one trace, unrolled or not. Algorithms of the form sum L e (`EProp`, `pp_prop`,
    `OTTT`) take L from readers of the new states: what is read inside a loop that is not unrolled stands before those,
    and gives no signal. Factored carries keep two factors for each iteration.

    Examples
    --------
    >>> ControlFlowPolicy(unroll_limit=64)
    ControlFlowPolicy(cond='select', unroll_limit=64, long_scan='descend', closed='error')
    """

    cond: Literal["select", "error"] = "select"
    unroll_limit: int = 32
    long_scan: Literal["descend", "close"] = "descend"
    closed: Literal["error", "exclude"] = "error"

    def __post_init__(self) -> None:
        choices = {"cond": ("select", "error"), "long_scan": ("descend", "close"), "closed": ("error", "exclude")}
        for name, legal in choices.items():
            if getattr(self, name) not in legal:
                raise CompilationError(
                    f"ControlFlowPolicy has no such choice of `{name}`.",
                    found=repr(getattr(self, name)),
                    expected=f"one of {legal}",
                )
        if not isinstance(self.unroll_limit, int) or self.unroll_limit < 0:
            raise CompilationError(
                "The unroll limit of a ControlFlowPolicy is a number of iterations.",
                found=repr(self.unroll_limit),
                expected="an integer, 0 or more",
            )


class ControlFlow:
    """Opens branches and loops by a policy, and notes what it did.

    Parameters
    ----------
    policy : ControlFlowPolicy

    Attributes
    ----------
    records : list of CompilationRecord
    looped : dict
        Output of an operation that was taken out of a loop -> what is known of it.
    """

    def __init__(self, policy: ControlFlowPolicy):
        self.policy = policy
        self.records: list[CompilationRecord] = []
        self.looped: dict[Var, LoopedOperation] = {}
        self._marked: dict[int, tuple[Any, bool]] = {}

    def holds_marked(self, jaxpr: Any) -> bool:
        """Whether a marked operation stands in `jaxpr`, at any depth."""
        if id(jaxpr) not in self._marked:
            found = any(is_etp_primitive(e.primitive) or any(map(self.holds_marked, bodies(e))) for e in jaxpr.eqns)
            self._marked[id(jaxpr)] = jaxpr, found  # the jaxpr is kept alive, and so its id unique
        return self._marked[id(jaxpr)][1]

    def expand(self, eqn: JaxprEqn) -> Callable[[Opening, JaxprEqn, Sequence[Any]], Sequence[Any]] | None:
        """How to open an equation that holds marked operations; None to leave it closed."""
        if eqn.primitive is cond_p and self.policy.cond == "select" and not eqn.effects:
            self._note(
                DiagnosticKind.COND_IF_CONVERTED, eqn, f"all {len(eqn.params['branches'])} branches are evaluated"
            )
            return _select
        if eqn.primitive is scan_p and eqn.params["length"] <= self.policy.unroll_limit:
            self._note(DiagnosticKind.SCAN_UNROLLED, eqn, f"its {eqn.params['length']} iterations are unrolled")
            return _unroll
        if eqn.primitive is scan_p and self.policy.long_scan == "descend":
            return self._descend
        self._refuse(eqn)
        return None

    def around_while(self, eqn: JaxprEqn) -> Callable[[Opening, JaxprEqn, Sequence[Any]], Sequence[Any]] | None:
        """How to write a loop or branch around a ``while`` loop, so that the latter is opened; None for any other."""
        if not any(map(_holds_while, bodies(eqn))):
            return None
        return {scan_p: self._follow, cond_p: _branch}.get(eqn.primitive)

    def _follow(self, opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        try:
            return Descent(opening, eqn, operands, self.looped).run()[0]
        except Refusal:
            return opening.keep(eqn, operands)

    def _descend(self, opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        length = eqn.params["length"]
        try:
            results, once, stacked = Descent(opening, eqn, operands, self.looped).run()
        except Refusal as reason:
            self._refuse(eqn, str(reason))
            return opening.keep(eqn, operands)
        self._note(DiagnosticKind.SCAN_DESCENT_APPLIED, eqn, f"its {length} iterations are followed as a whole")
        inside = DiagnosticKind.PRIMITIVE_INSIDE_CONTROL_FLOW
        for operation in once:
            what = "is the same in every iteration of a loop, and is computed before it."
            self._record(inside, operation, f"`{operation.primitive.name}` {what}")
        for operation in stacked:
            what = f"becomes one operation on the {length} iterations of a loop ({source_line(eqn)})."
            self._record(inside, operation, f"`{operation.primitive.name}` {what}")
        return results

    def _note(self, kind: DiagnosticKind, eqn: JaxprEqn, what: str) -> None:
        self._record(kind, eqn, f"`{eqn.primitive.name}` holds a marked operation: {what}.")

    def _record(self, kind: DiagnosticKind, eqn: JaxprEqn, message: str) -> None:
        primitive = eqn.primitive if is_etp_primitive(eqn.primitive) else None
        self.records.append(
            CompilationRecord(kind, DiagnosticLevel.INFO, message, primitive, context={"source": source_line(eqn)})
        )

    def _refuse(self, eqn: JaxprEqn, reason: str = "") -> None:
        if self.policy.closed == "exclude":
            message = (
                f"a marked operation stands inside `{eqn.primitive.name}`, which stays closed{_because(reason)}, as "
                'ControlFlowPolicy(closed="exclude") has it. '
                "It is not traced; its strict gradient covers the current step only."
            )
            self.records.append(
                CompilationRecord(
                    DiagnosticKind.WEIGHT_IN_CONTROL_FLOW,
                    DiagnosticLevel.WARNING,
                    message,
                    context={"source": source_line(eqn)},
                )
            )
            return
        found = f"a marked operation in the body of `{eqn.primitive.name}`"
        fix = "compute the marked operation before the loop or branch"
        if eqn.primitive is scan_p:
            found += f", of {eqn.params['length']} iterations{_because(reason)}"
            fix += f", or pass control_flow=ControlFlowPolicy(unroll_limit={eqn.params['length']})"
            if self.policy.long_scan == "close":
                fix += ', or ControlFlowPolicy(long_scan="descend")'
        elif eqn.primitive is cond_p and not eqn.effects:
            fix += ', or pass control_flow=ControlFlowPolicy(cond="select")'
        fix += ', or leave its weight to same-step gradients: ControlFlowPolicy(closed="exclude")'
        raise NotSupportedError(
            f"A marked operation stands inside `{eqn.primitive.name}`, where the compiler cannot follow it.",
            where=source_line(eqn),
            found=found,
            expected=f"marked operations outside of control flow, or in what {self.policy} opens",
            fix=fix,
        )


def _because(reason: str) -> str:
    return f", because {reason}" if reason else ""


def _select(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """Both branches of a ``cond``, all of a ``switch``, and a choice for each result."""
    index, *operands = operands
    branches = [opening.call(body, operands) for body in eqn.params["branches"]]
    return [opening.apply(_choose, index, *cases)[0] for cases in zip(*branches, strict=True)]


def _branch(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """A ``cond`` or ``switch`` with its branches opened; only one is evaluated."""
    if eqn.effects:
        return opening.keep(eqn, operands)
    opened = [opening.open_body(body) for body in eqn.params["branches"]]
    counts = [len(constants) for _, constants in opened]

    def run(index: jax.Array, *values: Any) -> list[Any]:
        lead, shared = values[: sum(counts)], values[sum(counts) :]
        starts = [sum(counts[:k]) for k in range(len(counts))]
        cases = [
            lambda body=body, own=lead[start : start + count]: eval_jaxpr(body, *own, *shared)
            for (body, _), start, count in zip(opened, starts, counts, strict=True)
        ]
        return jax.lax.switch(index.astype(jnp.int32), cases)

    index, *shared = operands
    return opening.apply(run, index, *(v for _, constants in opened for v in constants), *shared, source=eqn)


def _holds_while(jaxpr: Any) -> bool:
    return any(
        e.primitive is while_p or (e.primitive in (scan_p, cond_p, jit_p) and any(map(_holds_while, bodies(e))))
        for e in jaxpr.eqns
    )


def _choose(index: jax.Array, *cases: jax.Array) -> jax.Array:
    if len(cases) == 1:
        return cases[0]
    which = index != 0 if len(cases) == 2 else jnp.clip(index, 0, len(cases) - 1)
    return jax.lax.select_n(which, *cases)


def _unroll(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The iterations of a ``scan`` one after the other."""
    arity, length = scan_arity(eqn), eqn.params["length"]
    consts = operands[: arity.num_consts]
    carry = list(operands[arity.num_consts : arity.num_consts + arity.num_carry])
    xs = operands[arity.num_consts + arity.num_carry :]
    ys: list[list[Any]] = [[None] * length for _ in range(arity.num_ys)]
    for t in reversed(range(length)) if eqn.params["reverse"] else range(length):
        slices = [opening.apply(lambda x, t=t: jax.lax.index_in_dim(x, t, keepdims=False), x)[0] for x in xs]
        results = opening.call(eqn.params["jaxpr"], [*consts, *carry, *slices])
        carry = results[: arity.num_carry]
        for rows, y in zip(ys, results[arity.num_carry :], strict=True):
            rows[t] = y
    return [*carry, *(_stack(opening, rows, v) for rows, v in zip(ys, eqn.outvars[arity.num_carry :], strict=True))]


def _stack(opening: Opening, rows: Sequence[Any], like: Any) -> Any:
    if not rows:
        return opening.apply(lambda: jnp.zeros(like.aval.shape, like.aval.dtype))[0]
    return opening.apply(lambda *rows: jnp.stack(rows), *rows)[0]
