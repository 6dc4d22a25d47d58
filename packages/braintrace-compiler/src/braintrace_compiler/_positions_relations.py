"""The index relation of every JAX primitive: which input element an output element depends on.

Only derivatives count: what passes through integers, booleans or a rounding carries none.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from braintrace_primitives._jax_compat import JaxprEqn, Literal, add_jaxvals_p, name_p, stop_gradient_p

from ._positions_constants import Constants, at_compile_time
from ._positions_labels import Gather, Relation, RelationTable, Scatter, Whole

Rule = Callable[[JaxprEqn, Constants], RelationTable]


def known_relations(eqn: JaxprEqn, constants: Constants) -> RelationTable | None:
    """Relations of `eqn` by ``(input, output)`` number, dependent pairs only; None if it is not listed."""
    rule = _RULES.get(eqn.primitive)
    return None if rule is None else rule(eqn, constants)


def is_listed(eqn: JaxprEqn) -> bool:
    """Whether `eqn` is one of the operations on arrays whose relations are known."""
    return eqn.primitive in _RULES


def primitives_of_lax(names: str) -> frozenset[Any]:
    """The primitives of `jax.lax` named, those that this JAX has."""
    return frozenset(getattr(lax, f"{name}_p") for name in names.split() if hasattr(lax, f"{name}_p"))


def mixing(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    """Everything may depend on everything."""
    return {(i, j): Whole.MIXING for i in range(len(eqn.invars)) for j in range(len(eqn.outvars))}


def _numbered(aval: Any) -> np.ndarray:
    return np.arange(math.prod(aval.shape)).reshape(aval.shape)


def _none(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    return {}


def _element_wise(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    shape = eqn.outvars[0].aval.shape
    table: RelationTable = {}
    for i, atom in enumerate(eqn.invars):
        if isinstance(atom, Literal):
            continue
        if atom.aval.shape == shape:
            table[i, 0] = Whole.SAME
        else:  # scalars and axes of length one are broadcast
            table[i, 0] = Gather(np.broadcast_to(_numbered(atom.aval), shape))
    return table


def _pairwise(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    return {(i, i): Whole.SAME for i in range(len(eqn.invars))}


def _layout(move: Callable[..., np.ndarray]) -> Rule:
    """Rule of a primitive that only moves elements: `move` does the same to their numbers."""

    def rule(eqn: JaxprEqn, constants: Constants) -> RelationTable:
        return {(0, 0): Gather(move(_numbered(eqn.invars[0].aval), **eqn.params))}

    return rule


def _squeeze(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    return {(0, 0): Whole.SAME}


def _reshape(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    order = eqn.params["dimensions"]
    if order is None:
        return {(0, 0): Whole.SAME}
    return {(0, 0): Gather(_numbered(eqn.invars[0].aval).transpose(order).reshape(eqn.outvars[0].aval.shape))}


def _transpose(numbers: np.ndarray, permutation: tuple[int, ...], **_: Any) -> np.ndarray:
    return numbers.transpose(permutation)


def _broadcast_in_dim(
    numbers: np.ndarray, shape: tuple[int, ...], broadcast_dimensions: tuple[int, ...], **_: Any
) -> np.ndarray:
    spread = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, numbers.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(numbers.reshape(spread), shape)


def _slice(numbers: np.ndarray, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> np.ndarray:
    return numbers[tuple(map(slice, start_indices, limit_indices, strides or [None] * numbers.ndim))]


def _rev(numbers: np.ndarray, dimensions: tuple[int, ...], **_: Any) -> np.ndarray:
    return np.flip(numbers, dimensions)


def _tile(numbers: np.ndarray, reps: tuple[int, ...], **_: Any) -> np.ndarray:
    return np.tile(numbers, reps)


def _concatenate(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    axis = eqn.params["dimension"]
    ends = np.cumsum([atom.aval.shape[axis] for atom in eqn.invars])[:-1]
    parts = np.split(_numbered(eqn.outvars[0].aval), ends, axis)
    return {(i, 0): Scatter(part) for i, part in enumerate(parts)}


def _stack(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    numbers = np.moveaxis(_numbered(eqn.outvars[0].aval), eqn.params["axis"], 0)
    return {(i, 0): Scatter(part) for i, part in enumerate(numbers)}


def _split(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    ends = np.cumsum(eqn.params["sizes"])[:-1]
    parts = np.split(_numbered(eqn.invars[0].aval), ends, eqn.params["axis"])
    return {(0, j): Gather(part) for j, part in enumerate(parts)}


def _unstack(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    numbers = np.moveaxis(_numbered(eqn.invars[0].aval), eqn.params["axis"], 0)
    return {(0, j): Gather(part) for j, part in enumerate(numbers)}


def _pad(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    shape = eqn.outvars[0].aval.shape
    target = np.zeros((), np.int64)
    inside = np.ones((), bool)
    for size, length, (low, _, interior) in zip(
        eqn.invars[0].aval.shape, shape, eqn.params["padding_config"], strict=True
    ):
        at = low + np.arange(size) * (interior + 1)
        target = target[..., None] * length + at
        inside = inside[..., None] & (at >= 0) & (at < length)
    target = np.where(inside, target, -1)
    source = np.zeros(math.prod(shape), np.int64)
    source[target[inside]] = -1
    return {(0, 0): Scatter(target), (1, 0): Gather(source.reshape(shape))}


def _reduce(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    numbers = np.expand_dims(_numbered(eqn.outvars[0].aval), eqn.params["axes"])
    return {(0, 0): Scatter(np.broadcast_to(numbers, eqn.invars[0].aval.shape))}


def _dot_general(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    """A product does not mix one side if it contracts nothing or the other side has no free axes."""
    (contract, batch), avals = eqn.params["dimension_numbers"], [atom.aval for atom in eqn.invars]
    free = [
        [axis for axis in range(aval.ndim) if axis not in (*contracted, *shared)]
        for aval, contracted, shared in zip(avals, contract, batch, strict=True)
    ]
    sizes = [
        [math.prod(aval.shape[axis] for axis in axes) for axes in kinds]
        for aval, *kinds in zip(avals, batch, free, contract, strict=True)
    ]
    shared, contracted = sizes[0][0], sizes[0][2]
    out = _numbered(eqn.outvars[0].aval).reshape(shared, sizes[0][1], sizes[1][1])
    table: RelationTable = {}
    for i, aval in enumerate(avals):
        order = [*batch[i], *free[i], *contract[i]]
        mine, others = (out, sizes[1][1]) if i == 0 else (out.swapaxes(1, 2), sizes[0][1])
        ordered = _numbered(aval).transpose(order)
        if others == 1:
            target = np.empty(aval.size, np.int64)
            target[ordered.reshape(shared, sizes[i][1], contracted)] = mine
            table[i, 0] = Scatter(target.reshape(aval.shape))
        elif contracted == 1:
            source = np.empty(out.size, np.int64)
            source[mine] = ordered.reshape(shared, sizes[i][1], 1)
            table[i, 0] = Gather(source.reshape(eqn.outvars[0].aval.shape))
        else:
            table[i, 0] = Whole.MIXING
    return table


def _window(array: Any, starts: Sequence[Any], sizes: tuple[int, ...]) -> np.ndarray:
    """The elements that a dynamic slice of `array` touches; the start is clamped as XLA clamps it."""
    begin = [min(max(int(s), 0), n - k) for s, n, k in zip(starts, array.shape, sizes, strict=True)]
    return array[tuple(slice(b, b + k) for b, k in zip(begin, sizes, strict=True))]


def _dynamic_slice(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    starts = [constants.value(atom) for atom in eqn.invars[1:]]
    if any(start is None for start in starts):
        return {(0, 0): Whole.MIXING}
    return {(0, 0): Gather(_window(_numbered(eqn.invars[0].aval), starts, eqn.params["slice_sizes"]))}


def _dynamic_update_slice(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    operand, update = eqn.invars[0].aval, eqn.invars[1].aval
    starts = [constants.value(atom) for atom in eqn.invars[2:]]
    if any(start is None for start in starts):
        return {(0, 0): Whole.SAME, (1, 0): Whole.MIXING}
    target = _window(_numbered(operand), starts, update.shape)
    source = _numbered(operand).reshape(-1)
    source[target] = -1
    return {(0, 0): Gather(source.reshape(operand.shape)), (1, 0): Scatter(target)}


def _gather(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    indices = constants.value(eqn.invars[1])
    if indices is None:
        return {(0, 0): Whole.MIXING}
    params = eqn.params | {"fill_value": -1}
    numbers = _numbered(eqn.invars[0].aval).astype(np.int32)
    source = at_compile_time(lambda: eqn.primitive.bind(jax.numpy.asarray(numbers), indices, **params))
    return {(0, 0): Gather(np.maximum(source.astype(np.int64), -1))}


def _landing(eqn: JaxprEqn, constants: Constants) -> tuple[np.ndarray, Relation]:
    """Which output elements a scatter leaves alone, and the relation of its updates to its output."""
    operand, update = eqn.invars[0].aval, eqn.invars[2].aval
    indices = constants.value(eqn.invars[1])
    if indices is None:
        return np.ones(operand.shape, bool), Whole.MIXING
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    numbers = (np.full(operand.shape, -1, np.int32), indices, _numbered(update).astype(np.int32))
    landed = at_compile_time(lambda: lax.scatter(*numbers, **{name: eqn.params[name] for name in names}))
    where = np.flatnonzero(landed >= 0)
    if where.size < update.size:  # some updates fell outside or met each other
        return landed < 0, Whole.MIXING
    target = np.empty(update.size, np.int64)
    target[landed.reshape(-1)[where]] = where
    return landed < 0, Scatter(target.reshape(update.shape))


def _scatter(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    untouched, updates = _landing(eqn, constants)
    return {(0, 0): Gather(np.where(untouched, _numbered(eqn.invars[0].aval), -1)), (2, 0): updates}


def _destinations(eqn: JaxprEqn, constants: Constants) -> Relation:
    """Where each update of a scatter goes, several to one place too: the transpose of adding reads numbers back."""
    operand, update = eqn.invars[0].aval, eqn.invars[2].aval
    indices = constants.value(eqn.invars[1])
    if indices is None or operand.size >= 2**24:  # single precision tells no more numbers apart
        return Whole.MIXING
    params = {name: eqn.params[name] for name in ("dimension_numbers", "mode")}

    def add(updates: Any) -> Any:
        return lax.scatter_add(jax.numpy.zeros(operand.shape, np.float32), indices, updates, **params)

    def read() -> Any:
        (found,) = jax.linear_transpose(add, jax.ShapeDtypeStruct(update.shape, np.float32))(
            jax.numpy.asarray(_numbered(operand) + 1, np.float32)
        )
        return found

    return Scatter(at_compile_time(read).astype(np.int64) - 1)


def _scatter_into(eqn: JaxprEqn, constants: Constants) -> RelationTable:
    return {(0, 0): Whole.SAME, (2, 0): _destinations(eqn, constants)}


def _family(names: str, rule: Rule) -> dict[Any, Rule]:
    """`rule` for every primitive of `jax.lax` named, where this JAX has it."""
    return dict.fromkeys(primitives_of_lax(names), rule)


_RULES: dict[Any, Rule] = {
    **_family(
        """abs acos acosh add asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt clamp complex conj
        convert_element_type copy cos cosh digamma div erf erf_inv erfc exp exp2 expm1 igamma igamma_grad_a
        igammac imag integer_pow lgamma log log1p log2 logistic max min mul neg nextafter one_minus_square
        polygamma pow real reduce_precision regularized_incomplete_beta rem rsqrt select_n sharding_constraint
        sin sinh sqrt square sub tan tanh zeta""",
        _element_wise,
    ),
    **_family("ceil floor round sign bitcast_convert_type argmax argmin is_finite iota", _none),
    **_family("device_put optimization_barrier", _pairwise),
    **_family("reshape", _reshape),
    **_family("squeeze", _squeeze),
    **_family("transpose", _layout(_transpose)),
    **_family("broadcast_in_dim", _layout(_broadcast_in_dim)),
    **_family("slice", _layout(_slice)),
    **_family("rev", _layout(_rev)),
    **_family("tile", _layout(_tile)),
    **_family("concatenate", _concatenate),
    **_family("stack", _stack),
    **_family("split", _split),
    **_family("unstack", _unstack),
    **_family("pad", _pad),
    **_family("reduce_sum reduce_max reduce_min reduce_prod", _reduce),
    **_family("dot_general", _dot_general),
    **_family("dynamic_slice", _dynamic_slice),
    **_family("dynamic_update_slice", _dynamic_update_slice),
    **_family("gather", _gather),
    **_family("scatter", _scatter),
    **_family("scatter_add scatter_sub scatter_mul scatter_min scatter_max", _scatter_into),
    **_family(
        """conv_general_dilated cumlogsumexp cummax cummin cumprod cumsum fft linear_solve reduce
        reduce_window reduce_window_max reduce_window_min reduce_window_sum select_and_gather_add
        select_and_scatter select_and_scatter_add sort top_k""",
        mixing,
    ),
    add_jaxvals_p: _element_wise,
    name_p: _element_wise,
    stop_gradient_p: _none,
}
