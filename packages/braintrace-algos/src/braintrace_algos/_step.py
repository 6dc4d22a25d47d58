"""One step of a compiled model, and what is kept of it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from braintrace_compiler import StateKind

from ._feedback import evaluate
from ._plan import Operands, Perturbations, Plan


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
    steps: int = 0,
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
    steps : int
        How many of them a loop takes with the same weights; 0 where it is no loop.
    """
    minfo = plan.graph.module_info
    flat_weights = [w[name] for op, w in zip(plan.operations, weights, strict=True) for name in op.weight_vars]
    shared = [leaf for s, leaves in zip(plan.states, states, strict=True) if _is_parameter(s) for leaf in leaves]
    mapped = [leaf for s, leaves in zip(plan.states, states, strict=True) if not _is_parameter(s) for leaf in leaves]

    def single(args, mapped, perturbations):
        own, common = iter(mapped), iter(shared)
        leaves = [next(common if _is_parameter(s) else own) for s in plan.states for _ in s.invars]
        zeros = (value for values in perturbations for value in values)
        return evaluate(plan, [*minfo.consts, *args, *leaves, *flat_weights, *zeros], steps)

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


class Tape(NamedTuple):
    """What a carry needs to know of a step.

    Attributes
    ----------
    kept : dict
        Group -> what D and F are made of, see `LocalDerivatives`.
    x : Inputs
        Input of each operation, or None.
    jacobian : dict, optional
        Group -> what J of the states that follow from others is made of, see `Followed`.
    """

    kept: dict[int, list[Any]]
    x: Any
    jacobian: Any = None


def tape_of(plan: Plan, result: StepResult) -> Tape:
    """What is kept of a step for D and F of every traced group, and the inputs of the operations."""

    def keep(local: Any) -> list[Any]:
        values = [jax.lax.stop_gradient(result.observed[v]) for v in local.variables]
        return (local.keep if plan.batch is None else jax.vmap(local.keep))(values)

    kept = {index: keep(plan.local[index]) for index in plan.traced}
    jacobian = {index: keep(followed.jacobian) for index, followed in plan.followed.items()}
    return Tape(kept, operation_inputs(plan, result), jacobian)


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
