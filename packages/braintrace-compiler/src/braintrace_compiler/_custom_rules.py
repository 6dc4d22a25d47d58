"""Custom derivative rules around marked operations: opened where they give the derivative of what they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._jax_compat import custom_jvp_call_p, custom_vjp_call_p, make_jaxpr_without_consts

from ._errors import NotSupportedError
from ._jaxpr import JaxprEqn, build_jaxpr, eval_jaxpr, fresh_var, source_line
from ._positions_constants import at_compile_time

CUSTOM_RULES = (custom_jvp_call_p, custom_vjp_call_p)
_TOLERANCE = 1e-2  # rules may reorder sums, in half precision too; a surrogate is of another shape


def require_own_derivative(eqn: JaxprEqn) -> None:
    """Refuse a custom rule that gives another derivative than the function it belongs to has, at random arguments.

    A marked operation is visible only where its surroundings are opened, and opening drops the rule.

    Raises
    ------
    NotSupportedError
    """
    call = eqn.replace(invars=[fresh_var(v.aval) for v in eqn.invars], outvars=[fresh_var(v.aval) for v in eqn.outvars])
    closed = build_jaxpr(call.invars, call.outvars, [call], like=jax.make_jaxpr(lambda: ())())
    body, values = make_jaxpr_without_consts(eqn.params["call_jaxpr"])

    def pull(program: Any, lead: Any, operands: Any, cotangents: Any) -> Any:
        outputs, back = jax.vjp(lambda *real: _real(eval_jaxpr(program, *lead, *_filled(call, real))), *operands)
        return back([ct.astype(out.dtype) for ct, out in zip(cotangents, outputs, strict=True)])

    def both() -> Any:
        rng = np.random.default_rng(0)
        operands = [_draw(v.aval, rng) for v in call.invars if _is_real(v.aval)]
        cotangents = [_draw(v.aval, rng) for v in call.outvars if _is_real(v.aval)]
        return pull(closed, [], operands, cotangents), pull(body, values, operands, cotangents)

    for own, opened in zip(*at_compile_time(both), strict=True):
        scale = np.nan_to_num(np.abs(opened)).max(initial=1e-6)
        if not np.allclose(own, opened, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True):
            raise NotSupportedError(
                "A custom derivative rule replaces the derivative of a marked operation.",
                where=source_line(eqn),
                found=f"`{eqn.primitive.name}`, whose derivative is not that of the function inside",
                expected="marked operations outside of functions with a derivative of their own, such as surrogates",
                fix="put only the non-linearity under the rule: `spike(matmul(x, w))` with the rule on `spike`",
            )


def _is_real(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, np.inexact)


def _real(values: Any) -> list[Any]:
    return [v for v in values if _is_real(v)]


def _draw(aval: Any, rng: np.random.Generator) -> jax.Array:
    return jnp.asarray(rng.normal(size=aval.shape), aval.dtype)


def _filled(call: JaxprEqn, real: Any) -> list[Any]:
    """Operands of `call`; those without derivative are zeros."""
    given = iter(real)
    return [next(given) if _is_real(v.aval) else jnp.zeros(v.aval.shape, v.aval.dtype) for v in call.invars]
