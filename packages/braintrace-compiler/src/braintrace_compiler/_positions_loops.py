"""Index propagation through loops: a body is walked once for each iteration, or until its labels settle."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from braintrace_primitives._jax_compat import (
    Jaxpr,
    JaxprEqn,
    fresh_var,
    make_jaxpr_without_consts,
    scan_arity,
    scan_p,
    while_p,
)

from ._positions_constants import Constants
from ._positions_labels import MANY, join, no_labels

Labels = list[np.ndarray | None]
Walk = Callable[[Jaxpr, Labels, Constants], Labels]

_FOLLOWED = 64
"""Iterations that are followed one by one; longer loops are joined until nothing changes."""

LOOPS = (scan_p, while_p)


class _Loop(NamedTuple):
    """The body of a loop: its inputs are constants of its own, then `num_consts`, `num_carry` and scanned ones."""

    body: Jaxpr
    lifted: int
    num_consts: int
    num_carry: int
    length: int | None
    reverse: bool
    constants: Constants

    @classmethod
    def of(cls, eqn: JaxprEqn, constants: Constants) -> "_Loop":
        is_scan = eqn.primitive is scan_p
        body, values = make_jaxpr_without_consts(eqn.params["jaxpr" if is_scan else "body_jaxpr"])
        if is_scan:
            arity = scan_arity(eqn)
            num_consts, num_carry, given = arity.num_consts, arity.num_carry, list(eqn.invars[: arity.num_consts])
            length, reverse = eqn.params["length"], eqn.params["reverse"]
        else:
            skipped, num_consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
            num_carry, given = len(eqn.outvars), list(eqn.invars[skipped : skipped + num_consts])
            length, reverse = None, False
        changing = [fresh_var(v.aval) for v in body.invars[len(values) + num_consts :]]
        inner = constants.enter(body, values, [*given, *changing])
        return cls(body, len(values), num_consts, num_carry, length, reverse, inner)

    def operands(self, eqn: JaxprEqn) -> Sequence[int]:
        """Numbers of the operands that the body sees."""
        first = eqn.params["cond_nconsts"] if eqn.primitive is while_p else 0
        return range(first, len(eqn.invars))

    def times(self) -> Sequence[int] | None:
        """The index of each iteration, in order; None where iterations are not told apart."""
        if self.length is None or self.length > _FOLLOWED:
            return None
        return range(self.length)[:: -1 if self.reverse else 1]


def loop_targets(eqn: JaxprEqn, outs: Labels, constants: Constants, walk: Walk) -> dict[int, np.ndarray]:
    """Labels of the operands of a loop, by number, from those of its results."""
    loop = _Loop.of(eqn, constants)
    carry, stacked = outs[: loop.num_carry], outs[loop.num_carry :]
    operands = loop.operands(eqn)
    consts: Labels = [None] * loop.num_consts
    xs = [no_labels(eqn.invars[i].aval.shape) for i in operands[loop.num_consts + loop.num_carry :]]

    def back(t: int | None, carry: Labels) -> Labels:
        got = walk(loop.body, [*carry, *(_slice(labels, t) for labels in stacked)], loop.constants)[loop.lifted :]
        consts[:] = _joined(consts, got[: loop.num_consts])
        for whole, part in zip(xs, got[loop.num_consts + loop.num_carry :], strict=True):
            if part is not None:
                at = slice(None) if t is None else t
                whole[at] = join(whole[at], np.broadcast_to(part, whole[at].shape))
        return got[loop.num_consts : loop.num_consts + loop.num_carry]

    carry = _iterate(loop.times(), carry, back, backwards=True)
    found = [*consts, *carry, *xs]
    return {i: labels for i, labels in zip(operands, found, strict=True) if labels is not None}


def loop_sources(eqn: JaxprEqn, ins: Labels, constants: Constants, walk: Walk) -> dict[int, np.ndarray]:
    """Labels of the results of a loop, by number, from those of its operands."""
    loop = _Loop.of(eqn, constants)
    given = [ins[i] for i in loop.operands(eqn)]
    consts, carry = given[: loop.num_consts], given[loop.num_consts : loop.num_consts + loop.num_carry]
    xs = given[loop.num_consts + loop.num_carry :]
    stacked = [no_labels(v.aval.shape) for v in eqn.outvars[loop.num_carry :]]

    def forth(t: int | None, carry: Labels) -> Labels:
        inner = [*[None] * loop.lifted, *consts, *carry, *(_slice(labels, t) for labels in xs)]
        got = walk(loop.body, inner, loop.constants)
        for whole, part in zip(stacked, got[loop.num_carry :], strict=True):
            if part is not None:
                at = slice(None) if t is None else t
                whole[at] = join(whole[at], np.broadcast_to(part, whole[at].shape))
        return got[: loop.num_carry]

    carry = _iterate(loop.times(), carry, forth)
    return {j: labels for j, labels in enumerate([*carry, *stacked]) if labels is not None}


def _iterate(
    times: Sequence[int] | None,
    carry: Labels,
    step: Callable[[int | None, Labels], Labels],
    *,
    backwards: bool = False,
) -> Labels:
    if times is not None:
        for t in reversed(times) if backwards else times:
            carry = step(t, carry)
        return carry
    for _ in range(_FOLLOWED):
        grown = _joined(carry, step(None, carry))
        if all(_equal(a, b) for a, b in zip(carry, grown, strict=True)):
            return grown
        carry = grown
    unsettled: Labels = [None if labels is None else np.full(labels.shape, MANY) for labels in carry]
    return _joined(unsettled, step(None, unsettled))


def _slice(labels: np.ndarray | None, t: int | None) -> np.ndarray | None:
    """Labels of one iteration's slice; the join of all of them where iterations are not told apart."""
    if labels is None or t is not None:
        return None if labels is None else labels[t]
    whole = no_labels(labels.shape[1:])
    for part in labels:
        whole = join(whole, part)
    return whole


def _joined(left: Labels, right: Labels) -> Labels:
    return [a if b is None else join(a, b) for a, b in zip(left, right, strict=True)]


def _equal(left: np.ndarray | None, right: np.ndarray | None) -> bool:
    return (left is None) == (right is None) and (left is None or bool((left == right).all()))
