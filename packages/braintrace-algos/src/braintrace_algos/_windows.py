"""A window of K steps as one differentiable call of a learner."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_compiler import Arguments, StateKind

from ._checks import check_arguments
from ._errors import LearnerError
from ._fold import exit_of_window, fold, no_cotangent, signals_of, signals_of_steps
from ._fold_types import Window
from ._once import final
from ._plan import Plan
from ._recording import active_recording, active_window_call
from ._sequence import sequence_length
from ._step import run_step


def run_window(learner: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run `learner` over a window and return its outputs, stacked over time.

    Parameters
    ----------
    learner : OnlineLearner
    args, kwargs
        Leaves of shape (K, ...); static ones as they are.
    """
    if active_recording(learner) is not None:
        raise LearnerError(
            "Here step_fn is given one time step, so it cannot call the learner on a window.",
            where="learner(MultiStepData(...))",
            fix="pass chunk_size=K to etrace_grad, and step_fn gets windows of K steps",
        )
    arguments, data = Arguments.split(args, kwargs)
    data = [jnp.asarray(v) for v in data]
    sequence_length(data)
    first = check_arguments(learner.plan, *arguments.join([v[0] for v in data]))
    leaves = [v.astype(one.dtype) for v, one in zip(data, first, strict=True)]
    return learner._compiled("window", functools.partial(_window, learner), *leaves)


def _window(learner: Any, *inputs: Any) -> Any:
    """The window's outputs, differentiable; hidden states and traces advance to its exit."""
    leaves = list(inputs)
    plan, traces, stop = learner.plan, learner.etraces.value, jax.lax.stop_gradient
    run = _Differentiable(plan, learner.vjp_method == "single-step")
    theta = plan.parameter_leaves()
    weights = plan.weights(theta)
    moving = [s for s in plan.states if s.kind is not StateKind.PARAMETER]
    values = [jax.tree.leaves(s.state.value) for s in moving]
    call = active_window_call(learner)
    if call.untouched is not None:
        call.untouched.require()
    scale = jnp.ones(leaves[0].shape[0]) if call.scales is None else call.scales
    (outputs, new), tape = run(theta, weights, stop(traces), stop(values), scale, leaves)
    learner.etraces.value = run.exit(stop(tape), stop(traces), stop(weights), stop(theta), scale)
    for info, of_state in zip(moving, new, strict=True):
        info.state.value = jax.tree.unflatten(info.treedef, of_state)
    if call.untouched is not None:
        call.untouched.renew()
    learner.running_index.value = learner.running_index.value + leaves[0].shape[0]
    return jax.tree.unflatten(learner.graph.module_info.out_tree, outputs)


