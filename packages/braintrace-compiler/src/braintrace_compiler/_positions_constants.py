"""Values known when the step is compiled: literals, constants, and what is computed from them alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from braintrace_primitives._jax_compat import (
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    add_jaxvals_p,
    build_jaxpr,
    eval_jaxpr,
)


class Constants:
    """Looks up, on demand, the value of a variable that depends on nothing but constants.

    Parameters
    ----------
    jaxpr : Jaxpr
        A program without constants of its own.
    known : mapping, optional
        Values of variables of `jaxpr` that are fixed at compile time.
    """

    def __init__(self, jaxpr: Jaxpr, known: Mapping[Var, Any] | None = None):
        self._jaxpr = jaxpr
        self._values: dict[Var, Any] = dict(known or {})
        self._inputs: set[Var] | None = None
        self._producers: dict[Var, tuple[int, JaxprEqn]] = {}

    def is_fixed(self, atom: Any) -> bool:
        """Whether the value of `atom` is fixed at compile time."""
        if self._inputs is None:
            self._inputs = self._fixed_inputs()
            for order, eqn in enumerate(self._jaxpr.eqns):
                if not eqn.effects and all(self.is_fixed(operand) for operand in eqn.invars):
                    self._producers.update(dict.fromkeys(eqn.outvars, (order, eqn)))
        return isinstance(atom, Literal) or atom in self._inputs or atom in self._producers

    def value(self, atom: Any) -> np.ndarray | None:
        """The value of `atom`, or None where it is not fixed at compile time."""
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        if not self.is_fixed(atom):
            return None
        if atom not in self._values:
            self._values[atom] = self._evaluate(atom) if atom in self._producers else self._input(atom)
        return np.asarray(self._values[atom])

    def enter(self, body: Jaxpr, consts: Sequence[Any], operands: Sequence[Any]) -> "Constants":
        """The constants of `body`, a sub-program called with values `consts`, then `operands` of this one."""
        return _Nested(body, consts, self, operands)

    def _fixed_inputs(self) -> set[Var]:
        return set(self._values)

    def _input(self, var: Var) -> Any:
        return self._values[var]

    def _evaluate(self, var: Var) -> Any:
        needed: dict[int, JaxprEqn] = {}
        leaves: dict[Var, Any] = {}
        pending = [var]
        while pending:
            atom = pending.pop()
            if isinstance(atom, Literal) or atom in leaves:
                continue
            if atom in self._values or atom not in self._producers:
                leaves[atom] = self.value(atom)
            else:
                order, eqn = self._producers[atom]
                if order not in needed:
                    needed[order] = eqn
                    pending.extend(eqn.invars)
        eqns = [needed[order] for order in sorted(needed)]
        program = build_jaxpr(list(leaves), [var], eqns, like=self._jaxpr)
        return evaluated(program, *leaves.values())[0]


class _Nested(Constants):
    def __init__(self, body: Jaxpr, consts: Sequence[Any], outer: Constants, operands: Sequence[Any]):
        super().__init__(body, dict(zip(body.invars, consts, strict=False)))
        self._outer = outer
        self._operands = dict(zip(body.invars[len(consts) :], operands, strict=True))

    def _fixed_inputs(self) -> set[Var]:
        return {*self._values, *(v for v, atom in self._operands.items() if self._outer.is_fixed(atom))}

    def _input(self, var: Var) -> Any:
        return self._outer.value(self._operands[var])


def at_compile_time(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` on concrete values, inside an outer trace too."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, function(*args))


def evaluated(program: Jaxpr, *values: Any) -> list[np.ndarray]:
    """The outputs of a program on concrete values, inside an outer trace too.

    Few and simple equations are left to NumPy: XLA would compile a program for each, which takes longer than all else.
    """
    if not all(map(_is_simple, program.eqns)):
        return at_compile_time(eval_jaxpr, program, *values)
    env = dict(zip(program.invars, map(np.asarray, values), strict=True))

    def read(atom: Any) -> np.ndarray:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else env[atom]

    with np.errstate(all="ignore"):
        for eqn in program.eqns:
            operands = [read(atom) for atom in eqn.invars]
            is_broadcast = eqn.primitive is lax.broadcast_in_dim_p
            env[eqn.outvars[0]] = (
                _broadcast(*operands, **eqn.params) if is_broadcast else _UFUNCS[eqn.primitive](*operands)
            )
    return [read(v) for v in program.outvars]


def _is_simple(eqn: JaxprEqn) -> bool:
    if eqn.primitive is not lax.broadcast_in_dim_p and eqn.primitive not in _UFUNCS:
        return False
    return len({atom.aval.dtype for atom in (*eqn.invars, *eqn.outvars)}) == 1


def _broadcast(value: np.ndarray, *, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> np.ndarray:
    size_of = dict(zip(broadcast_dimensions, value.shape, strict=True))
    return np.broadcast_to(value.reshape([size_of.get(axis, 1) for axis in range(len(shape))]), shape)


_UFUNCS: dict[Any, Callable[..., Any]] = {
    add_jaxvals_p: np.add,
    lax.add_p: np.add,
    lax.mul_p: np.multiply,
    lax.neg_p: np.negative,
    lax.sub_p: np.subtract,
}
