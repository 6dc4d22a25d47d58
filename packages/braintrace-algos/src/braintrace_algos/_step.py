"""One step of a compiled model, and the local derivatives D and F of its groups."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import FeedKind, LocalTransition, StateKind
from braintrace_primitives._jax_compat import eval_jaxpr

from ._feedback import evaluate
from ._plan import Coupling, Operands, Perturbations, Plan


class StepResult(NamedTuple):
    """What one step gives.

    Attributes
    ----------
    outputs : list
        Leaves of the model's output.
    states : list of lists
        Leaves of each new state.
    observed : dict
        Variable of the step -> its value, for everything the learner needs to know.
    args : list
        Leaves of the arguments.
    before : list of lists
        Leaves of each state before the step, parameters left out.
    """

    outputs: list[Any]
    states: list[list[Any]]
    observed: dict[Any, Any]
    args: list[Any]
    before: list[list[Any]]


def run_step(
    plan: Plan,
    args: Sequence[Any],
    states: Sequence[Sequence[Any]],
    weights: Operands,
    perturbations: Perturbations,
) -> StepResult:
    """Run the perturbed step once.

    Parameters
    ----------
    plan : Plan
    args : sequence
        Leaves of the arguments.
    states : sequence of sequences
        Leaves of each state, in the order of ``plan.states``.
    weights : Operands
    perturbations : Perturbations
    """
    minfo = plan.graph.module_info
    flat_weights = [w[name] for op, w in zip(plan.operations, weights, strict=True) for name in op.weight_vars]
    shared = [leaf for s, leaves in zip(plan.states, states, strict=True) if _is_parameter(s) for leaf in leaves]
    mapped = [leaf for s, leaves in zip(plan.states, states, strict=True) if not _is_parameter(s) for leaf in leaves]

    def single(args, mapped, perturbations):
        own, common = iter(mapped), iter(shared)
        leaves = [next(common if _is_parameter(s) else own) for s in plan.states for _ in s.invars]
        zeros = (value for values in perturbations for value in values)
        return evaluate(plan, [*minfo.consts, *args, *leaves, *flat_weights, *zeros])

    run = single if plan.batch is None else jax.vmap(single)
    values = iter(run(list(args), mapped, perturbations))
    outputs = [next(values) for _ in minfo.out_outvars]
    # A parameter is never changed by a step, so its (mapped) output is not read.
    new_states = [[next(values) for _ in s.outvars] for s in plan.states]
    new_states = [
        list(old) if _is_parameter(s) else got for s, old, got in zip(plan.states, states, new_states, strict=True)
    ]
    before = [list(leaves) for s, leaves in zip(plan.states, states, strict=True) if not _is_parameter(s)]
    return StepResult(outputs, new_states, dict(zip(plan.step.observed, values, strict=True)), list(args), before)


def _is_parameter(state: Any) -> bool:
    return state.kind is StateKind.PARAMETER


class Derivatives(NamedTuple):
    """Local derivatives of one step.

    Attributes
    ----------
    D : dict
        Group -> (S, S, *positions), for groups that remember.
    F : dict
        Key of a coupling -> (S, *elements).
    x : Inputs
        Input of each operation, or None.
    """

    D: dict[int, Any]
    F: dict[str, Any]
    x: Any


def local_derivatives(plan: Plan, result: StepResult) -> Derivatives:
    """D and F of every traced group, and the inputs of the operations."""
    known = {v: jax.lax.stop_gradient(value) for v, value in result.observed.items()}
    D: dict[int, Any] = {}
    F: dict[str, Any] = {}
    for index in plan.traced:
        transition = plan.transitions[index]
        couplings = [c for c in plan.couplings if c.group == index]
        h = transition.group.split([known[v] for v in transition.group.hidden_invars])
        inputs = [*h, *(known[v] for v in (*transition.y_vars, *transition.constvars))]

        def single(*inputs, transition=transition, couplings=couplings, live=plan.live[index]):
            return differentiate(transition, couplings, live, inputs)

        d, f = (single if plan.batch is None else jax.vmap(single))(*inputs)
        if transition.remembers:
            D[index] = d
        F.update(zip((c.key for c in couplings), f, strict=True))
    return Derivatives(D, F, operation_inputs(plan, result))


@jax.tree_util.register_pytree_node_class
class Inputs:
    """The inputs of all operations, by ordinal; one that several operations share is kept once.

    Parameters
    ----------
    values : sequence of arrays
    slots : sequence of int or None
        For each operation the place of its input among `values`; None where it has none.
    """

    def __init__(self, values: Sequence[Any], slots: Sequence[int | None]):
        self.values, self.slots = tuple(values), tuple(slots)

    def __getitem__(self, k: int) -> Any:
        slot = self.slots[k]
        return None if slot is None else self.values[slot]

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(len(self.slots)))

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
        """Leaves and structure, for JAX."""
        return self.values, self.slots

    @classmethod
    def tree_unflatten(cls, slots: tuple[int | None, ...], values: tuple[Any, ...]) -> "Inputs":
        """The inverse of `tree_flatten`."""
        return cls(values, slots)


def operation_inputs(plan: Plan, result: StepResult) -> Inputs:
    """x of every operation that has one."""
    variables = list(dict.fromkeys(op.x_var for op in plan.operations if op.x_var is not None))
    place = {v: i for i, v in enumerate(variables)}
    values = [jax.lax.stop_gradient(result.observed[v]) for v in variables]
    return Inputs(values, [place.get(op.x_var) for op in plan.operations])


def differentiate(
    transition: LocalTransition, couplings: Sequence[Coupling], live: Sequence[int], inputs: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """D (S, S, *positions), and F (S, *elements) of each coupling, by a reverse pass for each of the S live states."""
    count, Y = transition.group.num_state, len(transition.y_vars)
    h, y, constants = list(inputs[:count]), list(inputs[count : count + Y]), inputs[count + Y :]

    def advance(h, y):
        return eval_jaxpr(transition.program, *h, *y, *constants)

    new, pull = jax.vjp(advance, h, y)
    seeds = [[jnp.ones_like(v) if r == s else jnp.zeros_like(v) for r, v in enumerate(new)] for s in live]
    rows = [pull(seed) for seed in seeds]

    if transition.mixes:
        D = jnp.stack([true_diagonals(lambda ct: [pull(ct)[0][r] for r in live], new, s) for s in live])
    else:
        D = jnp.stack([jnp.stack([h_bar[r] for r in live]) for h_bar, _ in rows])
    F = []
    for c in couplings:
        if c.feed.kind is FeedKind.BROADCAST:
            # One source for each position: the forward derivative along ones, as the transpose of the reverse one,
            # since a custom reverse rule may have no forward counterpart.
            _, push = jax.vjp(lambda cts, slot=c.slot: pull(cts)[1][slot], [jnp.zeros_like(v) for v in new])
            pushed = push(jnp.ones_like(y[c.slot]))[0]
            F.append(jnp.stack([pushed[s] for s in live]))
        elif c.feed.kind is FeedKind.DIAGONAL:
            diagonals = [true_diagonals(lambda ct, slot=c.slot: [pull(ct)[1][slot]], new, s)[0] for s in live]
            F.append(jnp.stack(diagonals))
        else:
            F.append(jnp.stack([y_bar[c.slot] for _, y_bar in rows]))
    return D, F


def true_diagonals(pull: Any, new: Sequence[Any], s: int) -> Any:
    """Derivative of state `s` at each position with respect to inputs at the same position, from the full Jacobian."""
    size = int(np.prod(new[s].shape))

    def at(position):
        one_hot = jnp.zeros(size, new[s].dtype).at[position].set(1).reshape(new[s].shape)
        seed = [one_hot if r == s else jnp.zeros_like(v) for r, v in enumerate(new)]
        return jnp.stack([v.reshape(-1)[position] for v in pull(seed)])

    return jax.vmap(at, out_axes=-1)(jnp.arange(size)).reshape(-1, *new[s].shape)
