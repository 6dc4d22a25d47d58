"""A learner as pure functions on pytrees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_compiler import Arguments

from ._call_checks import check_loss_function
from ._checks import check_arguments, check_choice, check_environment
from ._driver import GradientDriver
from ._errors import LearnerError
from ._functional import StatefulProgram
from ._sequence import check_mask, sequence_length

Parameters = dict[Any, Any]
"""Path -> value."""
LearnerState = dict[str, Any]
"""Hidden and other states, traces and step counter, by name."""


class FunctionalLearner:
    """A learner as pure functions; made by `OnlineLearner.functional`.

    ``init``, ``step`` and ``fold`` take and return pytrees and change nothing, so that they work under plain
    ``jax.jit``, ``jax.lax.scan``, ``jax.vmap`` and ``jax.grad``, whatever wrote the training loop around them.

    Examples
    --------
    >>> import brainstate, jax, jax.numpy as jnp
    >>> from braintrace_algos import compile
    >>> from braintrace_primitives import matmul
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
    ...         return self.h.value
    >>> face = compile(Leaky(), "d_rtrl", jnp.zeros(2)).functional()
    >>> params, state = face.init()
    >>> state, outputs = jax.lax.scan(lambda state, x: face.step(params, state, x)[::-1], state, jnp.ones((4, 2)))
    >>> outputs[:, 0].tolist()
    [2.0, 3.0, 3.5, 3.75]
    """

    def __init__(self, learner: Any):
        self._learner = learner
        info = learner.plan.graph.module_info
        batch = learner.plan.batch
        lead = () if batch is None else (batch,)
        leaves = [jnp.zeros((*lead, *v.aval.shape), v.aval.dtype) for v in info.arg_invars]
        self._arguments = info.arguments
        args, kwargs = info.arguments.join(leaves)
        self._inputs = sum(bool(Arguments.split([value], {})[1]) for value in (*args, *kwargs.values()))
        self._program = StatefulProgram(self._call, learner.param_states, *leaves)
        self._names = {id(state): name for name, state in learner._saved_states().items()}
        params, values = self._program.read()
        self._start = params, self._named(self._program, values)

    def _call(self, *data: Any) -> Any:
        args, kwargs = self._arguments.join(data)
        return self._learner(*args, **kwargs)

    def init(self) -> tuple[Parameters, LearnerState]:
        """Parameters and state of the learner as they were when this face was made.

        They are copies, which compiled code may be given for good (``donate_argnums``).
        """
        return jax.tree.map(jnp.copy, self._start)

    def step(self, params: Parameters, state: LearnerState, *args: Any, **kwargs: Any) -> tuple[Any, LearnerState]:
        """One time step.

        Parameters
        ----------
        params, state : pytrees
            As from `init`.
        *args, **kwargs
            Inputs of one step, shaped as in `compile`.

        Returns
        -------
        output, state
            Under ``jax.grad`` with respect to `params`, a loss of the output has its online gradient.
        """
        check_environment(self._learner.plan)
        data = check_arguments(self._learner.plan, args, kwargs)
        output, values = self._program(params, self._values(self._program, state), *data)
        return output, {**state, **self._named(self._program, values)}

    def fold(
        self,
        params: Parameters,
        state: LearnerState,
        *sequences: Any,
        loss: Callable[..., Any],
        mask: Any = None,
        reduction: str = "mean",
        fold: int | str | None = None,
    ) -> tuple[Parameters, Any, LearnerState]:
        """The online gradient over a sequence, by windows.

        Parameters
        ----------
        params, state : pytrees
            As from `init`.
        *sequences : pytrees
            Leaves of shape (T, ...): the inputs of the model first, those that it takes by keyword in alphabetical
            order, then what `loss` takes beside its output. Static arguments are those of `compile`.
        loss : callable
            ``loss(output, *targets)`` gives the scalar loss of one step.
        mask : array of shape (T,), optional
        reduction : {"mean", "sum"}
        fold : int or "auto", optional
            As in `etrace_grad`.

        Returns
        -------
        grads, losses, state
            Gradients structured like `params`, losses (T,), and the state after the sequence.
        """
        check_choice("reduction", reduction, ("mean", "sum"))
        learner, n = self._learner, self._inputs
        sequences = jax.tree.map(jnp.asarray, sequences)
        T = sequence_length(sequences)
        check_loss_function(loss, len(sequences) - n)
        mask = check_mask(mask, T)
        scales = mask / jnp.maximum(mask.sum(), 1) if reduction == "mean" else mask

        def step_fn(*slices: Any) -> Any:
            return loss(self._call(*jax.tree.leaves(slices[:n])), *slices[n:])

        driver = GradientDriver(learner, step_fn, False, learner._fold_length(fold, T), sequences, None)
        traces = self._names[id(learner.etraces)]
        values = self._values(driver.step, state)
        grads, losses, _, values, new = driver.gradient(params, values, state[traces], sequences, scales)
        return grads, losses, {**state, **self._named(driver.step, values), traces: new}

    def _named(self, program: StatefulProgram, values: list[Any]) -> LearnerState:
        return {self._names[id(s)]: value for s, value in zip(program.others, values, strict=True)}

    def _values(self, program: StatefulProgram, state: LearnerState) -> list[Any]:
        names = [self._names[id(s)] for s in program.others]
        missing = [name for name in names if name not in state]
        if missing:
            raise LearnerError(
                "This is not a whole state of the learner.",
                where="functional(), state",
                found="nothing for " + ", ".join(missing),
                expected="what init() gives, or the state that step or fold returned",
            )
        return [state[name] for name in names]
