"""Which sources each element of a program depends on, all of them: sets that flow along the relations of `_positions`.

Where labels know one position, none, or many, these sets name every source. They are on the safe side: an element has
no derivative with respect to a source outside of its set. Factors that are known to be zero, such as a mask on a
weight, let nothing pass. Products, reductions and convolutions are followed element by element, marked operations
through what they compute; sorts and the like mix everything with everything.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import sparse

from braintrace_primitives import is_etp_primitive
from braintrace_primitives._jax_compat import Jaxpr, JaxprEqn, Literal, Var, make_jaxpr_without_consts

from ._module_info import ModuleInfo, StateInfo
from ._positions import TRANSPARENT, Body, called_bodies, carries, relations
from ._positions_constants import Constants, at_compile_time
from ._positions_labels import Gather, Relation, Scatter, Whole, put, take

Sets = sparse.csr_array
"""Booleans (elements of an array, sources)."""

_CHUNK = 2**22
"""Elements of a Jacobian that are probed at once."""

_KEEPS_ZEROS = (
    *(lax.neg_p, lax.convert_element_type_p, lax.copy_p, lax.reshape_p, lax.squeeze_p, lax.transpose_p, lax.real_p),
    *(lax.broadcast_in_dim_p, lax.slice_p, lax.rev_p, lax.concatenate_p, lax.split_p, lax.abs_p, lax.imag_p),
    *(lax.add_p, lax.sub_p),
)
_LINEAR = (lax.conv_general_dilated_p, lax.cumsum_p, lax.reduce_window_sum_p)


class StepStructure:
    """Which derivatives of one step can differ from zero.

    Attributes
    ----------
    between : scipy.sparse.csr_array (N, N)
        New states by previous ones.
    of_parameters : list of scipy.sparse.csr_array (N, size of the leaf)
        New states by the elements of each parameter leaf.
    """

    def __init__(self, between: Sets, of_parameters: list[Sets]):
        self.between, self.of_parameters = between, of_parameters


def step_structure(minfo: ModuleInfo, hidden: Sequence[StateInfo]) -> StepStructure:
    """The structure of the derivatives of one step, by previous states and by parameters.

    Parameters
    ----------
    minfo : ModuleInfo
    hidden : sequence of StateInfo
        The hidden states, flat and one after the other.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_compiler import extract_module_info
    >>> from braintrace_primitives import matmul
    >>> class Chain(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((3, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = jnp.tanh(matmul(self.h.value, self.w.value * jnp.eye(3, k=1)) + x)
    >>> model = Chain()
    >>> model.init_state()
    >>> minfo = extract_module_info(model, jnp.zeros(3))
    >>> step_structure(minfo, minfo.hidden).between.toarray().astype(int).tolist()
    [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    """
    sources = [s.invars[0] for s in hidden] + [v for p in minfo.parameters for v in p.invars]
    ends = np.cumsum([0, *(v.aval.size for v in sources)])
    env: dict[Var, Sets] = {}
    for var, start in zip(sources, ends[:-1], strict=True):
        size = var.aval.size
        if jnp.issubdtype(var.aval.dtype, np.inexact):
            at = np.arange(size)
            env[var] = sparse.csr_array((np.ones(size, bool), (at, start + at)), (size, ends[-1]))
    ins = [env.get(v) for v in minfo.jaxpr.invars]
    outs = _walk(minfo.jaxpr, ins, [None] * len(ins), minfo.constants())
    at = {id(v): sets for v, sets in zip(minfo.jaxpr.outvars, outs, strict=True)}
    rows = [at[id(s.outvars[0])] for s in hidden]
    empty = [sparse.csr_array((s.outvars[0].aval.size, ends[-1]), dtype=bool) for s in hidden]
    found = sparse.csc_array(sparse.vstack([b if a is None else a for a, b in zip(rows, empty, strict=True)]))
    parts = [sparse.csr_array(found[:, a:b]) for a, b in itertools.pairwise(ends)]
    return StepStructure(sparse.csr_array(sparse.hstack(parts[: len(hidden)])), parts[len(hidden) :])


def _walk(
    jaxpr: Jaxpr, ins: Sequence[Sets | None], supports: Sequence[np.ndarray | None], constants: Constants
) -> list[Sets | None]:
    """Sets of the outputs, from those of the inputs and from what is known of where the inputs are zero."""
    env: dict[Any, Sets] = {v: sets for v, sets in zip(jaxpr.invars, ins, strict=True) if sets is not None}
    known = {v: s for v, s in zip(jaxpr.invars, supports, strict=True) if s is not None}

    def support(atom: Any) -> np.ndarray | None:
        """Where `atom` may differ from zero, flat; None for everywhere."""
        if not isinstance(atom, Literal) and atom in known:
            return known[atom]
        value = constants.value(atom) if isinstance(atom, Literal) or atom not in env else None
        found = None if value is None else np.asarray(value != 0).reshape(-1)
        return None if found is None or found.all() else found

    for eqn in jaxpr.eqns:
        if not any(not isinstance(a, Literal) and a in env for a in eqn.invars):
            continue
        operands = [None if isinstance(a, Literal) else env.get(a) for a in eqn.invars]
        if eqn.primitive in TRANSPARENT or is_etp_primitive(eqn.primitive):
            for body in called_bodies(eqn) if eqn.primitive in TRANSPARENT else [_implementation(eqn)]:
                skipped, lifted = len(eqn.invars) - len(body.operands), len(body.consts)
                inner = [None] * lifted + operands[skipped:]
                zeros = [None] * lifted + [support(a) for a in body.operands]
                outs = _walk(body.program, inner, zeros, constants.enter(*body))
                for v, sets in zip(eqn.outvars, outs, strict=True):
                    _join(env, v, sets)
            continue
        where = [support(a) for a in eqn.invars]
        for (i, j), relation in _links(eqn, operands, where, constants).items():
            sets, out = operands[i], eqn.outvars[j]
            if sets is not None and carries(out):
                _join(env, out, relation @ sets)
        for j, out in enumerate(eqn.outvars):
            zeros = _support_of(eqn, j, where, constants)
            if zeros is not None:
                known[out] = zeros
    return [None if isinstance(v, Literal) else env.get(v) for v in jaxpr.outvars]


def _implementation(eqn: JaxprEqn) -> Body:
    """What a marked operation computes, as a body to walk."""
    like = [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in eqn.invars]
    program = jax.make_jaxpr(functools.partial(eqn.primitive.evaluate, **eqn.params))(*like)
    return Body(*make_jaxpr_without_consts(program), eqn.invars)


def _join(env: dict[Var, Sets], var: Var, sets: Sets | None) -> None:
    if sets is not None and sets.nnz:
        env[var] = env[var] + sets if var in env else sets


def _links(
    eqn: JaxprEqn, operands: Sequence[Sets | None], where: Sequence[np.ndarray | None], constants: Constants
) -> Mapping[tuple[int, int], Sets]:
    """For dependent pairs (input, output) of an equation the booleans (elements of output, elements of input)."""
    if eqn.primitive is lax.dot_general_p:
        return {(i, 0): link for i, link in enumerate(_product(eqn, where)) if operands[i] is not None}
    if eqn.primitive is lax.gather_p and operands[0] is not None and constants.value(eqn.invars[1]) is None:
        return {(0, 0): _looked_up(eqn)}
    if eqn.primitive in _LINEAR:
        return {(i, 0): _probed(eqn, i, where) for i, sets in enumerate(operands) if sets is not None}
    found = {}
    for (i, j), relation in relations(eqn, constants).items():
        if operands[i] is not None:
            found[i, j] = _matrix(relation, eqn.outvars[j].aval, eqn.invars[i].aval)
    if eqn.primitive is lax.mul_p:
        for i, other in ((0, 1), (1, 0)):
            passing = where[other]
            if (i, 0) in found and passing is not None:
                found[i, 0] = _rows(found[i, 0], _spread(passing, eqn.invars[other].aval, eqn.outvars[0].aval))
    elif eqn.primitive is lax.select_n_p:
        which = constants.value(eqn.invars[0])
        for i in range(1, len(eqn.invars)):
            if which is not None and (i, 0) in found:
                chosen = np.broadcast_to(which, eqn.outvars[0].aval.shape).reshape(-1).astype(int) == i - 1
                found[i, 0] = _rows(found[i, 0], chosen)
    return found


def _matrix(relation: Relation, out: Any, given: Any) -> Sets:
    shape = (out.size, given.size)
    if relation is Whole.MIXING:
        return sparse.csr_array(np.ones(shape, bool))
    if relation is Whole.SAME:
        to = source = np.arange(out.size)
    elif isinstance(relation, Gather):
        to, source = np.arange(out.size), relation.source.reshape(-1)
    else:
        assert isinstance(relation, Scatter)
        to, source = relation.target.reshape(-1), np.arange(given.size)
    kept = (to >= 0) & (source >= 0)
    return sparse.csr_array((np.ones(kept.sum(), bool), (to[kept], source[kept])), shape)


def _rows(link: Sets, passing: np.ndarray) -> Sets:
    """`link` with the rows emptied where nothing passes."""
    return sparse.csr_array(sparse.dia_array((passing[None], [0]), shape=(passing.size,) * 2) @ link)


def _spread(values: np.ndarray, aval: Any, out: Any) -> np.ndarray:
    return np.broadcast_to(values.reshape(aval.shape), out.shape).reshape(-1)


def _support_of(eqn: JaxprEqn, j: int, where: Sequence[np.ndarray | None], constants: Constants) -> np.ndarray | None:
    """Where output `j` may differ from zero, if it is known to be zero somewhere."""
    out = eqn.outvars[j].aval
    if all(w is None for w in where):
        return None
    if eqn.primitive is lax.mul_p:
        both = [
            np.ones(out.shape, bool).reshape(-1) if w is None else _spread(w, a.aval, out)
            for w, a in zip(where, eqn.invars, strict=True)
        ]
        return both[0] & both[1]
    if eqn.primitive is lax.select_n_p:
        which = constants.value(eqn.invars[0])
        if which is None:
            return None
        cases = [np.ones(out.size, bool) if w is None else w for w in where[1:]]
        return np.choose(np.broadcast_to(which, out.shape).reshape(-1).astype(int), cases)
    if eqn.primitive not in _KEEPS_ZEROS:
        return None
    found = np.zeros(out.size, bool)
    for (i, k), relation in relations(eqn, constants).items():
        if k == j:
            own = where[i]
            labels = np.where(np.ones(eqn.invars[i].aval.size, bool) if own is None else own, 0, -1)
            found |= _forward(relation, labels, out).reshape(-1) == 0
    literal = [a for a in eqn.invars if isinstance(a, Literal)]
    return None if any(np.asarray(a.val).any() for a in literal) else found


def _forward(relation: Relation, labels: np.ndarray, out: Any) -> np.ndarray:
    if isinstance(relation, Gather):
        return take(labels, relation.source)
    if isinstance(relation, Scatter):
        return put(labels, relation.target.reshape(-1), out.shape)
    return labels if relation is Whole.SAME else np.zeros(out.size, int)


def _product(eqn: JaxprEqn, where: Sequence[np.ndarray | None]) -> list[Sets]:
    """Links of both sides of a ``dot_general``: terms with a factor that is zero do not count."""
    (contract, batch), avals = eqn.params["dimension_numbers"], [a.aval for a in eqn.invars]
    sides = []
    for aval, contracted, shared in zip(avals, contract, batch, strict=True):
        free = [axis for axis in range(aval.ndim) if axis not in (*contracted, *shared)]
        sizes = [math.prod(aval.shape[a] for a in axes) for axes in (shared, free, contracted)]
        sides.append(np.arange(aval.size).reshape(aval.shape).transpose([*shared, *free, *contracted]).reshape(sizes))
    (groups, left, inner), right = sides[0].shape, sides[1].shape[1]
    out = np.arange(groups * left * right).reshape(groups, left, right)
    shape = (groups, left, right, inner)
    to = np.broadcast_to(out[..., None], shape)
    links = []
    numbers = [np.broadcast_to(sides[0][:, :, None], shape), np.broadcast_to(sides[1][:, None], shape)]
    for i in range(2):
        passing = where[1 - i]
        kept = slice(None) if passing is None else passing[numbers[1 - i]]
        rows, columns = to[kept].reshape(-1), numbers[i][kept].reshape(-1)
        links.append(sparse.csr_array((np.ones(rows.size, bool), (rows, columns)), (out.size, avals[i].size)))
    return links


def _looked_up(eqn: JaxprEqn) -> Sets:
    """The link of a gather by indices that are data: along axes that it takes whole, elements stay where they are."""
    given, out, numbers = eqn.invars[0].aval, eqn.outvars[0].aval, eqn.params["dimension_numbers"]
    moved = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    pairs = zip((a for a in range(given.ndim) if a not in moved), numbers.offset_dims, strict=True)
    whole = [(a, o) for a, o in pairs if eqn.params["slice_sizes"][a] == given.shape[a]]
    keys = np.arange(math.prod(given.shape[a] for a, _ in whole))

    def by_key(aval: Any, axes: Sequence[int]) -> Sets:
        spread = keys.reshape([size if axis in axes else 1 for axis, size in enumerate(aval.shape)])
        found = np.broadcast_to(spread, aval.shape).reshape(-1)
        return sparse.csr_array((np.ones(aval.size, bool), (np.arange(aval.size), found)), (aval.size, keys.size))

    return sparse.csr_array(by_key(out, [o for _, o in whole]) @ by_key(given, [a for a, _ in whole]).T)


def _probed(eqn: JaxprEqn, i: int, where: Sequence[np.ndarray | None]) -> Sets:
    """The link of an operand in which the equation is linear, from its Jacobian where the others are one."""
    avals = [a.aval for a in eqn.invars]
    ones = [
        np.ones(a.shape, np.float32) if w is None else w.reshape(a.shape).astype(np.float32)
        for a, w in zip(avals, where, strict=True)
    ]
    params = {k: None if k == "preferred_element_type" else v for k, v in eqn.params.items()}
    size = eqn.outvars[0].aval.size

    def of(operand: Any) -> Any:
        return eqn.primitive.bind(*(operand if k == i else one for k, one in enumerate(ones)), **params)

    def rows(numbers: Any) -> Any:
        _, pull = jax.vjp(of, jnp.asarray(ones[i]))
        seeds = jax.nn.one_hot(numbers, size, dtype=jnp.float32).reshape(-1, *eqn.outvars[0].aval.shape)
        return jax.vmap(lambda seed: pull(seed)[0])(seeds).reshape(len(numbers), -1) != 0

    step = max(1, _CHUNK // max(avals[i].size, size))
    parts = [at_compile_time(rows, np.arange(a, min(a + step, size))) for a in range(0, size, step)]
    return sparse.csr_array(sparse.vstack([sparse.csr_array(part) for part in parts]))
