"""Values known when the step is compiled: literals, constants, and what is computed from them alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from braintrace_primitives._jax_compat import Jaxpr, JaxprEqn, Literal, Var, build_jaxpr, eval_jaxpr


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
        self._known: dict[Var, Any] = dict(known or {})
        self._producers: dict[Var, JaxprEqn] | None = None

    def value(self, atom: Any) -> np.ndarray | None:
        """The value of `atom`, or None where it is not fixed at compile time."""
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        if atom not in self._known:
            if atom not in self._fixed():
                return None
            self._known[atom] = self._evaluate(atom)
        return np.asarray(self._known[atom])

    def enter(self, body: Jaxpr, consts: Sequence[Any], operands: Sequence[Any]) -> "Constants":
        """The constants of `body`, a sub-program called with values `consts`, then `operands` of this one."""
        return _Nested(body, consts, self, operands)

    def _fixed(self) -> dict[Var, JaxprEqn]:
        if self._producers is None:
            self._learn_inputs()
            self._producers = {}
            for eqn in self._jaxpr.eqns:
                if all(self._is_fixed(atom) for atom in eqn.invars) and not eqn.effects:
                    self._producers.update(dict.fromkeys(eqn.outvars, eqn))
        return self._producers

    def _learn_inputs(self) -> None:
        """Fill in the inputs whose values can be known; those of an outermost program are given."""

    def _is_fixed(self, atom: Any) -> bool:
        return isinstance(atom, Literal) or atom in self._known or atom in (self._producers or {})

    def _evaluate(self, var: Var) -> Any:
        producers = self._fixed()
        needed: set[int] = set()
        leaves: dict[Var, Any] = {}
        pending = [var]
        while pending:
            atom = pending.pop()
            if isinstance(atom, Literal) or atom in leaves:
                continue
            if atom in self._known:
                leaves[atom] = self._known[atom]
            elif id(producers[atom]) not in needed:
                needed.add(id(producers[atom]))
                pending.extend(producers[atom].invars)
        eqns = [eqn for eqn in self._jaxpr.eqns if id(eqn) in needed]
        program = build_jaxpr(list(leaves), [var], eqns, like=self._jaxpr)
        return at_compile_time(eval_jaxpr, program, *leaves.values())[0]


class _Nested(Constants):
    def __init__(self, body: Jaxpr, consts: Sequence[Any], outer: Constants, operands: Sequence[Any]):
        super().__init__(body, dict(zip(body.invars, consts, strict=False)))
        self._outer = outer
        self._operands = dict(zip(body.invars[len(consts) :], operands, strict=True))

    def _learn_inputs(self) -> None:
        for inner, atom in self._operands.items():
            value = self._outer.value(atom)
            if value is not None:
                self._known[inner] = value


def at_compile_time(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)`` on concrete values, inside an outer trace too."""
    with jax.ensure_compile_time_eval():
        return jax.tree.map(np.asarray, function(*args))
