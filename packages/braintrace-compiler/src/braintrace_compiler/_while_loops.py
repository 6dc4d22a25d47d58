"""Reverse derivatives of ``while`` loops that keep positions.

JAX differentiates a loop with an unknown number of iterations in forward mode only. Where every result depends on at
most one element of each operand, one forward pass along ones gives all of the Jacobian, and its transpose is a product
and a move of elements.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._jax_compat import while_p

from ._flow import differentiable
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Opening, build_jaxpr, eval_jaxpr, fresh_var
from ._positions import MANY, propagate_sources


def reversible(eqn: JaxprEqn) -> Callable[[Opening, JaxprEqn, Sequence[Any]], Sequence[Any]] | None:
    """How to write a ``while`` equation so that it has a reverse derivative; None where positions mix."""
    if eqn.primitive is not while_p or eqn.effects:
        return None
    moving = [i for i, v in enumerate(eqn.invars) if not isinstance(v, Literal) and differentiable(v)]
    if not moving or not any(map(differentiable, eqn.outvars)):
        return None
    program = _alone(eqn)
    sources = {i: _sources(program, i) for i in moving}
    if any(np.any(index == MANY) for found in sources.values() for index in found):
        return None
    loop = _with_reverse_derivative(program, sources)
    return lambda opening, eqn, operands: opening.apply(loop, *operands)


def _alone(eqn: JaxprEqn) -> Jaxpr:
    """The equation as a program of its own, every operand an input."""
    invars, outvars = ([fresh_var(v.aval) for v in vs] for vs in (eqn.invars, eqn.outvars))
    return build_jaxpr(
        invars, outvars, [eqn.replace(invars=invars, outvars=outvars)], like=jax.make_jaxpr(lambda: ())()
    )


def _sources(program: Jaxpr, i: int) -> list[np.ndarray]:
    labels: list[np.ndarray | None] = [None] * len(program.invars)
    operand: Any = program.invars[i]
    labels[i] = np.arange(operand.aval.size).reshape(operand.aval.shape)
    return propagate_sources(program, labels)


def _with_reverse_derivative(program: Jaxpr, sources: dict[int, list[np.ndarray]]) -> Callable[..., list[Any]]:
    real = [j for j, v in enumerate(program.outvars) if differentiable(v)]

    @jax.custom_vjp
    def loop(*operands: Any) -> list[Any]:
        return eval_jaxpr(program, *operands)

    def forward(*operands: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return loop(*operands), operands

    def backward(operands: tuple[Any, ...], cotangents: list[Any]) -> tuple[Any, ...]:
        return tuple(
            _pull(program, operands, i, sources[i], real, cotangents) if i in sources else None
            for i in range(len(operands))
        )

    loop.defvjp(forward, backward)
    return loop


def _pull(
    program: Jaxpr,
    operands: Sequence[Any],
    i: int,
    sources: Sequence[np.ndarray],
    real: Sequence[int],
    cotangents: Sequence[Any],
) -> Any:
    """Cotangent of operand `i`."""

    def results(operand: Any) -> list[Any]:
        values = eval_jaxpr(program, *operands[:i], operand, *operands[i + 1 :])
        return [values[j] for j in real]

    _, slopes = jax.jvp(results, (operands[i],), (jnp.ones_like(operands[i]),))
    total = jnp.zeros(operands[i].size, operands[i].dtype)
    for j, slope in zip(real, slopes, strict=True):
        # What no element of the operand feeds is sent beyond the end, where additions are dropped.
        index = np.where(sources[j] < 0, operands[i].size, sources[j]).reshape(-1)
        total = total.at[index].add((slope * cotangents[j]).reshape(-1).astype(total.dtype), mode="drop")
    return total.reshape(operands[i].shape)
