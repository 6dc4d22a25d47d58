"""Sums that a loop carries and that nobody reads before its end, such as the gradient of a parameter.

Each term waits for no other, so the loop can leave the terms, and they are summed at once. A term that is a product of
matrices is left as its factors: the sum of the products of K steps is one product, K times as long.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from braintrace_primitives._jax_compat import add_jaxvals_p

from ._flow import influence
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, build_jaxpr, build_producer_map, reads

_ADDITIONS = (jax.lax.add_p, add_jaxvals_p)


class RunningSum(NamedTuple):
    """One sum over the steps of a loop.

    Attributes
    ----------
    leaves : list of Var
        What a step gives to it.
    total : callable
        From the values of `leaves`, in lists with a leading axis of steps, to the sum.
    """

    leaves: list[Var]
    total: Callable[[Sequence[Any]], Any]


def without_sums(program: Jaxpr, num_consts: int, num_carry: int) -> tuple[Jaxpr, dict[int, RunningSum]]:
    """The body of a loop that leaves the terms of its running sums among its outputs.

    Parameters
    ----------
    program : Jaxpr
        Inputs: constants, state, step. Outputs: new state, outputs of the step.
    num_consts, num_carry : int

    Returns
    -------
    Jaxpr
        Without the sums among the states, and with their leaves behind its other outputs.
    dict
        Number of a state -> its sum. A sum is left where it is if its terms are twice as large as all else of a step.
    """
    state, step = program.invars[num_consts : num_consts + num_carry], program.invars[num_consts + num_carry :]
    new, out = program.outvars[:num_carry], program.outvars[num_carry:]
    changing = influence(program.eqns, dict.fromkeys([*state, *step], 1), derivative=False)
    readers: dict[Any, int] = {}
    for v in [
        *(v for eqn in program.eqns for v in reads(eqn)),
        *(v for v in program.outvars if not isinstance(v, Literal)),
    ]:
        readers[v] = readers.get(v, 0) + 1
    producers = build_producer_map(program)
    limit = 2 * bytes_of([*step, *out])
    sums: dict[int, RunningSum] = {}
    for i, (old, v) in enumerate(zip(state, new, strict=True)):
        term = None
        if not isinstance(v, Literal) and readers[v] == 1 and readers.get(old) == 1:
            term = _added(producers.get(v), old)
        if term is not None and term in changing:
            found = _sum_of(term, producers, changing)
            if bytes_of(found.leaves) <= limit:
                sums[i] = found
    states = [v for i, v in enumerate(state) if i not in sums]
    outvars = [*(v for i, v in enumerate(new) if i not in sums), *out, *(v for s in sums.values() for v in s.leaves)]
    invars = [*program.invars[:num_consts], *states, *step]
    kept = [eqn for eqn in program.eqns if not any(new[i] in eqn.outvars for i in sums)]
    return build_jaxpr(invars, outvars, kept, like=program), sums


def _added(eqn: JaxprEqn | None, old: Var) -> Var | None:
    """What `eqn` adds to `old`, of the same shape."""
    if eqn is None or eqn.primitive not in _ADDITIONS or old not in reads(eqn):
        return None
    (other,) = [v for v in eqn.invars if v is not old]
    return None if isinstance(other, Literal) or other.aval.shape != old.aval.shape else other


def _sum_of(v: Var, producers: Mapping[Var, JaxprEqn], changing: Mapping[Var, int]) -> RunningSum:
    """The sum of `v` over the steps."""
    eqn = producers.get(v)
    if eqn is not None and all(not isinstance(u, Literal) and u in changing for u in eqn.invars):
        if eqn.primitive is jax.lax.dot_general_p:
            return RunningSum(list(eqn.invars), lambda values: _sum_of_products(eqn, *values))
        if eqn.primitive is jax.lax.transpose_p:
            inner = _sum_of(eqn.invars[0], producers, changing)
            return RunningSum(inner.leaves, lambda values: inner.total(values).transpose(eqn.params["permutation"]))
    return RunningSum([v], lambda values: jnp.sum(values[0], 0, dtype=v.aval.dtype))


def _sum_of_products(eqn: JaxprEqn, a: Any, b: Any) -> Any:
    """The product `eqn` of two operands with a leading axis of steps, summed over the steps."""
    contracted, batch = eqn.params["dimension_numbers"]
    behind = [[i + 1 for i in axes] for axes in (*contracted, *batch)]
    numbers = ((0, *behind[0]), (0, *behind[1])), (tuple(behind[2]), tuple(behind[3]))
    return eqn.primitive.bind(a, b, **{**eqn.params, "dimension_numbers": numbers})


def bytes_of(variables: Iterable[Any]) -> int:
    """Bytes of the values of some variables; literals take none."""
    return sum(v.aval.size * v.aval.dtype.itemsize for v in variables if not isinstance(v, Literal))
