"""What influences what: bit sets that flow through a program along its derivative paths.

This is the one walker of the compiler. A set of sources or targets is an integer, one bit for each, so that a single
pass answers for all operations, or all groups, at once and the cost of compiling stays linear in the equations.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from braintrace_primitives import is_etp_primitive
from braintrace_primitives._jax_compat import JaxprEqn, Literal, Var, stop_gradient_p

from ._jaxpr import reads
from ._links import links

_NOTHING: Mapping[Var, int] = MappingProxyType({})


def is_marked(eqn: JaxprEqn) -> bool:
    """Whether `eqn` is an ETP operation."""
    return is_etp_primitive(eqn.primitive)


def is_open(eqn: JaxprEqn) -> bool:
    """No equation is a barrier."""
    return False


def differentiable(var: Any) -> bool:
    """Whether derivatives flow through `var`: integers and booleans carry none."""
    return _is_inexact(var.aval.dtype)


@lru_cache(maxsize=256)
def _is_inexact(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, np.inexact)


def influence(
    eqns: Iterable[JaxprEqn],
    seeds: Mapping[Var, int],
    *,
    barrier: Callable[[JaxprEqn], bool] = is_open,
    closed: Mapping[Var, int] = _NOTHING,
    derivative: bool = True,
) -> dict[Var, int]:
    """Which sources influence each variable: bit sets that flow forwards.

    One pass serves any number of sources, each a bit of its own, so that no stage walks a program once for each
    operation or state.

    Parameters
    ----------
    eqns : iterable of JaxprEqn
        In evaluation order.
    seeds : mapping
        Variable -> bits of the sources that it is.
    barrier : callable
        Equations that nothing passes.
    closed : mapping
        Variable -> bits that do not enter it, and so do not pass it either.
    derivative : bool
        Follow derivatives only (integers, booleans and ``stop_gradient`` end a path), or any dependence.
    """
    found = dict(seeds)
    for eqn in eqns:
        bits = 0
        for v in reads(eqn):
            bits |= found.get(v, 0)
        if not bits or barrier(eqn) or (derivative and eqn.primitive is stop_gradient_p):
            continue
        linked = links(eqn, _follow_derivatives if derivative else _follow, derivative)
        for k, v in enumerate(eqn.outvars):
            if linked is not None:
                bits = join_bits(found, (eqn.invars[i] for i in numbers(linked[k])))
            entering = bits & ~closed.get(v, 0)
            if entering and not (derivative and not differentiable(v)):
                found[v] = found.get(v, 0) | entering
    return found


def dependence(
    eqns: Sequence[JaxprEqn],
    seeds: Mapping[Var, int],
    *,
    barrier: Callable[[JaxprEqn], bool] = is_open,
    closed: Mapping[Var, int] = _NOTHING,
) -> dict[Var, int]:
    """Which targets each variable has a derivative path to: bit sets that flow backwards; see `influence`.

    A bit may enter a variable that is closed to it, but does not pass.
    """
    found = dict(seeds)
    for eqn in reversed(eqns):
        arriving = [found[v] & ~closed.get(v, 0) if v in found and differentiable(v) else 0 for v in eqn.outvars]
        if not any(arriving) or barrier(eqn) or eqn.primitive is stop_gradient_p:
            continue
        linked = links(eqn, _follow_derivatives, True)
        bits = functools.reduce(operator.or_, arriving)
        for i, v in enumerate(eqn.invars):
            if isinstance(v, Literal) or not differentiable(v):
                continue
            if linked is not None:
                bits = functools.reduce(
                    operator.or_, (a for a, l in zip(arriving, linked, strict=True) if l >> i & 1), 0
                )
            if bits:
                found[v] = found.get(v, 0) | bits
    return found


def _follow(eqns: Iterable[JaxprEqn], seeds: Mapping[Var, int]) -> dict[Var, int]:
    return influence(eqns, seeds, derivative=False)


def _follow_derivatives(eqns: Iterable[JaxprEqn], seeds: Mapping[Var, int]) -> dict[Var, int]:
    return influence(eqns, {v: bits for v, bits in seeds.items() if differentiable(v)})


def between(
    eqns: Sequence[JaxprEqn],
    ahead: Mapping[Var, int],
    behind: Mapping[Var, int],
    sources: Mapping[Var, int] = _NOTHING,
) -> dict[int, list[JaxprEqn]]:
    """The equations on some path, in order, for each bit that both `influence` and `dependence` found.

    What computes the `sources` themselves is not on a path.
    """
    on_path: dict[int, list[JaxprEqn]] = {}
    for eqn in eqns:
        bits = 0
        for v in eqn.outvars:
            bits |= ahead.get(v, 0) & behind.get(v, 0) & ~sources.get(v, 0)
        for bit in numbers(bits):
            on_path.setdefault(bit, []).append(eqn)
    return on_path


def numbers(bits: int) -> Iterator[int]:
    """The numbers of the bits that are set, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def seeds_of(variables: Iterable[Iterable[Any]]) -> dict[Var, int]:
    """Bit k for every variable of the k-th collection."""
    seeds: dict[Var, int] = {}
    for k, collection in enumerate(variables):
        for v in collection:
            seeds[v] = seeds.get(v, 0) | 1 << k
    return seeds


def join_bits(found: Mapping[Var, int], variables: Iterable[Any]) -> int:
    """The union of the bits of some variables."""
    bits = 0
    for v in variables:
        if not isinstance(v, Literal):
            bits |= found.get(v, 0)
    return bits
