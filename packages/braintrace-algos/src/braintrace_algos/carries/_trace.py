"""Eligibility traces: one for each marked operation and hidden group that it drives."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from braintrace_algos._entries import Rows, full, is_zero, matrix, stacked
from braintrace_algos._factored_rules import FactoredTraceRule, RecentStepsTraceRule, TruncatedTraceRule
from braintrace_algos._feeds import collect, feed_shape, spread
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._plan import Coupling, Operands, Plan
from braintrace_algos._sizes import tree_bytes
from braintrace_algos._step import Derivatives, StepResult, local_derivatives
from braintrace_algos._truncation import CarryChoice, TruncatedTrace
from braintrace_compiler import ETraceGraph, Known, LinearMemory, factored_states
from braintrace_primitives import TraceRule

from ._base import Carry
from ._norms import window_norms
from ._recursion import Recursion, past_signals, state_signals


class TraceCarry(Carry):
    """The carry of D-RTRL: e^t = D^t e^{t-1} + F^t ∂y/∂w, B · I · O · S numbers for a dense operation."""

    every_state = False
    factors: ClassVar[bool] = True
    """Whether D and F are those that the compiler proves constants of."""
    choice = CarryChoice(None, {})

    def keeping(self, choice: CarryChoice) -> Carry:
        new = copy.copy(self)
        new.choice = choice
        return new

    def absorbed(self, graph: ETraceGraph) -> tuple[LinearMemory, ...]:
        return graph.hidden_perturb.memories

    def prepare(self, plan: Plan) -> Plan:
        """Traces that are proven to factorise are kept as factors, and others cut short where that was chosen."""
        self.choice.require_known(plan.operations)
        rules = self._exact_rules(plan) if self.factors else {}
        for key, (c, *others) in plan.traces.items():
            kept = self.choice.for_operation(plan.operations[c.operation])
            if kept is None or plan.operations[c.operation].x_var is None:
                continue
            exact = rules.get(key, c.rule)
            short = TruncatedTraceRule(c.rule, 1 + len(others), kept.steps, exact)
            if tree_bytes(self._zeros(plan, c, short)) < tree_bytes(self._zeros(plan, c, exact)):
                rules[key] = short
        return plan._replace(couplings=tuple(c._replace(rule=rules.get(c.trace, c.rule)) for c in plan.couplings))

    def _exact_rules(self, plan: Plan) -> dict[str, TraceRule]:
        """Rules of the traces that are proven to factorise, in part or whole."""
        rules: dict[str, TraceRule] = {}
        for key, (c, *others) in plan.traces.items():
            transition, operation = plan.transitions[c.group], plan.operations[c.operation]
            slots = [c.slot, *(use.slot for use in others)]
            if states := factored_states(transition, slots, c.feed, operation, plan.live[c.group]):
                rules[key] = FactoredTraceRule(c.rule, states)
            elif operation.x_var is not None and not self._remembered(plan, c.group, slots):
                rules[key] = RecentStepsTraceRule(c.rule, len(slots))
        return rules

    def _remembered(self, plan: Plan, group: int, slots: Sequence[int]) -> bool:
        """Whether a state reads the past of one that the operations in `slots` reach, so that a trace goes on."""
        transition, live = plan.transitions[group], plan.live[group]
        if plan.memories_of(group):
            return True
        D, F = transition.constants
        if not (transition.remembers and D):
            return transition.remembers
        return any(F[slot][r] != 0 and D[s][r] != 0 for slot in slots for r in live for s in live)

    def remarks(self, plan: Plan) -> list[str]:
        return [
            f"D and F into {', '.join(names)} are constants: that part of the trace {key} is kept as filtered inputs, "
            "exactly."
            for key, (c, *_) in plan.traces.items()
            if isinstance(c.rule, FactoredTraceRule)
            for names in [plan.live_names(c.group, c.rule.states)]
        ]

    def observe(self, plan: Plan, result: StepResult) -> Derivatives:
        return local_derivatives(plan, result)

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        """Zero traces by key, at least in single precision unless `dtype` says otherwise."""
        traces = {key: self._zeros(plan, c, c.rule, dtype) for key, (c, *_) in plan.traces.items()}
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), traces)

    def _zeros(self, plan: Plan, c: Coupling, rule: TraceRule, dtype: Any = None) -> Any:
        """Shapes and dtypes of the trace of a coupling by some rule."""
        operation = plan.operations[c.operation]
        weights = {n: _struct(v.aval) for n, v in operation.weight_vars.items()}
        x = None if operation.x_var is None else _struct(operation.x_var.aval)
        aval = operation.y_var.aval
        y = jax.ShapeDtypeStruct(feed_shape(c.feed, aval.shape), aval.dtype)
        precision = dtype or jnp.promote_types(aval.dtype, jnp.float32)
        S = self.num_states(plan, c.group)
        return jax.eval_shape(lambda: rule.init(x, weights, y, S, operation.eqn.params, precision))

    def num_states(self, plan: Plan, group: int) -> int:
        """States of a trace at each position."""
        return plan.num_states(group)

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
    ) -> Folded:
        tape: Derivatives = window.tape
        driving = {c.operation for c in plan.couplings} if plan.signal == "state" else ()
        g = [jnp.zeros_like(b) if k in driving else b for k, b in enumerate(window.b)]
        P, PF, signals, new = {}, {}, {}, {}
        for index in plan.traced:
            own = [c for c in plan.couplings if c.group == index]
            if entry is not None and len(window.scale) > 1 and (read := _read_states(own, tape.D.get(index))):
                signals[index] = entry[index]
                new |= self._exit_in_two(plan, index, read, tape, carry, len(window.scale), weights)
                continue
            enter = None
            if entry is None:
                enter = (past_signals if plan.signal == "past" else state_signals)(window.signals[index])
            recursion = self.recursion(plan, tape.D.get(index), enter, len(window.scale), index)
            R, M0 = _received(own, tape.F, recursion)
            positions, dtype = recursion.positions, recursion.dtype
            signals[index] = stacked(M0[0], positions, dtype) if entry is None else entry[index]
            if index in tape.D:
                P[index] = matrix(M0[1:], positions, dtype)
            for c in own:
                sent, *left = R[c.key]
                shape, PF[c.key] = _left_behind(plan, c, recursion, left)
                if entry is None:
                    sent = collect(
                        c.feed, full(sent, shape, PF[c.key].dtype), plan.operations[c.operation].y_var.aval.shape
                    )
                    g[c.operation] = g[c.operation] + sent.astype(g[c.operation].dtype)
        x = list(tape.x)
        for c, xs, gs in self._kept(plan, carry, signals):
            x[c.operation] = jnp.concatenate([xs.astype(x[c.operation].dtype), x[c.operation]])
            g[c.operation] = jnp.concatenate([gs.astype(g[c.operation].dtype), g[c.operation]])
        past, turned = self._turn(_whole(plan), carry, signals, P, PF, tape.x, weights, new)
        new |= turned
        short = _short(plan)
        new |= {k: _exit_one(plan, uses, carry[k], P[uses[0].group], PF, tape.x, weights) for k, _, uses in short}
        return Folded(x, g, past, self._bounded(plan, carry, new, tape.D, len(window.scale)))

    def _exit_in_two(
        self,
        plan: Plan,
        index: int,
        read: Sequence[int],
        tape: Derivatives,
        carry: Any,
        K: int,
        weights: Operands,
    ) -> Any:
        """Traces at the exit, into a group some of whose states are read by none.

        Such states need no trace to go on: all but the last step are folded for the states `read`, and the last step
        makes all of them, as D^K times those.
        """
        group = plan.transitions[index].group
        own = {key: uses for key, uses in plan.traces.items() if uses[0].group == index}

        def but_last(entry: Any) -> Any:
            return entry if isinstance(entry, Known) else entry[:-1]

        D = tuple(tuple(but_last(tape.D[index][s][r]) for r in read) for s in read)
        recursion = Recursion(D, None, K - 1, len(read), group.varshape, group.dtype)
        F = {c.key: tuple(but_last(tape.F[c.key][s]) for s in read) for uses in own.values() for c in uses}
        R, M0 = _received([c for uses in own.values() for c in uses], F, recursion)
        P = matrix(M0[1:], group.varshape, group.dtype)
        last = matrix(_at_last([row[r] for r in read] for row in tape.D[index]), group.varshape, group.dtype)
        earlier = [None if v is None else v[:-1] for v in tape.x]
        latest = [None if v is None else v[-1:] for v in tape.x]
        new = {}
        for key, uses in own.items():
            PF = {c.key: _left_behind(plan, c, recursion, R[c.key][1:])[1] for c in uses}
            shapes = {c.key: feed_shape(c.feed, plan.operations[c.operation].y_var.aval.shape) for c in uses}
            F_last = {c.key: stacked(*_at_last([tape.F[c.key]]), shapes[c.key], PF[c.key].dtype)[None] for c in uses}
            if isinstance(uses[0].rule, RecentStepsTraceRule):
                new[key] = _exit_one(plan, uses, carry[key], None, F_last, latest, weights)
                continue
            rows = jax.tree.map(lambda v: jnp.stack([v[r] for r in read]), carry[key])
            before = _exit_one(plan, uses, rows, P, PF, earlier, weights)
            new[key] = _exit_one(plan, uses, before, last, F_last, latest, weights)
        return new

    def _kept(self, plan: Plan, carry: Any, signals: Mapping[int, Any]) -> Iterator[tuple[Coupling, Any, Any]]:
        """The steps that are kept of the traces that are cut short, by use of the weight: (R, *x), received (R, *y)."""
        for key, rule, uses in _short(plan):
            xs, sent = rule.sent(carry[key], spread(uses[0].feed, signals[uses[0].group], 1))
            for i, use in enumerate(uses):
                yield use, xs[i], collect(use.feed, sent[i], plan.operations[use.operation].y_var.aval.shape)

    def recursion(self, plan: Plan, D: Rows | None, signals: tuple[Any, Any] | None, K: int, index: int) -> Recursion:
        """M^t of a group over K steps; its row of signals where they are given."""
        group = plan.transitions[index].group
        return Recursion(D, signals, K, self.num_states(plan, index), group.varshape, group.dtype)

    def entry_gradient(
        self, plan: Plan, carry: Any, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        return _by_operation(
            plan, {key: _contracted(plan, c, carry[key], signals, weights) for key, (c, *_) in plan.traces.items()}
        )

    def _turn(
        self,
        plan: Plan,
        carry: Any,
        signals: Mapping[int, Any],
        P: Mapping[int, Any],
        PF: Mapping[str, Any],
        x: Any,
        weights: Operands,
        known: Mapping[str, Any],
    ) -> tuple[list[dict[str, Any]], Any]:
        """`entry_gradient` and `_exit` of a window at once: a rule may need one pass for both.

        The exit of the traces in `known` is not asked for.
        """
        past, new = {}, {}
        for key, uses in plan.traces.items():
            c, blocks = uses[0], P.get(uses[0].group)
            if key in known:
                past[key] = _contracted(plan, c, carry[key], signals, weights)
            elif blocks is None:
                past[key] = _contracted(plan, c, carry[key], signals, weights)
                new[key] = _exit_one(plan, uses, carry[key], blocks, PF, x, weights)
            else:
                signal = _signal_of(c, carry[key], signals)
                added = _added(uses, carry[key], blocks, PF, x)
                past[key], new[key] = c.rule.turn(
                    carry[key], signal, *added, weights[c.operation], plan.operations[c.operation].eqn.params
                )
        return _by_operation(plan, past), new

    def advance(self, plan: Plan, tape: Derivatives, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        PF = {}
        for c in plan.traced_couplings:
            y = plan.operations[c.operation].y_var.aval
            PF[c.key] = stacked(tape.F[c.key], feed_shape(c.feed, y.shape), y.dtype)[None]
        groups = {index: plan.transitions[index].group for index in tape.D}
        P = {index: matrix(D, groups[index].varshape, groups[index].dtype) for index, D in tape.D.items()}
        D, x = jax.tree.map(lambda v: v[None], (tape.D, tape.x))
        return self._bounded(plan, carry, self._exit(plan, carry, P, PF, x, weights), D, 1)

    def _bounded(self, plan: Plan, carry: Any, new: Any, D: Mapping[int, Any], K: int) -> Any:
        """The traces `new` at the exit of a window, those that are cut short with their bounds."""
        short = _short(plan)
        norms = {
            index: window_norms(self.recursion(plan, D.get(index), None, K, index))
            for index in {uses[0].group for _, _, uses in short}
        }
        return new | {key: rule.bounded(new[key], carry[key], norms[uses[0].group]) for key, rule, uses in short}

    def truncated(self, plan: Plan, carry: Any) -> tuple[TruncatedTrace, ...]:
        copies, found = plan.batch or 1, []
        for key, rule, (c, *_) in _short(plan):
            names, trace = plan.operations[c.operation].parameter_paths, carry[key]
            exact = copies * tree_bytes(self._zeros(plan, c, rule.exact))
            size = tree_bytes(trace)
            weights = tuple(".".join(map(str, path)) for path in names)
            left, largest = trace["left"].max(), trace["largest"].max()
            found.append(TruncatedTrace(key, weights, rule.steps, size, exact - size, left, largest))
        return tuple(found)

    def _exit(
        self, plan: Plan, carry: Any, P: Mapping[int, Any], PF: Mapping[str, Any], x: Any, weights: Operands
    ) -> Any:
        """Traces at the exit of a window.

        Parameters
        ----------
        P : mapping
            Group -> (S, S, *positions), the transition of the window; absent where nothing is remembered.
        PF : mapping
            Key -> (K, S, *elements), what each step leaves at the exit.
        x : sequence
            Inputs of the operations, (K, *x) each.
        """
        return {
            key: _exit_one(plan, uses, carry[key], P.get(uses[0].group), PF, x, weights)
            for key, uses in plan.traces.items()
        }


def _short(plan: Plan) -> list[tuple[str, TruncatedTraceRule, tuple[Coupling, ...]]]:
    """The traces that are cut short, with the uses of the weight."""
    traces = ((key, uses[0].rule, uses) for key, uses in plan.traces.items())
    return [(key, rule, uses) for key, rule, uses in traces if isinstance(rule, TruncatedTraceRule)]


def _whole(plan: Plan) -> Plan:
    """The plan of the other traces."""
    return plan._replace(couplings=tuple(c for c in plan.couplings if not isinstance(c.rule, TruncatedTraceRule)))


def _read_states(own: Sequence[Coupling], D: Rows | None) -> tuple[int, ...]:
    """The states whose past some state reads, where there are others too and all traces can do without these."""
    if D is None:
        return ()
    read = tuple(r for r in range(len(D)) if not all(is_zero(row[r]) for row in D))
    exact = all(not isinstance(c.rule, (FactoredTraceRule, TruncatedTraceRule)) for c in own)
    return read if exact and len(read) < len(D) else ()


def _at_last(rows: Iterable[Iterable[Any]]) -> list[list[Any]]:
    """Entries of the last step."""
    return [[entry if isinstance(entry, Known) else entry[-1] for entry in row] for row in rows]


def _left_behind(plan: Plan, c: Coupling, recursion: Recursion, left: Sequence[Any]) -> tuple[tuple[int, ...], Any]:
    """What each step of a window leaves at its exit, (K, S, *elements), and the shape of an entry."""
    y = plan.operations[c.operation].y_var.aval
    shape = (recursion.K, *feed_shape(c.feed, y.shape))
    return shape, stacked(left, shape, jnp.result_type(recursion.dtype, y.dtype), 1)


def _received(
    own: Sequence[Coupling], derivatives: Mapping[str, Any], recursion: Recursion
) -> tuple[dict[str, tuple[Any, ...]], Rows]:
    """M^t F^t at the elements of each coupling of a group, S + 1 entries (K, *elements), and M^0.

    They are made inside the recursion or after it, whichever keeps fewer arrays.
    """
    F = {c.key: derivatives[c.key] for c in own}

    def through(M, F):
        return {c.key: tuple(_through_F(c, row, F[c.key], len(recursion.positions)) for row in M) for c in own}

    if len(own) * recursion.rows_of_arrays() <= recursion.arrays():
        return recursion.run(through, F)
    M, M0 = recursion.run(lambda M, _: M, None)
    return jax.vmap(through)(M, F), M0


def _through_F(c: Coupling, row: Sequence[Any], F: Sequence[Any], axes: int) -> Any:
    """A row of M times F, at the elements that carry the trace."""
    at = (m if isinstance(m, Known) or m.ndim < axes else spread(c.feed, m, 0) for m in row)
    return sum(m * f for m, f in zip(at, F, strict=True))


def _contracted(plan: Plan, c: Coupling, trace: Any, signals: Mapping[int, Any], weights: Operands) -> dict[str, Any]:
    params = plan.operations[c.operation].eqn.params
    return c.rule.contract(trace, _signal_of(c, trace, signals), weights[c.operation], params)


def _signal_of(c: Coupling, trace: Any, signals: Mapping[int, Any]) -> Any:
    """The signal at the elements of a trace; states are real, the trace of a complex operation is not."""
    signal = spread(c.feed, signals[c.group], 1)
    is_complex = any(map(jnp.iscomplexobj, jax.tree.leaves(trace)))
    return signal.astype(jnp.result_type(signal, jnp.complex64)) if is_complex else signal


def _by_operation(plan: Plan, gradients: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Gradients of the weights of each operation from those of the traces."""
    total: list[dict[str, Any]] = [{} for _ in plan.operations]
    for key, (c, *_) in plan.traces.items():  # several uses of a weight have one gradient, given to the first
        for name, value in gradients[key].items():
            total[c.operation][name] = total[c.operation].get(name, 0) + value
    return total


