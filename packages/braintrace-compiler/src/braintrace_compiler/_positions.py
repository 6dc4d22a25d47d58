"""Which position feeds which: index propagation through a program (semantics, section 3).

Nothing here runs the program. Every equation relates the elements of its inputs to those of its outputs, and
labels travel along these relations: backwards, to learn which target an element feeds, or forwards, to learn
which source it comes from. A label is one position, ``NONE``, or ``MANY``, and it is on the safe side: an
element labelled p has no derivative with respect to, or into, anything but what is labelled p.

Custom derivative rules and primitives without an entry of their own are understood from their pullback, which
is traced once. What that does not explain mixes everything with everything.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from braintrace_primitives import is_etp_primitive
from braintrace_primitives._jax_compat import (
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    build_jaxpr,
    closed_call_p,
    cond_p,
    eval_jaxpr,
    fresh_var,
    jit_p,
    make_jaxpr_without_consts,
    remat_p,
    sub_jaxprs,
)

from ._positions_constants import Constants as Constants
from ._positions_labels import MANY as MANY
from ._positions_labels import NONE as NONE
from ._positions_labels import Gather, RelationTable, Scatter, Whole, join, no_labels
from ._positions_loops import LOOPS, loop_sources, loop_targets
from ._positions_relations import known_relations, mixing

TRANSPARENT = (jit_p, remat_p, closed_call_p, cond_p)
_MAX_DEPTH = 2  # a pullback may hold custom rules of its own, but not itself

Known = Mapping[Var, Any] | Constants | None

_Env = dict[Var, np.ndarray]
_Labels = list[np.ndarray | None]


def propagate_targets(
    jaxpr: Jaxpr, out_labels: Sequence[np.ndarray | None], *, known: Known = None
) -> list[np.ndarray]:
    """Which target each input element feeds.

    Parameters
    ----------
    jaxpr : Jaxpr
        A program without constants.
    out_labels : sequence of numpy.ndarray or None
        Per output of `jaxpr` the position that each element is, ``NONE`` where it is no target; None for an
        output that has no target. Outputs that share positions share labels.
    known : mapping or Constants, optional
        Values of inputs that are fixed at compile time, such as a permutation used as an index; or the constants of
        the program that `jaxpr` is a slice of, where its inputs are variables of that program.

    Returns
    -------
    list of numpy.ndarray
        Per input of `jaxpr` an integer array of its shape: the one target that an element feeds, ``NONE`` or
        ``MANY``.

    See Also
    --------
    propagate_sources : the same, forwards.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from braintrace_primitives._jax_compat import make_jaxpr_without_consts
    >>> from braintrace_compiler._positions import propagate_targets
    >>> step = lambda x: (x[1:] * 2.0, x.sum())
    >>> jaxpr, _ = make_jaxpr_without_consts(jax.make_jaxpr(step)(np.ones(3, np.float32)))
    >>> propagate_targets(jaxpr, [np.array([0, 1]), None])
    [array([-1,  0,  1])]
    """
    labels = [None if given is None else np.asarray(given, np.int64) for given in out_labels]
    found = _targets(jaxpr, labels, _constants(jaxpr, known), 0)
    return _complete(found, jaxpr.invars)


def propagate_sources(jaxpr: Jaxpr, in_labels: Sequence[np.ndarray | None], *, known: Known = None) -> list[np.ndarray]:
    """Which source each output element comes from.

    Parameters
    ----------
    jaxpr : Jaxpr
        A program without constants.
    in_labels : sequence of numpy.ndarray or None
        Per input of `jaxpr` the position that each element is, ``NONE`` where it is no source; None for an
        input that has no source.
    known : mapping or Constants, optional
        As in `propagate_targets`.

    Returns
    -------
    list of numpy.ndarray
        Per output of `jaxpr` an integer array of its shape: the one source an element depends on, ``NONE`` or
        ``MANY``.

    See Also
    --------
    propagate_targets : the same, backwards.

    Examples
    --------
    >>> import jax, numpy as np
    >>> from braintrace_primitives._jax_compat import make_jaxpr_without_consts
    >>> from braintrace_compiler._positions import propagate_sources
    >>> step = lambda x: (x[1:] * 2.0, x.sum())
    >>> jaxpr, _ = make_jaxpr_without_consts(jax.make_jaxpr(step)(np.ones(3, np.float32)))
    >>> propagate_sources(jaxpr, [np.arange(3)])
    [array([1, 2]), array(-2)]
    """
    labels = [None if given is None else np.asarray(given, np.int64) for given in in_labels]
    found = _sources(jaxpr, labels, _constants(jaxpr, known), 0)
    return _complete(found, jaxpr.outvars)


def _constants(jaxpr: Jaxpr, known: Known) -> Constants:
    return known.enter(jaxpr, (), jaxpr.invars) if isinstance(known, Constants) else Constants(jaxpr, known)


def _complete(found: _Labels, atoms: Sequence[Any]) -> list[np.ndarray]:
    return [no_labels(a.aval.shape) if got is None else got for got, a in zip(found, atoms, strict=True)]


def _is_inexact(atom: Any) -> bool:
    return jax.numpy.issubdtype(atom.aval.dtype, np.inexact)


def carries(atom: Any) -> bool:
    """Whether a derivative can pass through `atom`."""
    return not isinstance(atom, Literal) and _is_inexact(atom)


def _merge(env: _Env, atoms: Sequence[Any], labels: _Labels) -> None:
    for atom, new in zip(atoms, labels, strict=True):
        if new is not None and carries(atom):
            env[atom] = join(env.get(atom), new)


def _look_up(env: _Env, atoms: Sequence[Any]) -> _Labels:
    return [None if isinstance(atom, Literal) else env.get(atom) for atom in atoms]


class Body(NamedTuple):
    """A program that an equation runs as it is: values of its leading inputs, operands of the others."""

    program: Jaxpr
    consts: list[Any]
    operands: Sequence[Any]


def _targets(jaxpr: Jaxpr, out_labels: _Labels, constants: Constants, depth: int) -> _Labels:
    env: _Env = {}
    _merge(env, jaxpr.outvars, out_labels)
    for eqn in reversed(jaxpr.eqns):
        outs = _look_up(env, eqn.outvars)
        if all(labels is None for labels in outs):
            continue
        if eqn.primitive in TRANSPARENT:
            for body in called_bodies(eqn):
                inner = _targets(body.program, outs, constants.enter(*body), depth)
                _merge(env, body.operands, inner[len(body.consts) :])
            continue
        if eqn.primitive in LOOPS:
            found = loop_targets(eqn, outs, constants, lambda body, labels, known: _targets(body, labels, known, depth))
            _merge(env, [eqn.invars[i] for i in found], list(found.values()))
            continue
        for (i, j), relation in relations(eqn, constants, depth).items():
            operand: Any = eqn.invars[i]
            labels = outs[j]
            if labels is not None and carries(operand):
                _merge(env, [operand], [relation.backward(labels, operand.aval.shape)])
    return _look_up(env, jaxpr.invars)


def _sources(jaxpr: Jaxpr, in_labels: _Labels, constants: Constants, depth: int) -> _Labels:
    env: _Env = {}
    _merge(env, jaxpr.invars, in_labels)
    for eqn in jaxpr.eqns:
        ins = _look_up(env, eqn.invars)
        if all(labels is None for labels in ins):
            continue
        if eqn.primitive in TRANSPARENT:
            for body in called_bodies(eqn):
                inner = [None] * len(body.consts) + _look_up(env, body.operands)
                _merge(env, eqn.outvars, _sources(body.program, inner, constants.enter(*body), depth))
            continue
        if eqn.primitive in LOOPS:
            found = loop_sources(eqn, ins, constants, lambda body, labels, known: _sources(body, labels, known, depth))
            _merge(env, [eqn.outvars[j] for j in found], list(found.values()))
            continue
        for (i, j), relation in relations(eqn, constants, depth).items():
            result: Any = eqn.outvars[j]
            labels = ins[i]
            if labels is not None and carries(result):
                _merge(env, [result], [relation.forward(labels, result.aval.shape)])
    return _look_up(env, jaxpr.outvars)


def called_bodies(eqn: JaxprEqn) -> list[Body]:
    """The body of a call, the branches of a ``cond``."""
    operands = eqn.invars[1:] if eqn.primitive is cond_p else eqn.invars
    return [Body(*make_jaxpr_without_consts(body), operands) for _, body in sub_jaxprs(eqn)]


def relations(eqn: JaxprEqn, constants: Constants, depth: int = 0) -> RelationTable:
    """How elements of the inputs of an equation relate to those of its outputs, by (input, output) number."""
    table = known_relations(eqn, constants)
    if table is not None:
        return table
    if is_etp_primitive(eqn.primitive) or depth == _MAX_DEPTH:
        return mixing(eqn, constants)
    return _derived_relations(eqn, depth)


@lru_cache(maxsize=512)
def _derived_relations(eqn: JaxprEqn, depth: int) -> RelationTable:
    """Relations of a custom rule or of a foreign primitive, read off the program of its pullback."""
    ins = [i for i, atom in enumerate(eqn.invars) if _is_inexact(atom)]
    outs = [j for j, atom in enumerate(eqn.outvars) if _is_inexact(atom)]
    try:
        pullback, consts = _trace_pullback(eqn, ins, outs)
    except Exception:  # whatever a foreign rule raises: without a pullback nothing is known
        return {(i, j): Whole.MIXING for i in ins for j in outs}
    constants = Constants(pullback, dict(zip(pullback.invars, consts, strict=False)))
    unlabelled: _Labels = [None] * (len(consts) + len(eqn.invars))
    ends = np.cumsum([eqn.outvars[j].aval.size for j in outs])
    numbered = [
        np.arange(end - eqn.outvars[j].aval.size, end).reshape(eqn.outvars[j].aval.shape)
        for j, end in zip(outs, ends, strict=True)
    ]
    table: RelationTable = {}
    fed = _complete(_sources(pullback, [*unlabelled, *numbered], constants, depth + 1), pullback.outvars)
    for k, (i, target) in enumerate(zip(ins, fed, strict=True)):
        if (target == MANY).any():
            labels: _Labels = [None] * len(ins)
            labels[k] = np.arange(target.size).reshape(target.shape)
            sources = _targets(pullback, labels, constants, depth + 1)[len(unlabelled) :]
            for j, source in zip(outs, sources, strict=True):
                if source is not None:
                    table[i, j] = Whole.MIXING if (source == MANY).any() else Gather(source)
            continue
        for j, numbers in zip(outs, numbered, strict=True):
            if numbers.shape == target.shape and (target == numbers).all():
                table[i, j] = Whole.SAME
            elif numbers.size and ((target >= numbers.min()) & (target <= numbers.max())).any():
                mine = (target >= numbers.min()) & (target <= numbers.max())
                table[i, j] = Scatter(np.where(mine, target - numbers.min(), NONE))
    return table


def _trace_pullback(eqn: JaxprEqn, ins: list[int], outs: list[int]) -> tuple[Jaxpr, list[Any]]:
    """Program from constants, the inputs of `eqn` and cotangents of its `outs` to cotangents of its `ins`."""
    call = eqn.replace(
        invars=[fresh_var(atom.aval) for atom in eqn.invars],
        outvars=[fresh_var(atom.aval) for atom in eqn.outvars],
    )
    program = build_jaxpr(call.invars, call.outvars, [call], like=jax.make_jaxpr(lambda: ())())

    def pull(values: list[Any], cotangents: list[Any]) -> Any:
        def differentiable(*args: Any) -> list[Any]:
            filled = dict(enumerate(values)) | dict(zip(ins, args, strict=True))
            results = eval_jaxpr(program, *filled.values())
            return [results[j] for j in outs]

        return jax.vjp(differentiable, *(values[i] for i in ins))[1](cotangents)

    like = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in (*call.invars, *call.outvars)]
    cotangents = [like[len(call.invars) + j] for j in outs]
    return make_jaxpr_without_consts(jax.make_jaxpr(pull)(like[: len(call.invars)], cotangents))
