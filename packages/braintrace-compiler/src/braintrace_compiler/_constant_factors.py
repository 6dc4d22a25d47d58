"""Proofs, by the program itself, that D and F are numbers: the same for all data, at all positions, at all times."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._jax_compat import while_p

from ._feeds import ConstantFactors, Feed, FeedKind, LocalTransition
from ._flow import influence, join_bits
from ._jaxpr import Jaxpr, Literal, build_jaxpr, eval_jaxpr, inline_jit, make_jaxpr_without_consts, needed
from ._operations import MarkedOperation
from ._positions_constants import Constants, evaluated


def find_constant_factors(transition: LocalTransition, feeds: Sequence[Feed], known: Constants) -> ConstantFactors:
    """Prove what can be proven of D and F of one group.

    Parameters
    ----------
    transition : LocalTransition
    feeds : sequence of Feed
        Of the operations that feed the group.
    known : Constants
        Of the step.
    """
    S = transition.group.num_state
    none = (None,) * S
    if transition.mixes or any(eqn.primitive is while_p for eqn in transition.program.eqns):
        return ConstantFactors((none,) * S, (none,) * len(feeds))
    matched = [k for k, feed in enumerate(feeds) if feed.kind in (FeedKind.SAME, FeedKind.GATHER)]
    program = transition.program
    parts = [build_jaxpr(program.invars, [v], needed(program.eqns, [v]), like=program) for v in program.outvars]

    def derivatives(inputs: Sequence[Any]) -> list[Any]:
        """One reverse pass for each new state, along its own equations: a zero from another one would read data."""
        h, y, rest = inputs[:S], inputs[S : S + len(feeds)], inputs[S + len(feeds) :]
        found = []
        for part in parts:
            new, pull = jax.vjp(lambda h, y, part=part: eval_jaxpr(part, *h, *y, *rest)[0], h, y)
            h_bar, y_bar = pull(jnp.ones_like(new))
            found += [*h_bar, *(y_bar[k] for k in matched)]
        return found

    values = iter(map(one_number, constants_of(derivatives, program, transition.constvars, known)))
    by_state = [([next(values) for _ in range(S)], {k: next(values) for k in matched}) for _ in range(S)]
    return ConstantFactors(
        tuple(tuple(D) for D, _ in by_state),
        tuple(tuple(F.get(k) for _, F in by_state) for k in range(len(feeds))),
    )


def one_number(value: np.ndarray | None) -> complex | None:
    """The value that all elements have."""
    if value is None or not value.size or np.any(value != value.flat[0]):
        return None
    return value.flat[0].item()


def constants_of(
    function: Callable[[Sequence[Any]], Sequence[Any]], program: Jaxpr, constvars: Sequence[Any], known: Constants
) -> list[np.ndarray | None]:
    """The outputs of a function of a program's inputs that follow from constants of the step; None for the others.

    Parameters
    ----------
    function : callable
        Takes the inputs of `program` as one sequence.
    program : Jaxpr
        Its last inputs are `constvars`, variables of the step.
    constvars : sequence of Var
    known : Constants
        Of the step.
    """
    last = program.invars[len(program.invars) - len(constvars) :]
    fixed = {v: known.value(var) for v, var in zip(last, constvars, strict=True) if known.is_fixed(var)}
    varying: list[Any] = [v for v in program.invars if v not in fixed]

    def of_varying(*values: Any) -> Sequence[Any]:
        env = {**fixed, **dict(zip(varying, values, strict=True))}
        return function([env[v] for v in program.invars])

    return constant_outputs(of_varying, [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in varying])


def constant_outputs(function: Callable[..., Sequence[Any]], avals: Iterable[Any]) -> list[np.ndarray | None]:
    """The outputs of a function that read none of its inputs, by value; None for the others."""
    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(function)(*avals))
    lead, inputs = program.invars[: len(consts)], program.invars[len(consts) :]
    known = _unread(program, inputs)
    outputs = [v for v, is_known in zip(program.outvars, known, strict=True) if is_known]
    if not outputs:
        return [None] * len(known)
    part = build_jaxpr(lead, outputs, needed(program.eqns, outputs), like=program)
    values = iter(evaluated(part, *consts))
    return [next(values) if is_known else None for is_known in known]


def factored_states(
    transition: LocalTransition, slots: Sequence[int], feed: Feed, operation: MarkedOperation, states: Sequence[int]
) -> tuple[int, ...]:
    """The states of a group whose trace of an operation is an outer product in all but name.

    Where D and F depend on no data, position or time, e^t = sum_s (D^{t-s} F) ⊗ x^s holds one filtered input for each
    state instead of one number for each synapse and state: B · I · S in place of B · I · O · S. A state factorises if
    F into it is one number, and it depends on the past of no state but of those that factorise too, by one number each.

    Parameters
    ----------
    transition : LocalTransition
    slots : sequence of int
        Numbers of the operation, and of further uses of its weight, among ``transition.y_vars``.
    feed : Feed
    operation : MarkedOperation
    states : sequence of int
        Ordinals of the states that carry a trace.

    Returns
    -------
    tuple of int
        Places among `states`.
    """
    if not transition.remembers or feed.kind not in (FeedKind.SAME, FeedKind.GATHER):
        return ()
    if not is_affine_in_input(operation):
        return ()
    constants = transition.constants
    kept = {s for s in states if all(constants.F[slot][s] is not None for slot in slots)}

    def closed(s: int) -> bool:
        return all(constants.D[s][r] is not None if r in kept else constants.D[s][r] == 0 for r in states)

    while lost := {s for s in kept if not closed(s)}:
        kept -= lost
    return tuple(place for place, s in enumerate(states) if s in kept)


def reaches(transition: LocalTransition, slots: Sequence[int], states: Sequence[int]) -> bool:
    """Whether operations reach any of some states of a group; if not, F = 0 and their trace is zero for ever.

    Parameters
    ----------
    transition : LocalTransition
    slots, states : sequence of int
        As in `factored_states`.
    """
    F = transition.constants.F
    return any(not F or F[slot][s] != 0 for slot in slots for s in states)


def outlasts_step(transition: LocalTransition, slots: Sequence[int], states: Sequence[int]) -> bool:
    """Whether any of some states reads the past of one that operations reach; if not, D F = 0 and a trace lasts a step.

    Parameters
    ----------
    transition : LocalTransition
    slots, states : sequence of int
        As in `factored_states`.
    """
    D, F = transition.constants
    if not (transition.remembers and D):
        return transition.remembers
    return any(F[slot][r] != 0 and D[s][r] != 0 for slot in slots for r in states for s in states)


def is_affine_in_input(operation: MarkedOperation) -> bool:
    """Whether the derivative of an op with respect to its input does not read the input."""
    params, fn = operation.eqn.params, operation.spec.trace_rule.fn
    if operation.x_var is None or not jnp.issubdtype(operation.x_var.aval.dtype, jnp.inexact):
        return False
    x = jax.ShapeDtypeStruct(operation.x_var.aval.shape, operation.x_var.aval.dtype)
    weights = {n: jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for n, v in operation.weight_vars.items()}

    def slope(x: Any, dx: Any, weights: Any) -> Any:
        return jax.jvp(lambda x: fn(x, weights, params), (x,), (dx,))[1]

    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(slope)(x, x, weights))
    return all(_unread(program, program.invars[len(consts) : len(consts) + 1]))


def is_affine_in_addend(operation: MarkedOperation) -> bool:
    """Whether the gradient of an op's weights is proven affine in what its rule would add up of the input."""
    rule, params, addend = operation.spec.trace_rule, operation.eqn.params, operation.addend
    if not jnp.issubdtype(addend.dtype, jnp.inexact):
        return False
    _, weights, y = operation.operand_types

    def slope(sums: Any, step: Any, weights: Any, g: Any) -> Any:
        def gradient(sums: Any) -> Any:
            return rule.pullback_of_sums(sums[None], weights, g[None], params)

        return jax.jvp(gradient, (sums,), (step,))[1]

    program, consts = inline_jit(*make_jaxpr_without_consts(jax.make_jaxpr(slope)(addend, addend, weights, y)))
    read = influence(program.eqns, {program.invars[len(consts)]: 1}, derivative=False)
    return not join_bits(read, program.outvars)


def _unread(program: Jaxpr, inputs: Iterable[Any]) -> list[bool]:
    """For each output of a program, whether it depends on none of `inputs`."""
    varying = set(inputs)
    for eqn in program.eqns:
        if any(v in varying for v in eqn.invars if not isinstance(v, Literal)):
            varying.update(eqn.outvars)
    return [isinstance(v, Literal) or v not in varying for v in program.outvars]
