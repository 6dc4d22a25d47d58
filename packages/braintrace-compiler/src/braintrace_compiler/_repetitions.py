"""Values that a program makes twice, made once.

The derivatives D and F of a step are made by a program of their own, which repeats what the step itself computes behind
`stop_gradient`. Within one XLA program that costs nothing, as XLA sees it. A loop that is taken apart hides it: one
copy is left inside, the other comes behind, and what the second one needs must be kept for it.
"""

from collections.abc import Callable, Container, Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from braintrace_primitives._jax_compat import DropVar, add_jaxvals_p, stop_gradient_p

from ._flow import differentiable
from ._jaxpr import Jaxpr, JaxprEqn, Literal, Var, build_jaxpr, fresh_var, needed


class _Value(NamedTuple):
    """A variable or literal of the new program, and whether derivatives stop at it."""

    atom: Any
    stopped: bool


def without_repetitions(program: Jaxpr, pure: Callable[[JaxprEqn], bool]) -> Jaxpr:
    """`program` without what repeats earlier equations, and without zeros added.

    Derivatives stay as they are: of two equations that differ by a `stop_gradient` before them, the second is the first
    behind a `stop_gradient`.

    Parameters
    ----------
    program : Jaxpr
        Without constants.
    pure : callable
        Whether an equation gives the same for the same operands, and does nothing else.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from braintrace_primitives._jax_compat import make_jaxpr_without_consts
    >>> def twice(x):
    ...     return jnp.tanh(x) + jnp.tanh(jax.lax.stop_gradient(x + jnp.zeros(2)))
    >>> program, _ = make_jaxpr_without_consts(jax.make_jaxpr(twice)(jnp.ones(2)))
    >>> [eqn.primitive.name for eqn in without_repetitions(program, lambda eqn: True).eqns]
    ['tanh', 'stop_gradient', 'add']
    """
    known: dict[Var, _Value] = {}
    zeros: set[Var] = set()
    made: dict[Hashable, dict[tuple[bool, ...], Sequence[Any]]] = {}
    behind: dict[Var, Var] = {}
    eqns: list[JaxprEqn] = []

    def value(atom: Any) -> _Value:
        return _Value(atom, False) if isinstance(atom, Literal) else known.get(atom, _Value(atom, False))

    def atom_of(value: _Value) -> Any:
        if not value.stopped:
            return value.atom
        if value.atom not in behind:
            behind[value.atom] = fresh_var(value.atom.aval)
            stop = _stop_gradient(value.atom.aval)
            eqns.append(stop.replace(invars=[value.atom], outvars=[behind[value.atom]]))
        return behind[value.atom]

    for eqn in program.eqns:
        operands = [value(v) for v in eqn.invars]
        if eqn.primitive is stop_gradient_p:
            known[eqn.outvars[0]] = operands[0]._replace(stopped=_can_stop(operands[0].atom))
            continue
        if (same := _other_than_zero(eqn, operands, zeros)) is not None:
            known[eqn.outvars[0]] = same
            continue
        if _is_zero(eqn, zeros):
            zeros.update(eqn.outvars)
        if pure(eqn) and (key := _key(eqn, operands)) is not None:
            stops = tuple(v.stopped for v in operands)
            variants = made.setdefault(key, {})
            if stops in variants:
                known.update((v, _Value(old, False)) for v, old in zip(eqn.outvars, variants[stops], strict=True))
                continue
            if variants and all(v.stopped or not _can_stop(v.atom) for v in operands):
                old = next(iter(variants.values()))
                known.update((v, _Value(o, _can_stop(o))) for v, o in zip(eqn.outvars, old, strict=True))
                continue
            variants[stops] = eqn.outvars
        eqns.append(eqn.replace(invars=[atom_of(v) for v in operands]))
    outvars = [atom_of(value(v)) for v in program.outvars]
    return build_jaxpr(program.invars, outvars, needed(eqns, outvars), like=program)


@lru_cache(maxsize=256)
def _stop_gradient(aval: Any) -> JaxprEqn:
    return jax.make_jaxpr(jax.lax.stop_gradient)(aval).eqns[0]


def _can_stop(atom: Any) -> bool:
    return not isinstance(atom, Literal) and differentiable(atom)


def _other_than_zero(eqn: JaxprEqn, operands: Sequence[_Value], zeros: Container[Var]) -> _Value | None:
    """The other operand, of a sum with zeros."""
    if eqn.primitive not in (jax.lax.add_p, add_jaxvals_p):
        return None
    for zero, other in (operands, operands[::-1]):
        if not isinstance(zero.atom, Literal) and zero.atom in zeros and other.atom.aval == eqn.outvars[0].aval:
            return other
    return None


def _is_zero(eqn: JaxprEqn, zeros: Container[Var]) -> bool:
    """Whether `eqn` repeats a zero."""
    if eqn.primitive is not jax.lax.broadcast_in_dim_p:
        return False
    of = eqn.invars[0]
    return (np.ndim(of.val) == 0 and of.val == 0) if isinstance(of, Literal) else of in zeros


def _bits(literal: Literal) -> Hashable:
    """What tells a literal from others, 0.0 from -0.0 too."""
    return np.asarray(literal.val, literal.aval.dtype).tobytes(), literal.aval


def _key(eqn: JaxprEqn, operands: Sequence[_Value]) -> Hashable | None:
    """What two equations that give the same have in common; None where that cannot be told."""
    if any(isinstance(v, DropVar) for v in eqn.outvars):
        return None
    atoms = tuple(_bits(v.atom) if isinstance(v.atom, Literal) else v.atom for v in operands)
    key = (eqn.primitive, atoms, tuple(sorted(eqn.params.items())), tuple(v.aval for v in eqn.outvars))
    try:
        hash(key)
    except TypeError:
        return None
    return key
