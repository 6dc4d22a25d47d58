"""What a learner needs of a compiled graph, laid out for execution."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import (
    Certificate,
    ETraceGraph,
    Feed,
    FeedKind,
    LinearMemory,
    LocalTransition,
    MarkedOperation,
    PerturbedStep,
    StateInfo,
    StateKind,
)
from braintrace_compiler._memory import live_states, states_read
from braintrace_compiler._split_scan import split_scan
from braintrace_primitives import TraceRule
from braintrace_primitives._jax_compat import eval_jaxpr

from ._absorption import absorbed_signals
from ._factored_rules import TruncatedTraceRule
from ._foreign_rules import check_pullbacks

Operands = tuple[dict[str, Any], ...]
"""Weight operands, one dict for each marked operation, keyed by trainable name."""


_HELD = 1 << 23
"""Bytes that loops may give in all their steps for what can be done ahead of them and behind to be worth it."""


class Perturbations(NamedTuple):
    """Additional inputs of a perturbed step, zero in use; their cotangents are the learning signals.

    Attributes
    ----------
    previous, new : list
        One for each hidden state: q = dl^t/dh^{t-1}, and L = dl^t/dh^t as readers outside the transition see it.
    deltas : list
        One for each marked operation: b = dl^t/dy.
    """

    previous: list[Any]
    new: list[Any]
    deltas: list[Any]


class Coupling(NamedTuple):
    """One marked operation feeding one hidden group.

    Attributes
    ----------
    key : str
        Weight, ordinal of the operation, first state of the group.
    trace : str
        Name of the trace that it adds to: the key of the first use of the weight.
    operation, group : int
        Ordinals.
    slot : int
        Position of y among the operations that feed the group's local transition.
    feed : Feed
    rule : TraceRule
        Of the operation, as seen from the elements that carry its trace.
    """

    key: str
    trace: str
    operation: int
    group: int
    slot: int
    feed: Feed
    rule: TraceRule


class Plan(NamedTuple):
    """A compiled graph laid out for execution.

    Attributes
    ----------
    graph : ETraceGraph
    step : PerturbedStep
        The strict program, or the full one.
    batch : int or None
        Number of mapped copies of a single-sample model; None where the model takes its batch itself.
    carry : Carry
        What is kept of the past.
    signal : {"past", "state"}
        "past": the whole step is differentiated at fixed h^{t-1}, and q^t meets the trace e^{t-1}. "state": weights
        that drive a group learn from L^t e^t alone, with L^t the signal at the new states.
    couplings : tuple of Coupling
    traced : tuple of int
        Groups that carry a trace: some operation feeds them, and their signal may differ from zero.
    live : dict
        Group -> ordinals of its states that carry a trace. A state whose past is read by recurrent operations alone
        meets no signal under the strict rule, and nothing else remembers it.
    feedback : dict or None
        Operation -> fixed weights by which signals pass it backwards.
    memories : tuple of LinearMemory
        What traced groups take in of the memory behind them; its states follow the live ones of a group.
    local : dict
        Traced group -> `LocalDerivatives`, where the carry has use for D and F.
    followed : dict
        Traced group -> `Followed`, where some of its states follow from others and the carry makes use of that.
    given : Plan, optional
        The plan as it was before the carry prepared it.
    """

    graph: ETraceGraph
    step: PerturbedStep
    batch: int | None
    carry: Any
    signal: str
    couplings: tuple[Coupling, ...]
    traced: tuple[int, ...]
    live: dict[int, tuple[int, ...]]
    feedback: dict[int, dict[str, Any]] | None = None
    memories: tuple[LinearMemory, ...] = ()
    local: Mapping[int, Any] = MappingProxyType({})
    followed: Mapping[int, Any] = MappingProxyType({})
    given: Any = None

    @property
    def operations(self) -> tuple[MarkedOperation, ...]:
        """The marked operations that learn."""
        return self.graph.hidden_perturb.operations

    @property
    def transitions(self) -> tuple[LocalTransition, ...]:
        """The local transition of each group."""
        return self.graph.hidden_perturb.transitions

    @property
    def traced_couplings(self) -> tuple[Coupling, ...]:
        """The couplings into the groups whose past matters."""
        return tuple(c for c in self.couplings if c.group in self.traced)

    @property
    def traces(self) -> dict[str, tuple[Coupling, ...]]:
        """The couplings that add to each trace."""
        added: dict[str, tuple[Coupling, ...]] = {}
        for c in self.traced_couplings:
            added[c.trace] = (*added.get(c.trace, ()), c)
        return added

    @property
    def states(self) -> tuple[StateInfo, ...]:
        """The states of the step, in the order of its inputs."""
        return self.graph.module_info.states

    @property
    def moving(self) -> frozenset[Any]:
        """The inputs of the step that hold states, parameters excepted."""
        return frozenset(v for s in self.states if s.kind is not StateKind.PARAMETER for v in s.invars)

    def splits(self, steps: int) -> bool:
        """Whether what operations give in so many steps is little enough to be held ahead of a loop or behind it."""
        given = sum(math.prod(op.y_var.aval.shape) * op.y_var.aval.dtype.itemsize for op in self.operations)
        return steps > 1 and steps * given * (self.batch or 1) <= _HELD

    def scan(self, steps: int) -> Callable[..., Any]:
        """What takes the place of `jax.lax.scan` over so many steps."""
        return split_scan if self.splits(steps) else jax.lax.scan

    @property
    def parameters(self) -> dict[Any, brainstate.State]:
        """The parameters by path."""
        return {s.path: s.state for s in self.graph.module_info.parameters}

    @property
    def truncated(self) -> dict[tuple[Any, int], int]:
        """Output of an operation and ordinal of a group -> the number of steps that stand for the trace."""
        return {
            (self.operations[c.operation].y_var, c.group): c.rule.steps
            for c in self.traced_couplings
            if isinstance(c.rule, TruncatedTraceRule)
        }

    def certificates(self) -> tuple[Certificate, ...]:
        """What a strict gradient with these traces leaves out, for each marked operation."""
        return self.graph.certificates(self.memories, self.truncated)

    def weights(self, parameter_leaves: Sequence[Any]) -> Operands:
        """The weight operands that the parameters make: the chains g of semantics, section 2."""
        program = self.graph.hidden_perturb.weight_program
        values = iter(eval_jaxpr(program, *self.graph.module_info.consts, *parameter_leaves))
        return tuple({name: next(values) for name in op.weight_vars} for op in self.operations)

    def parameter_leaves(self) -> list[Any]:
        """The present values of the parameters, flat."""
        return [leaf for state in self.parameters.values() for leaf in jax.tree.leaves(state.value)]

    def parameter_avals(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the parameters, flat."""
        return [
            jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
            for s in self.graph.module_info.parameters
            for v in s.invars
        ]

    def zero_perturbations(self) -> Perturbations:
        """Zeros, for every mapped copy."""
        perturb = self.graph.hidden_perturb
        variables = Perturbations(list(perturb.previous_vars), list(perturb.perturb_vars), list(perturb.operation_vars))
        return self.copies(jax.tree.map(lambda v: jnp.zeros(v.aval.shape, v.aval.dtype), variables))

    def copies(self, values: Any) -> Any:
        """Repeat the leaves of `values` for each mapped copy."""
        if self.batch is None:
            return values
        return jax.tree.map(lambda v: jnp.broadcast_to(v, (self.batch, *v.shape)), values)

    def by_group(self, per_state: Sequence[Any], cotangents: bool = False) -> dict[int, Any]:
        """Stack values or cotangents of all hidden states into ([copies,] S, *positions), S the live ones of each."""
        lead = 0 if self.batch is None else 1
        at = {path: i for i, path in enumerate(self.graph.hidden_perturb.perturb_hidden_paths)}
        stacked = {}
        for index in self.traced:
            group = self.transitions[index].group
            own = [per_state[at[p]] for p in group.hidden_paths]
            parts = group.split_cotangents(own) if cotangents else group.split(own)
            live = self.live[index]
            whole = jnp.stack(parts, axis=lead)
            stacked[index] = whole if len(live) == len(parts) else whole.take(np.array(live, int), axis=lead)
        return stacked

    def live_names(self, group: int, places: Sequence[int]) -> list[str]:
        """Names of the states at some places among the live ones of a group."""
        paths = self.transitions[group].group.path_of_each_state
        return list(dict.fromkeys(_dotted(paths[self.live[group][place]]) for place in places))

    def signals(self, per_state: Sequence[Any], weights: Operands) -> dict[int, Any]:
        """Cotangents given for each hidden state, by group as `by_group` does, those of absorbed memory included."""
        found = self.by_group(per_state, cotangents=True)
        if not self.memories:
            return found
        lead = 0 if self.batch is None else 1
        at = {path: i for i, path in enumerate(self.graph.hidden_perturb.perturb_hidden_paths)}
        ordinal = {op.y_var: k for k, op in enumerate(self.operations)}
        for memory in self.memories:
            parts = memory.target.split_cotangents([per_state[at[p]] for p in memory.target.hidden_paths])
            own = weights[ordinal[memory.operation.y_var]]

            def single(parts, memory=memory, own=own):
                return jnp.stack(absorbed_signals(memory, parts, own))

            more = (single if self.batch is None else jax.vmap(single))(parts)
            index = memory.source.index
            found[index] = jnp.concatenate([found[index], more.astype(found[index].dtype)], lead)
        return found

    def memories_of(self, group: int) -> tuple[LinearMemory, ...]:
        """What a group takes in."""
        return tuple(m for m in self.memories if m.source.index == group)

    def num_states(self, group: int) -> int:
        """S, the number of states at each position of a group that carry a trace, absorbed ones included."""
        return len(self.live[group]) + sum(len(m.states) for m in self.memories_of(group))