class _Differentiable:
    """The steps of a window as one function, in reverse mode by the fold.

    It takes parameters, weights, traces, the values of the other states, the weights of the losses and the arguments,
    and gives outputs and new values, and the tape. Its derivative sees the weights by one contraction over the window,
    and the past by the traces, which are read and written once. The window is differentiated as a whole, or every step
    with its entry state held fixed (`strict`).
    """

    def __init__(self, plan: Plan, strict: bool):
        self.plan, self.strict = plan, strict
        self.hidden = {id(s.state): i for i, s in enumerate(plan.graph.module_info.hidden)}
        self.window = jax.custom_vjp(self.plain)
        self.window.defvjp(self.forward, self.backward)

    def __call__(self, *args: Any) -> Any:
        return self.window(*args)

    def nothing(self, xs: list[Any]) -> tuple[list[Any], list[Any]]:
        """Zeros, whose cotangents are the signals, those of each step or those at entry; and b of each step."""
        zeros, K = self.plan.zero_perturbations(), xs[0].shape[0]
        b = _repeated(zeros.deltas, K)
        if not self.strict:
            return zeros.previous, b
        return _repeated(zeros.previous if self.plan.signal == "past" else zeros.new, K), b

    def fold(self, tape: Any, signals: Any, b: list[Any], traces: Any, weights: Any, theta: Any, scale: Any) -> Any:
        """Gradients and the carry at the exit, from what the window's derivative gives."""
        plan, tape = self.plan, jax.lax.stop_gradient(tape)
        if not self.strict:
            return fold(plan, Window(tape, b, {}, scale), traces, weights, theta, signals_of(plan, signals, weights))
        window = Window(tape, b, signals_of_steps(plan, signals, weights), scale)
        return fold(plan, window, traces, weights, theta)

    def exit(self, tape: Any, traces: Any, weights: Any, theta: Any, scale: Any) -> Any:
        """The carry at the exit, which waits for no signal."""
        plan, zeros = self.plan, self.plan.zero_perturbations()
        b = _repeated(zeros.deltas, scale.shape[0])
        entry = signals_of(plan, zeros.previous, weights)
        return exit_of_window(plan, Window(tape, b, {}, scale), traces, weights, theta, entry)

    def run(self, theta: Any, xs: list[Any], signals: Any, deltas: list[Any], weights: Any, values: Any) -> Any:
        """Outputs and new values, and the tape."""
        plan, zeros = self.plan, self.plan.zero_perturbations()
        parameters, own = iter(theta), iter(values)
        fixed, entry = [], []
        # What no step changes is left as it is, and so is no part of what is carried: see `GradientDriver._of_window`.
        others = (s for s in plan.states if s.kind is not StateKind.PARAMETER)
        followed = [s.unchanged or (not self.strict and s.kind is StateKind.HIDDEN) for s in others]
        for info in plan.states:
            if info.kind is StateKind.PARAMETER:
                fixed.append([next(parameters) for _ in info.invars])
                continue
            at = None if self.strict else self.hidden.get(id(info.state))
            entry.append([v if at is None else v + signals[at] for v in next(own)])

        K = len(xs[0])

        def step(moving, inputs):
            x, deltas, signal = inputs
            perturbations = zeros._replace(deltas=deltas)
            moving = [v if follow else jax.lax.stop_gradient(v) for v, follow in zip(moving, followed, strict=True)]
            if self.strict:
                perturbations = perturbations._replace(**{"previous" if plan.signal == "past" else "new": signal})
            one, other = iter(fixed), iter(moving)
            states = [next(one if s.kind is StateKind.PARAMETER else other) for s in plan.states]
            result = run_step(plan, x, states, weights, perturbations, K)
            new = [v for s, v in zip(plan.states, result.states, strict=True) if s.kind is not StateKind.PARAMETER]
            return new, (result.outputs, plan.carry.of_step(plan.carry.observe(plan, result)))

        new, (outputs, tape) = plan.scan(K)(step, entry, (xs, deltas, signals if self.strict else None))
        return (outputs, new), plan.carry.of_window(plan, tape, entry)

    def plain(self, theta: Any, weights: Any, traces: Any, values: Any, scale: Any, xs: list[Any]) -> Any:
        """The window."""
        return self.run(theta, xs, *self.nothing(xs), weights=weights, values=values)

    def forward(self, theta: Any, weights: Any, traces: Any, values: Any, scale: Any, xs: list[Any]) -> Any:
        """The window, and what its derivative needs."""

        def seen(*changing):
            return self.run(*changing, weights=weights, values=values)

        out, pull, tape = jax.vjp(seen, theta, xs, *self.nothing(xs), has_aux=True)
        return (out, tape), (pull, tape, theta, weights, traces, values, scale)

    def backward(self, saved: Any, cotangents: Any) -> Any:
        """Cotangents of what the window takes."""
        pull, tape, theta, weights, traces, values, scale = saved
        direct, of_xs, signals, b = pull(cotangents[0])
        of_weights, past, _ = self.fold(tape, signals, b, traces, weights, theta, scale)
        of_theta = [d + p for d, p in zip(direct, past, strict=True)] if past else direct
        return *final((of_theta, of_weights)), *jax.tree.map(no_cotangent, (traces, values, scale)), of_xs


def _repeated(values: list[Any], K: int) -> list[Any]:
    """Zeros for each of K steps."""
    return [jnp.zeros((K, *v.shape), v.dtype) for v in values]