def _added(uses: Sequence[Coupling], trace: Any, P: Any, PF: Mapping[str, Any], x: Any) -> tuple[Any, Any, Any]:
    """Blocks (None where nothing is remembered), inputs and factors that a window adds to a trace."""
    c = uses[0]
    dtype = jax.tree.leaves(trace)[0].dtype
    kept = slice(-1, None) if P is None else slice(None)  # without memory only the last step is still there
    # Each further use of a weight is so many more time steps to the sum.
    factors = _joined([PF[use.key][kept].astype(dtype) for use in uses])
    inputs = None if x[c.operation] is None else _joined([x[use.operation][kept] for use in uses])
    return None if P is None else spread(c.feed, P, 2).astype(dtype), inputs, factors


def _exit_one(
    plan: Plan, uses: Sequence[Coupling], trace: Any, P: Any, PF: Mapping[str, Any], x: Any, weights: Operands
) -> Any:
    c = uses[0]
    rule, params = c.rule, plan.operations[c.operation].eqn.params
    blocks, inputs, factors = _added(uses, trace, P, PF, x)
    if blocks is None:
        added = rule.accumulate(inputs, factors, weights[c.operation], params)
        return jax.tree.map(lambda old, value: value.astype(old.dtype), trace, added)
    return rule.advance(trace, blocks, inputs, factors, weights[c.operation], params)


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
