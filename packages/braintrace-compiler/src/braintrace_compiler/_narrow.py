"""A program cut in two where least passes from one part to the other.

What a step leaves for later is not always what is asked of it. Of three states that a spike couples, four derivatives
are asked, and each is a number plus a multiple of the same surrogate derivative: that one array is enough. It is found
as a minimum cut: variables are edges as wide as their values are large, and the second part may hold nothing but
arithmetic that is done again in less time than it takes to read a value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from braintrace_primitives._jax_compat import add_jaxvals_p

from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, inline_jit, needed, reads, slice_program
from ._positions_relations import is_listed, primitives_of_lax
from ._repetitions import without_repetitions
from ._running_sums import bytes_of

_CHEAP = primitives_of_lax(
    """abs add and broadcast_in_dim clamp convert_element_type copy eq ge gt le lt max min mul ne neg not or select_n
    sign square sub xor"""
) | {add_jaxvals_p}


class NarrowCut(NamedTuple):
    """A program in two parts.

    Attributes
    ----------
    first : Jaxpr
        Constants and inputs -> what passes.
    second : Jaxpr
        Constants and what passes -> outputs.
    consts : list
    """

    first: Jaxpr
    second: Jaxpr
    consts: list[Any]


def narrow_cut(program: Jaxpr, consts: Sequence[Any] = ()) -> NarrowCut:
    """Cut `program` where the fewest bytes pass; as late as that is possible.

    Parameters
    ----------
    program : Jaxpr
        Its first inputs take `consts`.
    consts : sequence

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from braintrace_primitives._jax_compat import make_jaxpr_without_consts
    >>> def derivatives(v):
    ...     surrogate = jnp.exp(-jnp.abs(v))
    ...     return 0.9 - surrogate, 0.1 * surrogate
    >>> program, _ = make_jaxpr_without_consts(jax.make_jaxpr(derivatives)(jnp.ones(3)))
    >>> cut = narrow_cut(program)
    >>> [[eqn.primitive.name for eqn in part.eqns] for part in (cut.first, cut.second)]
    [['abs', 'neg', 'exp'], ['sub', 'mul']]
    """
    program, consts = inline_jit(program, consts)
    program = without_repetitions(program, _is_pure)
    fixed, inputs = program.invars[: len(consts)], program.invars[len(consts) :]
    passing = _narrowest(program, inputs)
    first, outside = slice_program(program, needed(program.eqns, passing), program.invars, passing)
    assert not outside
    eqns = needed(program.eqns, program.outvars, {*passing, *fixed})
    second, outside = slice_program(program, eqns, [*fixed, *passing], program.outvars)
    assert not outside
    return NarrowCut(first, second, consts)


def _is_pure(eqn: JaxprEqn) -> bool:
    return is_listed(eqn) or eqn.primitive in _CHEAP


def _narrowest(program: Jaxpr, inputs: Sequence[Var]) -> list[Var]:
    """The variables of the minimum cut between `inputs`, or dear operations, and outputs; the one nearest to these."""
    number: dict[Var, int] = {}
    edges: dict[tuple[int, int], int | None] = {}
    source, sink = 0, 1

    def entry(v: Var) -> int:
        return 2 + 2 * number.setdefault(v, len(number))

    for v in inputs:
        edges[source, entry(v)] = None
    for eqn in program.eqns:
        read = [v for v in reads(eqn) if v in number]
        for v in eqn.outvars if read else ():
            if eqn.primitive in _CHEAP:
                edges |= {(entry(r) + 1, entry(v)): None for r in read}
            else:
                edges[source, entry(v)] = None
    for v in program.outvars:
        if not isinstance(v, Literal) and v in number:
            edges[entry(v) + 1, sink] = None
    edges |= {(entry(v), entry(v) + 1): max(bytes_of([v]), 1) for v in list(number)}

    unit = int(np.gcd.reduce([c for c in edges.values() if c is not None] or [1]))
    unlimited = 1 + sum(c // unit for c in edges.values() if c is not None)
    if unlimited > np.iinfo(np.int32).max // 2:
        return list(dict.fromkeys(v for v in program.outvars if not isinstance(v, Literal) and v in number))
    capacities = np.array([unlimited if c is None else c // unit for c in edges.values()], np.int32)
    starts, ends = np.array(list(edges)).reshape(-1, 2).T
    nodes = 2 + 2 * len(number)
    graph = csr_array((capacities, (starts, ends)), (nodes, nodes))
    left = graph - maximum_flow(graph, source, sink).flow
    left.eliminate_zeros()
    behind = set(breadth_first_order(csr_array(left.T), sink, return_predecessors=False).tolist())
    return [v for v in number if entry(v) not in behind and entry(v) + 1 in behind]
