"""The influence of parameters on the units that they reach within n steps, and on no others."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_algos._errors import LearnerError
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._plan import Operands, Plan
from braintrace_algos._step import StepResult
from braintrace_compiler._dependence import step_structure
from braintrace_primitives._precision import computed_in, narrowed, widened

from ._base import Carry
from ._blocks import Batch, Matrix, kept_blocks, needed_between, reverse_passes, stored
from ._influence import Replay, elements, exit_function, flat_signals, replay, state_size, units


class Layout(NamedTuple):
    """What is kept, and the reverse passes that give it.

    Attributes
    ----------
    of_leaf : tuple of tuple of Batch or Matrix
        For each parameter leaf what is carried.
    seeds : tuple of arrays (passes, N)
        Cotangents of the new states, for distinct sets of reverse passes.
    of_between : int
        Number of the set that gives the derivatives between states.
    of_direct : tuple of int
        Number of the set that gives the derivatives by each leaf.
    kept, whole : int
        Influences that are kept, and all there are, for each copy.
    """

    of_leaf: tuple[tuple[Batch | Matrix, ...], ...]
    seeds: tuple[np.ndarray, ...]
    of_between: int
    of_direct: tuple[int, ...]
    kept: int
    whole: int

    @property
    def stored(self) -> int:
        """Numbers carried for each copy, those that fill blocks up included."""
        return sum(math.prod(batch.shape) for leaf in self.of_leaf for batch in leaf)


class NeighbourhoodCarry(Carry):
    """The carry of SnAp-n: the influence of a parameter on the units that it reaches within n steps.

    Which those are follows from the structure of the step, not from values. Weight elements that reach the same states
    form a dense block of states by elements, cut into parts where states do not act on each other (samples of a batch);
    a step multiplies each block by the derivatives between its own states. These, and what the step adds, come from as
    few reverse passes as tell them apart. Where more than half of all influences would be stored, in blocks of more
    than half of all states, one matrix with zeros takes their place: with everything in reach, that of RTRL.

    Parameters
    ----------
    n : int
        Order: 1 keeps the positions that a parameter drives at once, with all their states.
    limit : int
        Largest number of influences to carry.
    """

    remembers = True
    every_group = True
    constants = ("n",)

    def __init__(self, n: int, limit: int):
        self.n, self.limit = n, limit
        self.layout = Layout((), (), 0, (), 0, 0)

    def prepare(self, plan: Plan) -> Plan:
        self.layout = make_layout(plan, self.n)
        size = self.layout.stored * (plan.batch or 1)
        if size > self.limit:
            raise LearnerError(
                "The influence within reach is larger than its limit.",
                where=f"SnAp(n={self.n})",
                found=f"{self.layout.kept:,} of {self.layout.whole:,} influences of parameters on states within reach, "
                f"stored as {self.layout.stored:,} numbers for each of {plan.batch or 1} copies",
                expected=f"at most {self.limit:,} numbers (option `limit`)",
                fix="use a smaller n, a sparser recurrence, or another algorithm",
            )
        return plan

    def remarks(self, plan: Plan) -> list[str]:
        kept, whole, stored = self.layout.kept, self.layout.whole, self.layout.stored
        return [
            f"SnAp(n={self.n}) keeps {kept:,} of {whole:,} influences of parameters on states ({kept / whole:.2%}), "
            f"as {stored:,} numbers for each copy."
        ]

    def observe(self, plan: Plan, result: StepResult) -> Replay:
        return replay(plan, result)

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        leaves = zip(leaf_names(plan), plan.parameter_avals(), self.layout.of_leaf, strict=True)
        return {
            name: tuple(jnp.zeros(batch.shape, dtype or computed_in(leaf.dtype)) for batch in parts)
            for name, leaf, parts in leaves
            if parts
        }

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
    ) -> Folded:
        past = self.past(plan, carry, entry or {})
        if jax.tree.leaves(window.tape)[0].shape[0] == 1:
            new = self._step(plan, window.tape, carry, theta)
        else:
            new, _ = jax.lax.scan(
                lambda C, tape: (self.advance(plan, tape, C, weights, theta), None), carry, window.tape
            )
        return Folded(list(window.tape.x), list(window.b), [{} for _ in plan.operations], new, past)

    def past(self, plan: Plan, carry: Any, signals: Mapping[int, Any]) -> list[Any]:
        q = jnp.pad(flat_signals(plan, signals), (0, 1))
        found = []
        for name, leaf, parts in zip(leaf_names(plan), plan.parameter_avals(), self.layout.of_leaf, strict=True):
            size = math.prod(leaf.shape)
            total = jnp.zeros(size + 1, leaf.dtype)
            for batch, C in zip(parts, carry.get(name, ()), strict=True):
                total = batch.meet(q, widened(C), total)
            found.append(total[:size].reshape(leaf.shape))
        return found

    def advance(self, plan: Plan, tape: Replay, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        return self._step(plan, jax.tree.map(lambda v: v[None], tape), carry, theta)

    def _step(self, plan: Plan, tape: Replay, carry: Any, theta: list[Any]) -> Any:
        exit, entry = exit_function(plan, tape)
        new, pull = jax.vjp(exit, theta, entry)
        passes = [jax.vmap(pull)(jnp.asarray(seeds, new.dtype)) for seeds in self.layout.seeds]
        between = jnp.pad(passes[self.layout.of_between][1].reshape(-1), (0, 1))
        names = leaf_names(plan)
        moved = {}
        for i, (name, parts) in enumerate(zip(names, self.layout.of_leaf, strict=True)):
            if parts:
                direct = passes[self.layout.of_direct[i]][0][i]
                direct = jnp.pad(direct.reshape(len(direct), -1), ((0, 1), (0, 1)))
                moved[name] = tuple(
                    narrowed(batch.advance(wide, between.astype(wide.dtype), direct.astype(wide.dtype)), C.dtype)
                    for batch, C, wide in zip(parts, carry[name], map(widened, carry[name]), strict=True)
                )
        return moved


def make_layout(plan: Plan, n: int) -> Layout:
    """What is kept of the influence of each parameter leaf within n steps."""
    infos = {s.path: s for s in plan.graph.module_info.hidden}
    hidden = [infos[p] for g in plan.traced for p in plan.transitions[g].group.hidden_paths]
    structure = step_structure(plan.graph.module_info, hidden)
    at, unit = elements(plan), units(plan)
    among, of_parameters = structure.between[at][:, at], [direct[at] for direct in structure.of_parameters]
    blocks = [kept_blocks(among, direct, unit, n) for direct in of_parameters]
    needed = needed_between([block for leaf in blocks for block in leaf], among)
    of_between = reverse_passes(needed, among)
    of_direct = [reverse_passes(direct, direct) for direct in of_parameters]
    distinct = list({found.tobytes(): found for found in (of_between, *of_direct)}.values())
    number = {found.tobytes(): k for k, found in enumerate(distinct)}
    of_leaf = [
        stored(own, passes, of_between, direct, among)
        for own, passes, direct in zip(blocks, of_direct, of_parameters, strict=True)
    ]
    return Layout(
        tuple(map(tuple, of_leaf)),
        tuple(np.arange(max(found.max(initial=0) + 1, 1))[:, None] == found for found in distinct),
        number[of_between.tobytes()],
        tuple(number[found.tobytes()] for found in of_direct),
        sum(block.rows.size * block.cols.size for leaf in blocks for block in leaf),
        state_size(plan) * sum(direct.shape[1] for direct in of_parameters),
    )


def leaf_names(plan: Plan) -> list[str]:
    """A name for each parameter leaf: the path of the parameter, and that of the leaf in it."""
    names = []
    for info in plan.graph.module_info.parameters:
        tree = jax.tree.unflatten(info.treedef, info.invars)
        names += [
            ".".join(map(str, info.path)) + jax.tree_util.keystr(path)
            for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
        ]
    return names
