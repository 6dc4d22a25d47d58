"""A loop over steps, inside which is done only what has to wait for the state of the step before.

The body of a loop makes four kinds of values. What constants give is made *once*. Products of what the sequence gives
wait for nothing: they are taken *ahead* of the loop, as one large product instead of many small ones. What the next
state needs is made *inside*. What no later step needs, such as losses and derivatives within a step, is made *behind*
the loop, for all steps at once, of what the loop leaves on the way; so are sums that nobody reads before the end. Large
operations have less to start than many small ones, and use all cores.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from braintrace_primitives._jax_compat import (
    custom_jvp_call_p,
    custom_vjp_call_p,
    jit_p,
    make_jaxpr_without_consts,
    remat_p,
)

from ._flow import influence, is_marked
from ._jaxpr import (
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    bodies,
    build_jaxpr,
    eval_jaxpr,
    inline_jit,
    needed,
    reads,
    slice_program,
)
from ._positions_relations import is_listed, primitives_of_lax
from ._repetitions import without_repetitions
from ._running_sums import bytes_of, without_sums

_STATE, _STEP, _FIXED = 1, 2, 4
_CALLS = (jit_p, custom_jvp_call_p, custom_vjp_call_p, remat_p)
_DECISIONS = primitives_of_lax("and or not xor eq ne lt le gt ge reduce_and reduce_or")
_BROADCASTS = primitives_of_lax("broadcast_in_dim")
_PRODUCTS = primitives_of_lax("dot_general conv_general_dilated")
_DEAR = _PRODUCTS | primitives_of_lax(
    """acos acosh asin asinh atan atan2 atanh cbrt cos cosh digamma erf erf_inv erfc exp exp2 expm1 lgamma log log1p
    logistic pow rsqrt sin sinh sqrt tan tanh zeta cumsum cumprod cummax cummin cumlogsumexp fft linear_solve sort
    top_k"""
)


def split_scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """``jax.lax.scan(body, carry, xs)`` with as little as possible inside the loop.

    Values and derivatives are those of the scan, up to the order of sums. Pure operations of `jax.lax` on arrays and
    marked operations leave the loop; random numbers, loops, branches and everything else stay inside, and a body with
    effects is left whole. What leaves is held for all steps at once, so the loop should be short enough for that.

    Parameters
    ----------
    body : callable
        ``body(carry, x) -> (carry, y)``.
    carry, xs : pytrees
        Leaves of `xs` have a leading axis, the steps.

    Returns
    -------
    carry, ys

    Examples
    --------
    One product for all steps goes before the loop, and none is left inside:

    >>> import jax, jax.numpy as jnp
    >>> w, xs = jnp.ones((2, 3)), jnp.ones((4, 2))
    >>> def leak(h, x):
    ...     h = 0.5 * h + x @ w
    ...     return h, h.sum()
    >>> split_scan(leak, jnp.zeros(3), xs)[1].tolist()
    [6.0, 9.0, 10.5, 11.25]
    >>> [eqn.primitive.name for eqn in jax.make_jaxpr(lambda xs: split_scan(leak, jnp.zeros(3), xs))(xs).eqns][-3:]
    ['dot_general', 'scan', 'reduce_sum']
    """
    own, carry_tree = jax.tree.flatten(carry)
    given, xs_tree = jax.tree.flatten(xs)
    trees: list[Any] = []

    def flat(*leaves: Any) -> list[Any]:
        new, y = body(carry_tree.unflatten(leaves[: len(own)]), xs_tree.unflatten(leaves[len(own) :]))
        trees[:] = jax.tree.structure(new), jax.tree.structure(y)
        return [*jax.tree.leaves(new), *jax.tree.leaves(y)]

    types = [jax.typeof(v) for v in own], [(t := jax.typeof(v)).update(shape=t.shape[1:]) for v in given]
    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(flat)(*types[0], *types[1]))
    program, opened = inline_jit(program, ())
    consts = [*opened, *consts]
    length = given[0].shape[0] if given else 1
    if length == 1 or not _agree(types[0], program.outvars):
        return jax.lax.scan(body, carry, xs)
    program, same = without_unchanged(program, len(consts), len(own))
    consts, moving = [*consts, *(own[i] for i in same)], [v for i, v in enumerate(own) if i not in same]
    program = without_repetitions(program, _may_leave)
    program, sums = without_sums(program, len(consts), len(moving))
    parts = split(program, len(consts), len(moving) - len(sums))
    if parts is None:
        return jax.lax.scan(body, carry, xs)
    starts = [v for i, v in enumerate(moving) if i not in sums]
    new, results = _run(parts, dict(zip(program.invars, consts, strict=False)), starts, given)
    states, ys = iter(new), results[: trees[1].num_leaves]
    terms = iter(results[len(ys) :])
    totals = {i: moving[i] + s.total([next(terms) for _ in s.leaves]) for i, s in sums.items()}
    ends = iter([totals[i] if i in totals else next(states) for i in range(len(moving))])
    return trees[0].unflatten([v if i in same else next(ends) for i, v in enumerate(own)]), trees[1].unflatten(ys)


def _agree(types: Sequence[Any], outvars: Sequence[Any]) -> bool:
    """Whether the state keeps its types; if not, JAX says so, or changes one where it may."""
    return all(t.shape == v.aval.shape and t.dtype == v.aval.dtype for t, v in zip(types, outvars, strict=False))


def without_unchanged(program: Jaxpr, num_consts: int, num_carry: int) -> tuple[Jaxpr, list[int]]:
    """The body of a loop with what no step changes among its constants, and the numbers of these states."""
    state, new = program.invars[num_consts : num_consts + num_carry], program.outvars[:num_carry]
    same = [i for i, v in enumerate(state) if new[i] is v]
    states = [*(state[i] for i in same), *(v for i, v in enumerate(state) if i not in same)]
    invars = [*program.invars[:num_consts], *states, *program.invars[num_consts + num_carry :]]
    outvars = [*(v for i, v in enumerate(new) if i not in same), *program.outvars[num_carry:]]
    return build_jaxpr(invars, outvars, program.eqns, like=program), same


class Part(NamedTuple):
    """Some equations of the body as a program of their own.

    Attributes
    ----------
    program : Jaxpr
        Takes values of the step, then `fixed`.
    fixed : tuple of Var
        What it needs of the loop's constants and of what they give.
    results : tuple of Var
    """

    program: Jaxpr
    fixed: tuple[Var, ...]
    results: tuple[Any, ...]


class Split(NamedTuple):
    """The body of a loop in four parts.

    Attributes
    ----------
    once : Part
        Nothing -> what constants give.
    ahead : Part
        Step -> what is taken for all steps at once.
    inside : Part
        State, step and what was taken ahead -> new state and what is left on the way.
    behind : Part
        Step, what was taken ahead and what was left on the way -> outputs.
    """

    once: Part
    ahead: Part
    inside: Part
    behind: Part


def split(program: Jaxpr, num_consts: int, num_carry: int) -> Split | None:
    """Divide the body of a loop; None where nothing can leave it.

    Parameters
    ----------
    program : Jaxpr
        Inputs: constants, state, step. Outputs: new state, outputs of the step.
    num_consts, num_carry : int
    """
    eqns, last = program.eqns, num_consts + num_carry
    if any(eqn.effects for eqn in eqns):
        return None
    fixed, state, step = program.invars[:num_consts], program.invars[num_consts:last], program.invars[last:]
    new, out = program.outvars[:num_carry], program.outvars[num_carry:]
    seeds = dict.fromkeys(fixed, _FIXED) | dict.fromkeys(state, _STATE) | dict.fromkeys(step, _STEP)
    bits = influence(eqns, seeds, derivative=False)
    waits = {v for v, on in bits.items() if on & ~_FIXED}
    first = _constant(eqns, fixed)
    given = _read_elsewhere(program, first)
    taken = _read_elsewhere(program, _early(eqns, waits, step))
    eqns = [eqn for k, eqn in enumerate(eqns) if k not in first]

    staying = [v for eqn in needed(eqns, out, taken) if not _may_leave(eqn) for v in eqn.outvars if v in waits]
    inside = needed(eqns, [*new, *staying], taken)
    made = [(v, eqn) for eqn in inside for v in eqn.outvars if v in waits]
    inherited = set(_variables(new))
    kept = [v for v, eqn in made if v in inherited or not _may_leave(eqn) or _holds(eqn, _is_dear)]
    behind = needed(eqns, out, {*taken, *kept, *state, *step})
    read = {v for eqn in behind for v in reads(eqn)}.union(_variables(out))
    left = [v for v in [*kept, *state] if v in read]
    if bytes_of(left) > 2 * bytes_of([*out, *taken, *step]):  # such as a long state of which little is read
        left = [v for v in _variables(out) if v in waits and v not in taken and v not in step]
        inside, behind = needed(eqns, [*new, *left], taken), needed(eqns, out, {*taken, *left, *step})
    if not behind and not taken:
        return None

    def part(eqns: Sequence[JaxprEqn], inputs: Sequence[Var], outputs: Sequence[Any]) -> Part:
        return Part(*slice_program(program, eqns, inputs, outputs), tuple(outputs))

    return Split(
        part([program.eqns[k] for k in sorted(first)], [], given),
        part(needed(eqns, taken), step, taken),
        part(inside, [*state, *step, *taken], [*new, *left]),
        part(behind, [*step, *taken, *left], out),
    )


def _read_elsewhere(program: Jaxpr, some: Container[int]) -> list[Var]:
    """What the equations of these numbers give to others, and to the outside."""
    read = {v for k, eqn in enumerate(program.eqns) if k not in some for v in reads(eqn)}.union(
        _variables(program.outvars)
    )
    return [v for k, eqn in enumerate(program.eqns) if k in some for v in eqn.outvars if v in read]


def _constant(eqns: Sequence[JaxprEqn], fixed: Iterable[Var]) -> set[int]:
    """Numbers of the equations that read constants alone, without broadcasts: XLA makes those where they are read."""
    known, found = set(fixed), set()
    for k, eqn in enumerate(eqns):
        read = set(reads(eqn))
        if read and known.issuperset(read) and eqn.primitive not in _BROADCASTS:
            known.update(eqn.outvars)
            found.add(k)
    return found


def _early(eqns: Sequence[JaxprEqn], waits: Container[Var], step: Iterable[Var]) -> set[int]:
    """Numbers of the equations that are products of the step, or come from such, and wait for no state."""
    free, early, made = set(step), set(), set()
    for k, eqn in enumerate(eqns):
        read = [v for v in reads(eqn) if v in waits]
        if not read or not free.issuperset(read) or not _may_leave(eqn):
            continue
        free.update(eqn.outvars)
        if _holds(eqn, _is_product) or not made.isdisjoint(read):
            early.add(k)
            made.update(eqn.outvars)
    return early


def _run(
    parts: Split, constants: Mapping[Var, Any], own: Sequence[Any], given: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    known = dict(constants)

    def call(part: Part, *values: Sequence[Any]) -> list[Any]:
        return eval_jaxpr(part.program, *(v for some in values for v in some), *(known[v] for v in part.fixed))

    def step(state: list[Any], inputs: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
        results = call(parts.inside, state, *inputs)
        return results[: len(own)], results[len(own) :]

    known.update(zip(parts.once.results, call(parts.once), strict=True))
    taken = jax.vmap(lambda *values: call(parts.ahead, values))(*given)
    new, left = jax.lax.scan(step, list(own), (list(given), taken))
    return new, jax.vmap(lambda *values: call(parts.behind, *values))(given, taken, left)


def _may_leave(eqn: JaxprEqn) -> bool:
    """Whether all that `eqn` does is known: it may be done ahead or behind, for all steps at once."""
    if eqn.primitive in _CALLS:
        return all(_may_leave(inner) for body in bodies(eqn) for inner in body.eqns)
    return is_marked(eqn) or is_listed(eqn) or eqn.primitive in _DECISIONS


def _holds(eqn: JaxprEqn, wanted: Callable[[JaxprEqn], bool]) -> bool:
    return wanted(eqn) or any(_holds(inner, wanted) for body in bodies(eqn) for inner in body.eqns)


def _is_product(eqn: JaxprEqn) -> bool:
    return is_marked(eqn) or eqn.primitive in _PRODUCTS


def _is_dear(eqn: JaxprEqn) -> bool:
    """Whether it takes longer to do `eqn` again than to read what it gave."""
    return is_marked(eqn) or eqn.primitive in _DEAR


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return list(dict.fromkeys(v for v in atoms if not isinstance(v, Literal)))
