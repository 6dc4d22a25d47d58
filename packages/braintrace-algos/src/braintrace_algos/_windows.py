"""A window of K steps as one differentiable call of a learner."""

from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_compiler import Arguments, StateKind

from ._checks import check_arguments
from ._errors import LearnerError
from ._fold import fold, recall
from ._fold_types import Window
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
    weights, zeros = plan.weights(theta), plan.zero_perturbations()
    hidden = {id(s.state): i for i, s in enumerate(plan.graph.module_info.hidden)}
    past = recall(plan, traces, weights, theta)

    def at_entry(info: Any) -> list[Any]:
        values = jax.tree.leaves(info.state.value)
        if info.kind is StateKind.PARAMETER:
            return values
        at = hidden.get(id(info.state))
        return stop(values) if at is None else [stop(v) + past[at] for v in values]

    parameters = {i for i, info in enumerate(plan.states) if info.kind is StateKind.PARAMETER}
    entry = [at_entry(info) for info in plan.states]

    def step(moving, x):
        states = [own if i in parameters else moving[i] for i, own in enumerate(entry)]
        result = run_step(plan, x, states, weights, zeros)
        new = {i: values for i, values in enumerate(result.states) if i not in parameters}
        return new, (result.outputs, plan.carry.observe(plan, result))

    start = {i: values for i, values in enumerate(entry) if i not in parameters}
    new, (outputs, tape) = jax.lax.scan(step, start, leaves)
    K = leaves[0].shape[0]
    nothing = jax.tree.map(lambda v: jnp.zeros((K, *v.shape), v.dtype), zeros.deltas)
    window = Window(stop(tape), nothing, {}, jnp.ones(K))
    entries = plan.signals(zeros.previous, weights)
    learner.etraces.value = fold(plan, window, stop(traces), stop(weights), stop(theta), entries)[2]
    for i, values in new.items():
        plan.states[i].state.value = jax.tree.unflatten(plan.states[i].treedef, values)
    return outputs