def make_plan(
    graph: ETraceGraph, *, strict: bool, batch: int | None, carry: Any, signal: str = "past", absorb: bool = False
) -> Plan:
    """Lay out `graph` for single-step (`strict`) or multi-step execution.

    With `absorb`, traces take in what they can of the linear memory behind them, where `carry` and `signal` allow it.
    """
    perturb = graph.hidden_perturb
    check_pullbacks(perturb.operations)
    step = perturb.strict if strict else perturb.full
    ordinal = {op.y_var: i for i, op in enumerate(perturb.operations)}
    couplings = []
    for relation in graph.hidden_param_op_relations:
        for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
            rule = relation.operation.spec.trace_rule
            if feed.kind is FeedKind.BROADCAST:
                rule = rule.expanded(feed.index)
            numbers = [ordinal[use.y_var] for use in relation.uses]
            keys = [f"{_dotted(relation.weight_path)}#{k}->{_dotted(group.hidden_paths[0])}" for k in numbers]
            slot_of = {y: slot for slot, y in enumerate(perturb.transitions[group.index].y_vars)}
            couplings += [
                Coupling(key, keys[0], k, group.index, slot_of[use.y_var], feed, rule)
                for key, k, use in zip(keys, numbers, relation.uses, strict=True)
            ]
    fed = {c.group for c in couplings}
    memories = ()
    if absorb and signal == "past":
        memories = tuple(
            m
            for m in carry.absorbed(graph)
            if m.source.index in fed and set(m.states) & set(live_states(m.target, states_read(perturb, step)))
        )
    traced = fed & step.recalls | {m.source.index for m in memories} if signal == "past" else fed
    if carry.every_group:
        traced = frozenset(g.index for g in graph.hidden_groups)
    everything = carry.every_state or signal == "state"
    read = perturb.perturb_hidden_paths if everything else states_read(perturb, step)
    live = {g: live_states(graph.hidden_groups[g], read) for g in traced}
    plan = Plan(graph, step, batch, carry, signal, tuple(couplings), tuple(sorted(traced)), live, memories=memories)
    return carry.prepare(plan)._replace(given=plan)


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))
