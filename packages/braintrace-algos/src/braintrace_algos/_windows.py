"""A window of K steps as one differentiable call of a learner."""

from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_compiler import Arguments, StateKind

from ._checks import check_arguments
from ._errors import LearnerError
from ._fold import fold, no_cotangent
from ._fold_types import Window
from ._plan import Plan
from ._recording import active_recording
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
    K = sequence_length(data)
    first = check_arguments(learner.plan, *arguments.join([v[0] for v in data]))
    leaves = [v.astype(one.dtype) for v, one in zip(data, first, strict=True)]
    if learner.vjp_method == "single-step":

        def step(*slices: Any) -> Any:
            args, kwargs = arguments.join(slices)
            return learner(*args, **kwargs)

        return brainstate.transform.for_loop(step, *leaves)
    outputs = _whole_window(learner, leaves)
    learner.running_index.value = learner.running_index.value + K
    return jax.tree.unflatten(learner.graph.module_info.out_tree, outputs)


def _whole_window(learner: Any, leaves: list[Any]) -> list[Any]:
    """The window's outputs, differentiable as a whole; hidden states and traces advance to its exit."""
    plan, traces, stop = learner.plan, learner.etraces.value, jax.lax.stop_gradient
    theta = plan.parameter_leaves()
    weights = plan.weights(theta)
    values = [jax.tree.leaves(s.state.value) for s in plan.states if s.kind is not StateKind.PARAMETER]
    (outputs, new), tape = _differentiable(plan)(theta, weights, stop(traces), stop(values), leaves)
    zeros = plan.zero_perturbations()
    window = _recorded(tape, [jnp.zeros((leaves[0].shape[0], *v.shape), v.dtype) for v in zeros.deltas])
    entries = plan.signals(zeros.previous, weights)
    learner.etraces.value = fold(plan, window, stop(traces), stop(weights), stop(theta), entries)[2]
    moving = [s for s in plan.states if s.kind is not StateKind.PARAMETER]
    for info, of_state in zip(moving, new, strict=True):
        info.state.value = jax.tree.unflatten(info.treedef, of_state)
    return outputs


def _recorded(tape: Any, b: list[Any]) -> Window:
    """A window whose past enters as a whole."""
    return Window(jax.lax.stop_gradient(tape), b, {}, jnp.ones(jax.tree.leaves(b)[0].shape[0]))


def _differentiable(plan: Plan) -> Callable[..., Any]:
    """The steps of a window as one function, in reverse mode by the fold.

    It takes parameters, weights, traces, the values of the other states and the arguments, and gives outputs and new
    values, and the tape. Its derivative sees the weights by one contraction over the window, and the past by the traces.
    """
    hidden = {id(s.state): i for i, s in enumerate(plan.graph.module_info.hidden)}

    def run(theta, xs, previous, deltas, weights, values):
        parameters, own = iter(theta), iter(values)
        fixed, entry = [], []
        for info in plan.states:
            if info.kind is StateKind.PARAMETER:
                fixed.append([next(parameters) for _ in info.invars])
                continue
            at = hidden.get(id(info.state))
            entry.append([v if at is None else v + previous[at] for v in next(own)])

        def step(moving, inputs):
            x, deltas = inputs
            one, other = iter(fixed), iter(moving)
            states = [next(one if s.kind is StateKind.PARAMETER else other) for s in plan.states]
            result = run_step(plan, x, states, weights, zeros._replace(deltas=deltas))
            new = [v for s, v in zip(plan.states, result.states, strict=True) if s.kind is not StateKind.PARAMETER]
            return new, (result.outputs, plan.carry.observe(plan, result))

        zeros = plan.zero_perturbations()
        new, (outputs, tape) = jax.lax.scan(step, entry, (xs, deltas))
        return (outputs, new), tape

    def zero_deltas(xs):
        K = xs[0].shape[0]
        return [jnp.zeros((K, *v.shape), v.dtype) for v in plan.zero_perturbations().deltas]

    @jax.custom_vjp
    def window(theta, weights, traces, values, xs):
        return run(theta, xs, plan.zero_perturbations().previous, zero_deltas(xs), weights, values)

    def forward(theta, weights, traces, values, xs):
        def seen(*changing):
            return run(*changing, weights, values)

        previous = plan.zero_perturbations().previous
        out, pull, tape = jax.vjp(seen, theta, xs, previous, zero_deltas(xs), has_aux=True)
        return (out, tape), (pull, tape, theta, weights, traces, values)

    def backward(saved, cotangents):
        pull, tape, theta, weights, traces, values = saved
        direct, of_xs, q, b = pull(cotangents[0])
        of_weights, past, _ = fold(plan, _recorded(tape, b), traces, weights, theta, plan.signals(q, weights))
        of_theta = [d + p for d, p in zip(direct, past, strict=True)] if past else direct
        return of_theta, of_weights, *jax.tree.map(no_cotangent, (traces, values)), of_xs

    window.defvjp(forward, backward)
    return window
