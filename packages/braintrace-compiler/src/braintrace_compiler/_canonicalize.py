"""Canonical programs: no call boundary hides an ETP operation."""

from collections.abc import Sequence
from typing import Any

from braintrace_primitives._jax_compat import custom_jvp_call_p, custom_vjp_call_p, jit_p, remat_p

from ._control_flow import ControlFlow, ControlFlowPolicy
from ._custom_rules import CUSTOM_RULES, require_own_derivative
from ._descent import LoopedOperation
from ._diagnostics import CompilationRecord
from ._errors import CompilationError
from ._jaxpr import Jaxpr, JaxprEqn, Opening, Var, bodies, inline, name_literal_outputs
from ._while_loops import reversible

_CALLS = {remat_p: "jaxpr", custom_jvp_call_p: "call_jaxpr", custom_vjp_call_p: "call_jaxpr"}


def canonicalize(
    jaxpr: Jaxpr, consts: Sequence[Any], policy: ControlFlowPolicy | None = None
) -> tuple[Jaxpr, list[Any], tuple[CompilationRecord, ...], dict[Var, LoopedOperation]]:
    """Open every ``jit``, and everything else that holds an ETP operation; control flow by `policy`.

    A ``while`` loop that keeps positions gets a reverse derivative.

    Returns
    -------
    Jaxpr, list
        The program, whose every output is a variable, and its constants.
    tuple of CompilationRecord
        What was done with control flow.
    dict
        Output of an operation that was taken out of a loop -> what is known of it.

    Raises
    ------
    NotSupportedError
        If an ETP operation stands inside control flow that the policy does not open, or under a derivative rule that
        is not its own.
    """
    if policy is not None and not isinstance(policy, ControlFlowPolicy):
        raise CompilationError(
            "This is no policy for control flow.",
            where="control_flow",
            found=repr(policy),
            expected="a ControlFlowPolicy",
            fix="for example control_flow=ControlFlowPolicy(unroll_limit=64)",
        )
    control_flow = ControlFlow(policy or ControlFlowPolicy())

    def expand(eqn: JaxprEqn) -> Any:
        if eqn.primitive is jit_p:
            return _open_call
        if not any(map(control_flow.holds_marked, bodies(eqn))):
            return reversible(eqn) or control_flow.around_while(eqn)
        return _open_call if eqn.primitive in _CALLS else control_flow.expand(eqn)

    program, values = name_literal_outputs(*inline(jaxpr, consts, expand))
    return program, values, tuple(control_flow.records), control_flow.looped


def _open_call(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    if eqn.primitive in CUSTOM_RULES:
        require_own_derivative(eqn)
    return opening.call(eqn.params[_CALLS.get(eqn.primitive, "jaxpr")], operands)
