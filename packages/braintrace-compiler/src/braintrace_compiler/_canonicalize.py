"""Canonical programs: no call boundary hides an ETP operation."""

from collections.abc import Sequence
from typing import Any

from braintrace_primitives import is_etp_primitive
from braintrace_primitives._jax_compat import custom_jvp_call_p, custom_vjp_call_p, remat_p

from ._errors import NotSupportedError
from ._jaxpr import Jaxpr, JaxprEqn, bodies, inline, jit_body, name_literal_outputs, source_line

_OPENED_FOR_ETP = {remat_p: "jaxpr", custom_jvp_call_p: "call_jaxpr", custom_vjp_call_p: "call_jaxpr"}


def holds_etp(jaxpr: Any) -> bool:
    """Whether an ETP operation stands in `jaxpr`, at any depth."""
    return any(is_etp_primitive(eqn.primitive) or any(holds_etp(body) for body in bodies(eqn)) for eqn in jaxpr.eqns)


def _transparent(eqn: JaxprEqn) -> str | None:
    name = _OPENED_FOR_ETP.get(eqn.primitive)
    if name is not None:
        return name if holds_etp(eqn.params[name]) else None
    return jit_body(eqn)


def canonicalize(jaxpr: Jaxpr, consts: Sequence[Any]) -> tuple[Jaxpr, list[Any]]:
    """Open every ``jit``, and every other call that holds an ETP operation.

    Raises
    ------
    NotSupportedError
        If an ETP operation stands inside control flow.
    """
    program, values = name_literal_outputs(*inline(jaxpr, consts, _transparent))
    for eqn in program.eqns:
        if any(holds_etp(body) for body in bodies(eqn)):
            raise NotSupportedError(
                f"A marked operation stands inside `{eqn.primitive.name}`, where the compiler cannot follow it.",
                where=source_line(eqn),
                found=f"an ETP operation in the body of `{eqn.primitive.name}`",
                expected="marked operations outside of control flow",
                fix="compute the marked operation before the loop or branch, or unroll the loop in Python",
            )
    return program, values
