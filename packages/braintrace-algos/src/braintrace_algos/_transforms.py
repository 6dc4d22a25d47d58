"""Calls of a learner from inside of JAX's transformations: what cannot follow its states is refused in words."""

from collections.abc import Callable
from typing import Any

import brainstate

from braintrace_compiler import StateKind
from braintrace_primitives._jax_compat import is_mapped

from ._errors import LearnerError


def in_trace(learner: Any, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, which writes the states of a learner.

    Raises
    ------
    LearnerError
        If the arguments are mapped and the states are not, or if nobody follows what is written. The states are as
        before then.
    """
    hidden = [s.state for s in learner.plan.graph.module_info.hidden]
    if is_mapped(args) and not any(is_mapped(state.value) for state in hidden):
        raise LearnerError(
            "A learner is mapped as a whole: each copy has hidden states and traces of its own.",
            where="learner(*args) under vmap",
            found="inputs with a mapped axis, and hidden states without",
            expected="one call on the whole batch",
            fix="ETraceVmap(learner, batch_size), or compile(..., batch_size=B, vmap=True); "
            "jax.vmap takes the pure functions of learner.functional()",
        )
    moving = [s.state for s in learner.plan.states if s.kind is not StateKind.PARAMETER]
    held = [(state, state.value) for state in (*moving, learner.etraces, learner.running_index)]
    try:
        return function(*args)
    except brainstate.TraceContextError as error:
        for state, value in held:
            state.value = value
        raise LearnerError(
            "JAX's own transformations do not follow what a learner writes into its states.",
            where="learner(*args)",
            found="a call under jax.grad, jax.jit, jax.lax.scan, or the like",
            expected="one under brainstate.transform.grad, jit, for_loop, ...: brainstate.transform.grad(function)(x) "
            "differentiates by an input",
            fix="take these, or learner.functional(), the pure functions of which JAX's transformations take",
        ) from error
