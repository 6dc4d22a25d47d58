"""Eligibility traces: one for each marked operation and hidden group that it drives."""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from braintrace_algos._entries import full, matrix, stacked
from braintrace_algos._factored_rules import (
    FactoredTraceRule,
    RecentStepsTraceRule,
    TruncatedTraceRule,
    WaitingTraceRule,
)
from braintrace_algos._feeds import collect, feed_shape, spread
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._foreign_rules import check_trace
from braintrace_algos._led_rule import LedTraceRule, factored_places
from braintrace_algos._local import Blocks, Followed, blocks_of, derivatives_of, with_local
from braintrace_algos._plan import Coupling, Operands, Plan
from braintrace_algos._sizes import tree_bytes
from braintrace_algos._step import StepResult, Tape, tape_of
from braintrace_algos._truncation import CarryChoice, TruncatedTrace
from braintrace_compiler import ETraceGraph, LinearMemory
from braintrace_compiler._constant_factors import factored_states, outlasts_step, reaches
from braintrace_primitives import TraceRule
from braintrace_primitives._precision import computed_in

from ._base import Carry
from ._exits import additions, exit_of, left_behind, received
from ._meeting import Meeting
from ._norms import window_norms
from ._recursion import Recursion, past_signals, state_signals


class TraceCarry(Carry):
    """The carry of D-RTRL: e^t = D^t e^{t-1} + F^t ∂y/∂w, B · I · O · S numbers for a dense operation."""

    remembers = True
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
        self.check_rules(plan)
        if self.factors:
            empty = self._always_zero(plan)
            plan = plan._replace(couplings=tuple(c for c in plan.couplings if c.trace not in empty))
            found = {index: Followed.of(plan, index) for index in plan.traced if plan.signal == "past"}
            plan = plan._replace(followed={index: followed for index, followed in found.items() if followed})
        rules = self._exact_rules(plan) if self.factors else {}
        for key, (c, *others) in plan.traces.items():
            kept = self.choice.for_operation(plan.operations[c.operation])
            if kept is None or plan.operations[c.operation].x_var is None:
                continue
            exact = rules.get(key, c.rule)
            short = TruncatedTraceRule(c.rule, 1 + len(others), kept.steps, exact)
            if tree_bytes(self._zeros(plan, c, short)) < tree_bytes(self._zeros(plan, c, exact)):
                rules[key] = short
        plan = plan._replace(couplings=tuple(c._replace(rule=rules.get(c.trace, c.rule)) for c in plan.couplings))
        return with_local(plan, self.derivatives_of)

    def check_rules(self, plan: Plan) -> None:
        """Refuse trace rules of users that do not fit their operations."""
        for c, *_ in plan.traces.values():
            operation = plan.operations[c.operation]
            shape, S = feed_shape(c.feed, operation.y_var.aval.shape), self.num_states(plan, c.group)
            check_trace(operation, c.rule, shape, S)

    def derivatives_of(self, plan: Plan, group: int) -> tuple[tuple[Any, ...], Callable[..., Blocks]]:
        """The variables of the step that D and F of a group depend on, and the function that makes them of these."""
        return derivatives_of(plan, group)

    def _exact_rules(self, plan: Plan) -> dict[str, TraceRule]:
        """Rules of the traces that are proven to factorise, in part or whole."""
        rules: dict[str, TraceRule] = {}
        for key, (c, *others) in plan.traces.items():
            transition, operation = plan.transitions[c.group], plan.operations[c.operation]
            slots, followed = [c.slot, *(use.slot for use in others)], plan.followed.get(c.group)
            live, has_input, rule = plan.live[c.group], operation.x_var is not None, c.rule
            places = factored_states(transition, slots, c.feed, operation, live)
            if followed is not None:
                places = tuple(followed.leaders.index(place) for place in places if place in followed.leaders)
            if places:
                rule = FactoredTraceRule(c.rule, places)
            elif has_input and not (plan.memories_of(c.group) or outlasts_step(transition, slots, live)):
                rules[key] = RecentStepsTraceRule(c.rule, len(slots))
                continue
            if followed is not None:
                around = not followed.states.direct.isdisjoint(slots)
                if around and not has_input:
                    continue  # as small as what would be kept in its place
                latest = RecentStepsTraceRule(c.rule, len(slots)) if around else None
                rule = LedTraceRule(rule, followed.leaders, followed.followers, latest, operation.weight_vars)
            if rule is not c.rule:
                rules[key] = rule
        return rules

    def _always_zero(self, plan: Plan) -> set[str]:
        """Traces of operations that reach no state whose past meets a signal, such as the output gate of an LSTM."""
        if plan.signal != "past":
            return set()
        return {
            key
            for key, uses in plan.traces.items()
            for group in [uses[0].group]
            if not plan.memories_of(group)
            and not reaches(plan.transitions[group], [use.slot for use in uses], plan.live[group])
        }

    def remarks(self, plan: Plan) -> list[str]:
        found = [
            f"The trace of {followed.names[0]} is made of that of {followed.names[1]} where it is asked for, exactly: "
            "none is kept."
            for followed in plan.followed.values()
        ]
        for key, (c, *_) in plan.traces.items():
            if places := factored_places(c.rule):
                names = ", ".join(plan.live_names(c.group, places))
                found.append(
                    f"D and F into {names} are constants: that part of the trace {key} is kept as filtered inputs, "
                    "exactly."
                )
        return found

    def meeting(self, plan: Plan) -> Meeting | None:
        if plan.signal == "past" and type(self) is TraceCarry:  # D of a variant is not that of the step
            return Meeting.instead(plan)
        return super().meeting(plan)

    def joins_windows(self, plan: Plan) -> bool:
        return type(self) is TraceCarry and not _short(plan)  # one cut short remembers the whole of what is folded

    def observe(self, plan: Plan, result: StepResult) -> Any:
        return tape_of(plan, result)

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        """Zero traces by key, at least in single precision unless `dtype` says otherwise."""
        traces = {key: self._zeros(plan, c, c.rule, dtype) for key, (c, *_) in plan.traces.items()}
        for index, followed in plan.followed.items():
            group, count = plan.transitions[index].group, (len(followed.followers), len(followed.leaders))
            traces[followed.key] = jax.ShapeDtypeStruct((*count, *group.varshape), group.dtype)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), traces)

    def _zeros(self, plan: Plan, c: Coupling, rule: TraceRule, dtype: Any = None) -> Any:
        """Shapes and dtypes of the trace of a coupling by some rule."""
        operation = plan.operations[c.operation]
        x, weights, y = operation.operand_types
        y = jax.ShapeDtypeStruct(feed_shape(c.feed, y.shape), y.dtype)
        precision = dtype or computed_in(y.dtype)
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
        waits: bool = True,
    ) -> Folded:
        """As for any carry; the traces at the exit are made after the signals are known where they are to wait."""
        tape, K = window.tape, len(window.scale)
        driving = {c.operation for c in plan.couplings} if plan.signal == "state" else ()
        g = [jnp.zeros_like(b) if k in driving else b for k, b in enumerate(window.b)]
        P, PF, signals = {}, {}, {}
        jacobian = {
            index: jax.vmap(lambda kept, i=index: _jacobian(plan, i, kept), axis_size=K)(tape.jacobian[index])
            for index in plan.followed
        }
        if entry is not None:
            assert all(len(entry[index]) == self.num_states(plan, index) for index in plan.traced)
            entry = _led(plan, carry, entry)
        before = {i: jnp.concatenate([carry[plan.followed[i].key][None], new[:-1]]) for i, new in jacobian.items()}
        for index in plan.traced:
            own = [c for c in plan.couplings if c.group == index]
            enter = None
            if entry is None:
                at = window.signals[index]
                if index in before:
                    at = plan.followed[index].led(at, before[index], 1)
                enter = (past_signals if plan.signal == "past" else state_signals)(at)
            recursion = self.recursion(plan, (tape.kept[index], before.get(index)), enter, K, index)
            R, M0 = received(own, recursion)
            positions, dtype = recursion.positions, recursion.dtype
            signals[index] = stacked(M0[0], positions, dtype) if entry is None else entry[index]
            if plan.local[index].pattern[0] is not None:
                P[index] = matrix(M0[1:], positions, dtype)
            for c in own:
                sent, *left = R[c.key]
                shape, PF[c.key] = left_behind(plan, c, recursion, left)
                if entry is None:
                    sent = collect(
                        c.feed, full(sent, shape, PF[c.key].dtype), plan.operations[c.operation].y_var.aval.shape
                    )
                    g[c.operation] = g[c.operation] + sent.astype(g[c.operation].dtype)
        x = list(tape.x)
        for c, xs, gs in self._kept(plan, carry, signals):
            x[c.operation] = jnp.concatenate([xs.astype(x[c.operation].dtype), x[c.operation]])
            g[c.operation] = jnp.concatenate([gs.astype(g[c.operation].dtype), g[c.operation]])
        past, new = self._turn(_whole(plan), carry, signals, P, PF, tape.x, weights, waits)
        new |= {followed.key: jacobian[index][-1] for index, followed in plan.followed.items()}
        short = _short(plan)
        new |= {k: exit_of(plan, uses, carry[k], P[uses[0].group], PF, tape.x, weights) for k, _, uses in short}
        return Folded(x, g, past, self._bounded(plan, carry, new, tape.kept, before, K))

    def exit(
        self, plan: Plan, window: Window, carry: Any, weights: Operands, theta: list[Any], entry: Mapping[int, Any]
    ) -> Any:
        return self.window(plan, window, carry, weights, theta, entry, waits=False).carry

    def _kept(self, plan: Plan, carry: Any, signals: Mapping[int, Any]) -> Iterator[tuple[Coupling, Any, Any]]:
        """The steps that are kept by traces, by use of the weight: inputs (R, *x), and what outputs receive (R, *y)."""
        for key, uses in plan.traces.items():
            if isinstance(rule := uses[0].rule, (TruncatedTraceRule, WaitingTraceRule)):
                xs, sent = rule.sent(carry[key], _signal_of(uses[0], carry[key], signals))
                for i, use in enumerate(uses):
                    yield use, xs[i], collect(use.feed, sent[i], plan.operations[use.operation].y_var.aval.shape)

    def recursion(
        self, plan: Plan, steps: tuple[Any, Any], signals: tuple[Any, Any] | None, K: int, index: int
    ) -> Recursion:
        """M^t of a group over K steps; its row of signals where they are given.

        `steps` is what they kept for D and F, and J of the step before each where some states follow from others.
        """
        group, local, followed = plan.transitions[index].group, plan.local[index], plan.followed.get(index)
        pattern = local.pattern[0] if followed is None else followed.passed_on(local.pattern[0])

        def blocks(step: Any) -> Blocks:
            kept, jacobian = step
            D, F = local.blocks(kept)
            return D if followed is None else followed.passed_on(D, jacobian), F

        return Recursion(pattern, steps, blocks, signals, K, self.num_states(plan, index), group.varshape, group.dtype)

    def entry_gradient(
        self, plan: Plan, carry: Any, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        assert all(len(signals[index]) == self.num_states(plan, index) for index in plan.traced)
        signals = _led(plan, carry, signals)
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
        waits: bool,
    ) -> tuple[list[dict[str, Any]], Any]:
        """`entry_gradient` and `_exit` of a window at once: a rule may need one pass for both.

        Where the exit `waits` for the signals, XLA goes backwards on one core while it makes what a fold needs on
        another, and then writes a trace in its place.
        """
        past, new = {}, {}
        for key, uses in plan.traces.items():
            c, blocks = uses[0], P.get(uses[0].group)
            if blocks is None or not waits:
                past[key] = _contracted(plan, c, carry[key], signals, weights)
                new[key] = exit_of(plan, uses, carry[key], blocks, PF, x, weights)
            else:
                signal = _signal_of(c, carry[key], signals)
                added = additions(uses, carry[key], blocks, PF, x)
                past[key], new[key] = c.rule.turn(
                    carry[key], signal, *added, weights[c.operation], plan.operations[c.operation].eqn.params
                )
        return _by_operation(plan, past), new

    def advance(self, plan: Plan, tape: Tape, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        D, F = blocks_of(plan, tape.kept)
        before = {index: carry[followed.key] for index, followed in plan.followed.items()}
        D |= {index: plan.followed[index].passed_on(D[index], jacobian) for index, jacobian in before.items()}
        PF = {}
        for c in plan.traced_couplings:
            y = plan.operations[c.operation].y_var.aval
            PF[c.key] = stacked(F[c.key], feed_shape(c.feed, y.shape), y.dtype)[None]
        groups = {index: plan.transitions[index].group for index in D}
        P = {index: matrix(rows, groups[index].varshape, groups[index].dtype) for index, rows in D.items()}
        kept, x = jax.tree.map(lambda v: v[None], (tape.kept, tape.x))
        new = self._exit(plan, carry, P, PF, x, weights)
        new |= {followed.key: _jacobian(plan, index, tape.jacobian[index]) for index, followed in plan.followed.items()}
        before = {index: jacobian[None] for index, jacobian in before.items()}
        return self._bounded(plan, carry, new, kept, before, 1)

    def _bounded(
        self, plan: Plan, carry: Any, new: Any, kept: Mapping[int, Any], before: Mapping[int, Any], K: int
    ) -> Any:
        """The traces `new` at the exit of a window, those that are cut short with their bounds."""
        short = _short(plan)
        norms = {
            index: window_norms(self.recursion(plan, (kept[index], before.get(index)), None, K, index))
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
            key: exit_of(plan, uses, carry[key], P.get(uses[0].group), PF, x, weights)
            for key, uses in plan.traces.items()
        }


def _jacobian(plan: Plan, index: int, kept: Any) -> Any:
    """J of a group, (followers, leaders, *positions), from what a step left."""
    group = plan.transitions[index].group
    return matrix(plan.followed[index].jacobian.blocks(kept), group.varshape, group.dtype)


def _led(plan: Plan, carry: Any, signals: Mapping[int, Any]) -> Mapping[int, Any]:
    """Signals that meet the carry, as leaders of a group meet them."""
    led = {index: followed.led(signals[index], carry[followed.key]) for index, followed in plan.followed.items()}
    return {**signals, **led}


def _short(plan: Plan) -> list[tuple[str, TruncatedTraceRule, tuple[Coupling, ...]]]:
    """The traces that are cut short, with the uses of the weight."""
    traces = ((key, uses[0].rule, uses) for key, uses in plan.traces.items())
    return [(key, rule, uses) for key, rule, uses in traces if isinstance(rule, TruncatedTraceRule)]


def _whole(plan: Plan) -> Plan:
    """The plan of the other traces."""
    return plan._replace(couplings=tuple(c for c in plan.couplings if not isinstance(c.rule, TruncatedTraceRule)))


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
