"""Dense products whose cotangents go back by weights that are transposed beforehand.

The cotangent of the input of ``y = x @ w`` is ``g @ w.T``. Where a loop takes that at each step, two things are done in
vain: XLA's CPU backend lays out the transposed weight anew each time, which takes as long as the product, and where x
is an input joined to a state, the cotangent of the input is made too, which nobody asked for. Forwards, the part of
such a product that belongs to the input needs no state, so it can be taken apart.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives import etp_mm_p, etp_mv_p
from braintrace_primitives._jax_compat import concatenate_p
from braintrace_primitives._sharding import explicit_sharding, sum_over_replicas

from ._flow import influence
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Opening, Var, inline

_NARROW = 16
"""Columns of a weight, such as a readout's, up to which transposing it costs less than compiling that for itself."""


@functools.lru_cache(maxsize=32)
def with_way_back(program: Jaxpr, state: frozenset[Var] = frozenset()) -> Jaxpr:
    """A program as the body of a loop that is differentiated backwards, in which the weights stay as they are.

    Parameters
    ----------
    program : Jaxpr
        Without constants.
    state : frozenset of Var
        Inputs that change from step to step: of a joined input, what depends on them gets a product of its own.

    Returns
    -------
    Jaxpr
        With the same values and derivatives.

    Examples
    --------
    The part of a recurrent layer that belongs to its input no longer waits for the state:

    >>> from braintrace_primitives import matmul
    >>> from braintrace_primitives._jax_compat import make_jaxpr_without_consts
    >>> def step(x, h, w):
    ...     return jnp.tanh(matmul(jnp.concatenate([x, h], -1), w))
    >>> shapes = jnp.zeros((1, 2)), jnp.zeros((1, 3)), jnp.zeros((5, 3))
    >>> program, _ = make_jaxpr_without_consts(jax.make_jaxpr(step)(*shapes))
    >>> apart = with_way_back(program, frozenset([program.invars[1]]))
    >>> [eqn.invars[0].aval.shape for eqn in apart.eqns if eqn.primitive.name == "custom_vjp_call"]
    [(1, 2), (1, 3)]
    """
    joined: dict[Any, tuple[Sequence[Any], list[bool]]] = {}
    waiting = influence(program.eqns, dict.fromkeys(state, 1), derivative=False)

    def remember(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        results = opening.keep(eqn, operands)
        joined[results[0]] = operands, [not isinstance(v, Literal) and v in waiting for v in eqn.invars]
        return results

    def product(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        x, w, *bias = operands
        pieces, waits = joined.get(x, ([x], [True])) if isinstance(x, Var) else ([x], [True])
        return opening.apply(_product(eqn.primitive.evaluate, waits), *pieces, w, *bias, source=eqn)

    def expand(eqn: JaxprEqn) -> Callable[..., Sequence[Any]] | None:
        if eqn.primitive is concatenate_p and eqn.params["dimension"] == eqn.outvars[0].aval.ndim - 1:
            return remember
        if eqn.primitive in (etp_mm_p, etp_mv_p) and len({v.aval.dtype for v in (*eqn.invars, *eqn.outvars)}) == 1:
            return product
        return None

    return inline(program, (), expand)[0]


def _product(evaluate: Callable[..., Any], waits: Sequence[bool]) -> Callable[..., Any]:
    """``concatenate(pieces) @ w``, perhaps with a bias, as a function of the pieces, w and the bias.

    Pieces side by side that wait for a state, or do not, are multiplied together.
    """
    runs = [len(list(run)) for _, run in itertools.groupby(waits)]

    def whole(*operands: Any) -> Any:
        pieces, (w, *bias) = operands[: len(waits)], operands[len(waits) :]
        if len(runs) == 1:
            return _joined(evaluate, len(pieces))(*pieces, w, *bias)
        parts, first, start = [], 0, 0
        for count in runs:
            own = pieces[first : first + count]
            rows = jax.lax.slice_in_dim(w, start, start := start + sum(piece.shape[-1] for piece in own))
            rows = jax.lax.optimization_barrier(rows)  # XLA takes a slice out of a loop only behind a barrier
            # A bias joins the state's product: inside the loop something is added anyway.
            added, bias = (bias, ()) if waits[first] else ((), bias)
            parts.append(_joined(evaluate, count)(*own, rows, *added))
            first += count
        return functools.reduce(jnp.add, parts)

    return whole


def _joined(evaluate: Callable[..., Any], count: int) -> Callable[..., Any]:
    """``evaluate(concatenate(pieces), w, ...)`` as a function of `count` pieces, w and perhaps a bias."""

    def plain(*operands: Any) -> Any:
        pieces, others = operands[:count], operands[count:]
        return evaluate(pieces[0] if count == 1 else jnp.concatenate(pieces, -1), *others, has_bias=len(others) == 2)

    def backward(operands: Any, g: Any) -> Any:
        pieces, w = operands[:count], operands[count]
        own, start = [], 0
        for piece in pieces:
            rows = jax.lax.slice_in_dim(w, start, start := start + piece.shape[-1])
            # The barrier keeps XLA from taking the transposition back into the product, so it leaves the loop.
            back = rows.T if rows.shape[1] <= _NARROW else jax.lax.optimization_barrier(rows.T)
            own.append(sum_over_replicas(g @ back, piece))
        _, pull = jax.vjp(lambda *rest: plain(*pieces, *rest), *operands[count:])
        return (*own, *pull(g))

    function = jax.custom_vjp(plain)
    function.defvjp(lambda *operands: (plain(*operands), operands), backward)
    return lambda *operands: (plain if explicit_sharding(operands[count]) else function)(*operands)
