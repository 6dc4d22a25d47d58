"""Which results of a loop or branch depend on which of its operands."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from braintrace_primitives._jax_compat import (
    JaxprEqn,
    Literal,
    Var,
    cond_p,
    make_jaxpr_without_consts,
    scan_arity,
    scan_p,
    while_p,
)

Follow = Callable[[Sequence[JaxprEqn], Mapping[Var, int]], Mapping[Var, int]]
"""Bits that flow forwards through equations: `_flow.influence`."""


def links(eqn: JaxprEqn, follow: Follow, derivative: bool) -> tuple[int, ...] | None:
    """For each result of `eqn` the operands that it depends on, as bits; None where it is no loop or branch.

    Parameters
    ----------
    eqn : JaxprEqn
    follow : callable
        How bits flow through a body; the same function for the same `derivative`.
    derivative : bool
        Count derivatives only. Otherwise a result depends on what decides about branches and further iterations, too.
    """
    params = eqn.params
    if eqn.primitive is scan_p:
        arity = scan_arity(eqn)
        return _of_scan(params["jaxpr"], arity.num_consts, arity.num_carry, follow)
    if eqn.primitive is while_p:
        numbers = params["cond_nconsts"], params["body_nconsts"]
        return _of_while(params["cond_jaxpr"], params["body_jaxpr"], *numbers, follow, derivative)
    if eqn.primitive is cond_p:
        return _of_cond(tuple(params["branches"]), follow, derivative)
    return None


@lru_cache(maxsize=1024)
def _of_scan(body: Any, num_consts: int, num_carry: int, follow: Follow) -> tuple[int, ...]:
    return tuple(_settled(body, num_consts, num_carry, 0, follow))


@lru_cache(maxsize=256)
def _of_while(
    cond: Any, body: Any, cond_consts: int, body_consts: int, follow: Follow, derivative: bool
) -> tuple[int, ...]:
    num_carry = len(body.out_avals)
    found = _settled(body, body_consts, num_carry, cond_consts, follow)
    if derivative:
        return tuple(found)
    first = cond_consts + body_consts
    carry = [bits | 1 << first + k for k, bits in enumerate(found)]
    (deciding,) = _through(cond, [*(1 << i for i in range(cond_consts)), *carry], follow)
    return tuple(bits | deciding for bits in found)


@lru_cache(maxsize=256)
def _of_cond(branches: tuple[Any, ...], follow: Follow, derivative: bool) -> tuple[int, ...]:
    operands = [1 << i + 1 for i in range(len(branches[0].in_avals))]
    found = [0 if derivative else 1] * len(branches[0].out_avals)
    for branch in branches:
        found = [a | b for a, b in zip(found, _through(branch, operands, follow), strict=True)]
    return tuple(found)


def _settled(body: Any, num_consts: int, num_carry: int, skipped: int, follow: Follow) -> list[int]:
    """Bits of the results of a loop after any number of iterations; operands are numbered from `skipped` on."""
    operands = [1 << skipped + i for i in range(len(body.in_avals))]
    while True:
        found = _through(body, operands, follow)
        grown = list(operands)
        for k in range(num_carry):
            grown[num_consts + k] |= found[k]
        if grown == operands:
            return [*operands[num_consts : num_consts + num_carry], *found[num_carry:]]
        operands = grown


def _through(body: Any, operands: Sequence[int], follow: Follow) -> list[int]:
    program, values = make_jaxpr_without_consts(body)
    found = follow(program.eqns, dict(zip(program.invars[len(values) :], operands, strict=True)))
    return [0 if isinstance(v, Literal) else found.get(v, 0) for v in program.outvars]
