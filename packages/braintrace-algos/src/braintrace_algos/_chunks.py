"""The gradient of a sequence by a step function that takes windows of several steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._driver import scan_windows, without_unit
from ._errors import LearnerError
from ._functional import StatefulProgram
from ._once import final
from ._outside import Untouched, refuse_reads, warn_of_foreign_parameters
from ._progress import Progress
from ._recording import WindowCall, window_call


class ChunkDriver:
    """Online gradient of a user's losses, K of them from each call of `step_fn`; called like a `GradientDriver`.

    Parameters
    ----------
    learner : OnlineLearner
    step_fn : callable
        ``step_fn(*windows)`` calls the learner on a `MultiStepData` and returns K losses, or (losses, aux).
    has_aux : bool
    length : int
        K.
    sequences : pytree
        Example sequences.
    bar : Progress, optional
    """

    def __init__(
        self,
        learner: Any,
        step_fn: Callable[..., Any],
        has_aux: bool,
        length: int,
        sequences: Any,
        bar: Progress | None,
    ):
        self.length, self.bar = length, bar
        T = jax.tree.leaves(sequences)[0].shape[0]

        def of_length(K: int) -> StatefulProgram:
            def losses(window: Any, scales: Any) -> Any:
                untouched = Untouched(learner.plan) if learner.plan.carry.remembers else None
                with window_call(learner, WindowCall(scales, untouched)):
                    out = step_fn(*window)
                if untouched is not None:
                    untouched.require()
                losses, aux = out if has_aux else (out, None)
                losses = without_unit(losses)
                _check_losses(losses, K)
                return losses, aux

            examples = jax.tree.map(lambda v: v[:K], sequences), jnp.ones(K)
            program = StatefulProgram(losses, dict(learner.param_states), *examples)
            if learner.plan.carry.remembers:
                refuse_reads(learner.plan, program)
            warn_of_foreign_parameters(program)
            return program

        self.programs = {K: of_length(K) for K in {min(length, T), T % length} if K}
        # Values travel in the order in which the states are met: by identity, each run would make another program.
        self.states = list({id(s): s for program in self.programs.values() for s in program.others}.values())
        self.run = jax.jit(self.gradient)

    def fits(self) -> bool:
        """Whether the states still have the shapes that the driver was traced with."""
        return all(program.fits() for program in self.programs.values())

    def __call__(self, sequences: Any, scales: Any) -> tuple[dict[Any, Any], Any, Any]:
        """Gradients by path, losses and aux; states and traces advance."""
        theta, _ = next(iter(self.programs.values())).read()
        values = [state.value for state in self.states]
        grads, losses, aux, values = self.run(theta, values, sequences, scales)
        for state, value in zip(self.states, values, strict=True):
            state.value = value
        return grads, losses, aux

    def gradient(self, theta: dict[Any, Any], values: list[Any], sequences: Any, scales: Any) -> Any:
        """The pure function behind a call."""
        place = {id(state): i for i, state in enumerate(self.states)}

        def chunk(carry, steps):
            values, total = carry
            window, scales = steps
            program = self.programs[len(scales)]
            own = [place[id(s)] for s in program.others]

            def objective(theta):
                (losses, aux), new = program(theta, [values[i] for i in own], window, scales)
                return (losses * scales.astype(losses.dtype)).sum(), (losses, aux, new)

            grads, (losses, aux, new) = jax.grad(objective, has_aux=True)(theta)
            if self.bar is not None:
                self.bar.advance(losses)
            fresh = dict(zip(own, new, strict=True))
            values = [fresh.get(i, value) for i, value in enumerate(values)]
            return (values, jax.tree.map(jnp.add, total, grads)), (losses, aux)

        start = (values, jax.tree.map(jnp.zeros_like, theta))
        (values, grads), (losses, aux) = scan_windows(chunk, start, (sequences, scales), self.length)
        return final(grads), losses, aux, values


def _check_losses(losses: Any, K: int) -> None:
    if jnp.shape(losses) != (K,):
        raise LearnerError(
            "With chunk_size, step_fn returns one loss for each step of its window.",
            where="step_fn",
            found=f"shape {jnp.shape(losses)}",
            expected=f"shape ({K},)",
            fix="reduce over all axes but the first, for example with .mean(axis=(1, 2))",
        )
