"""One small graph library over jaxprs, shared by all stages of the compiler.

A *program* here is a `Jaxpr` without constants: constants were lifted to leading inputs, so that everything a program
needs is an input. Programs are never changed; every function returns new ones.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives._jax_compat import (
    DropVar,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    build_jaxpr,
    eval_jaxpr,
    fresh_var,
    jit_p,
    make_jaxpr_without_consts,
    source_line,
    sub_jaxprs,
)

__all__ = [
    "Expand",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Opening",
    "Var",
    "add_equation",
    "bodies",
    "build_jaxpr",
    "build_producer_map",
    "emit",
    "eval_jaxpr",
    "fresh_var",
    "inline",
    "inline_jit",
    "name_literal_outputs",
    "needed",
    "reads",
    "resolve",
    "slice_program",
    "source_line",
    "splice",
]


def reads(eqn: JaxprEqn) -> Iterator[Var]:
    """The variables that `eqn` reads; literals are skipped."""
    return (v for v in eqn.invars if not isinstance(v, Literal))


def build_producer_map(jaxpr: Jaxpr) -> dict[Var, JaxprEqn]:
    """Map every variable computed in `jaxpr` to the equation that computes it."""
    return {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars if not isinstance(v, DropVar)}


def needed(eqns: Sequence[JaxprEqn], targets: Iterable[Any], given: Container[Var] = ()) -> list[JaxprEqn]:
    """The equations that `targets` need, in order, when the variables in `given` are already known.

    An equation with side effects is kept in any case.
    """
    wanted = {v for v in targets if not isinstance(v, Literal) and v not in given}
    kept = []
    for eqn in reversed(eqns):
        if eqn.effects or any(v in wanted for v in eqn.outvars):
            kept.append(eqn)
            wanted.update(v for v in reads(eqn) if v not in given)
    return kept[::-1]


def slice_program(
    jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], inputs: Sequence[Var], outputs: Sequence[Any]
) -> tuple[Jaxpr, tuple[Var, ...]]:
    """Make a program of `eqns`, and name what it needs besides `inputs`.

    Returns
    -------
    Jaxpr
        Its inputs are `inputs`, then the variables it needs from outside.
    tuple of Var
        Those variables, in the order in which they are first read.
    """
    known = set(inputs)
    outside: dict[Var, None] = {}
    for eqn in eqns:
        outside.update((v, None) for v in reads(eqn) if v not in known)
        known.update(eqn.outvars)
    outside.update((v, None) for v in outputs if not isinstance(v, Literal) and v not in known)
    return build_jaxpr([*inputs, *outside], outputs, eqns, like=jaxpr), tuple(outside)


class Opening:
    """A program under construction, in which some equations are replaced by what they stand for."""

    def __init__(self, expand: "Expand"):
        self._expand = expand
        self._eqns: list[JaxprEqn] = []
        self._lifted: dict[Var, Any] = {}
        self._kept: list[Var] = []
        self._programs: dict[int, tuple[Any, Jaxpr, list[Var]]] = {}

    def run(self, body: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
        """Append the equations of `body`, opened; `env` maps their variables to atoms of the new program."""
        for eqn in body:
            invars = [resolve(env, v) for v in eqn.invars]
            opened = self._expand(eqn)
            if opened is not None:
                env.update(zip(eqn.outvars, opened(self, eqn, invars), strict=True))
                continue
            env.update(zip(eqn.outvars, self.keep(eqn, invars), strict=True))

    def keep(self, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        """Append an equation as it is."""
        outvars = [v if isinstance(v, DropVar) else fresh_var(v.aval) for v in eqn.outvars]
        self._eqns.append(eqn.replace(invars=list(operands), outvars=outvars))
        return outvars

    def keep_alive(self, var: Var) -> None:
        """Do not drop what computes `var`, whether an output needs it or not."""
        self._kept.append(var)

    def emit(self, body: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
        """Append equations as they are; `env` maps their variables to atoms of the new program."""
        emit(self._eqns, body, env)

    def open_body(self, body: Any) -> tuple[Jaxpr, list[Var]]:
        """The jaxpr `body`, opened, as a program of its own; and the variables that its first inputs take."""
        program, values = inline(*make_jaxpr_without_consts(body), self._expand)
        constants = [fresh_var(v.aval) for v in program.invars[: len(values)]]
        self._lifted.update(zip(constants, values, strict=True))
        return program, constants

    def call(self, body: Any, operands: Sequence[Any]) -> list[Any]:
        """Append the equations of the jaxpr `body`, opened; its constants are lifted once."""
        if id(body) not in self._programs:
            program, values = make_jaxpr_without_consts(body)
            constants = [fresh_var(v.aval) for v in program.invars[: len(values)]]
            self._lifted.update(zip(constants, values, strict=True))
            self._programs[id(body)] = body, program, constants
        _, program, constants = self._programs[id(body)]
        env = dict(zip(program.invars, [*constants, *operands], strict=True))
        self.run(program.eqns, env)
        return [resolve(env, v) for v in program.outvars]

    def apply(self, function: Callable[..., Any], *operands: Any, source: JaxprEqn | None = None) -> list[Any]:
        """Append the equations of a function in plain JAX, as if they came from the line of `source`."""
        eqns, results = splice(function, *operands)
        self._eqns += eqns if source is None else [eqn.replace(source_info=source.source_info) for eqn in eqns]
        return results

    def finish(self, like: Jaxpr, outvars: Sequence[Any], consts: Sequence[Any]) -> tuple[Jaxpr, list[Any]]:
        """The program and its constants, those of opened bodies first, without what its outputs do not need."""
        kept = needed(self._eqns, [*outvars, *self._kept])
        used = {v for eqn in kept for v in reads(eqn)} | {v for v in outvars if not isinstance(v, Literal)}
        lifted = {v: value for v, value in self._lifted.items() if v in used}
        return build_jaxpr([*lifted, *like.invars], outvars, kept, like=like), [*lifted.values(), *consts]


Expand = Callable[[JaxprEqn], Callable[[Opening, JaxprEqn, Sequence[Any]], Sequence[Any]] | None]


def inline(jaxpr: Jaxpr, consts: Sequence[Any], expand: Expand) -> tuple[Jaxpr, list[Any]]:
    """Replace equations by what they stand for, at any depth.

    Parameters
    ----------
    jaxpr : Jaxpr
        A program; its first inputs take `consts`.
    consts : sequence
    expand : callable
        Gives, for an equation to open, a function ``(opening, eqn, operands) -> results`` that appends the equations
        which take its place; None leaves it as it is.

    Returns
    -------
    Jaxpr, list
        The program and its constants; constants of opened bodies come first.
    """
    opening = Opening(expand)
    env: dict[Var, Any] = {}
    opening.run(jaxpr.eqns, env)
    return opening.finish(jaxpr, [resolve(env, v) for v in jaxpr.outvars], consts)


def inline_jit(jaxpr: Jaxpr, consts: Sequence[Any]) -> tuple[Jaxpr, list[Any]]:
    """`inline` of what is under ``jit``."""

    def open_body(opening: Opening, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
        return opening.call(eqn.params["jaxpr"], operands)

    return inline(jaxpr, consts, lambda eqn: open_body if eqn.primitive is jit_p else None)


def name_literal_outputs(jaxpr: Jaxpr, consts: Sequence[Any]) -> tuple[Jaxpr, list[Any]]:
    """Turn outputs that are literals into constants, so that every output is a variable."""
    outvars: list[Any] = list(jaxpr.outvars)
    named = {i: fresh_var(v.aval) for i, v in enumerate(outvars) if isinstance(v, Literal)}
    if not named:
        return jaxpr, list(consts)
    values = [jnp.asarray(outvars[i].val, outvars[i].aval.dtype) for i in named]
    outvars = [named.get(i, v) for i, v in enumerate(outvars)]
    return build_jaxpr([*named.values(), *jaxpr.invars], outvars, jaxpr.eqns, like=jaxpr), [*values, *consts]


def add_equation(a: Var, b: Var, out: Var) -> JaxprEqn:
    """The equation ``out = a + b``."""
    return _addition(a.aval, b.aval).replace(invars=[a, b], outvars=[out])


@lru_cache(maxsize=256)
def _addition(a: Any, b: Any) -> JaxprEqn:
    return jax.make_jaxpr(jax.lax.add)(a, b).eqns[0]


def splice(function: Callable[..., Any], *atoms: Any) -> tuple[list[JaxprEqn], list[Any]]:
    """The equations of ``function(*atoms)`` in plain JAX, and the atoms of its results.

    Raises
    ------
    ValueError
        If `function` closes over arrays.
    """
    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(function)(*(_like(a) for a in atoms)))
    if consts:
        raise ValueError("A spliced function must take its arrays as arguments.")
    env = dict(zip(program.invars, atoms, strict=True))
    eqns: list[JaxprEqn] = []
    emit(eqns, program.eqns, env)
    return eqns, [resolve(env, v) for v in program.outvars]


def _like(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype, weak_type=atom.aval.weak_type)


def resolve(env: Mapping[Var, Any], v: Any) -> Any:
    """What `env` says of an atom; a literal, or a variable it does not know, is itself."""
    return v if isinstance(v, Literal) else env.get(v, v)


def emit(eqns: list[JaxprEqn], body: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
    """Append copies of the equations of `body` under fresh names; `env` maps old names to new atoms."""
    for eqn in body:
        outvars = [v if isinstance(v, DropVar) else fresh_var(v.aval) for v in eqn.outvars]
        eqns.append(eqn.replace(invars=[resolve(env, v) for v in eqn.invars], outvars=outvars))
        env.update(zip(eqn.outvars, outvars, strict=True))


def bodies(eqn: JaxprEqn) -> Iterator[Any]:
    """Every jaxpr inside `eqn`."""
    return (body for _, body in sub_jaxprs(eqn))
