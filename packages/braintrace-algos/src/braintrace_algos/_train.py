"""True online learning: the optimiser steps inside the compiled loop."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from braintrace_primitives._jax_compat import under_trace
from braintrace_primitives._trace_rule import unpacked

from ._call_checks import check_weights
from ._checks import check_choice, check_environment, check_state_shapes, check_steps
from ._driver import GradientDriver, scan_windows
from ._errors import LearnerError, LearnerTypeError
from ._optimizers import TransformationRule, UpdateRule, update_rule
from ._progress import Progress
from ._sequence import SequenceDrivers, as_array, check_mask, sequence_length
from ._waiting import Waiting

Callback = Callable[[int, float], Any]
"""Called with the number of time steps done and the mean loss since the last update."""


class History(NamedTuple):
    """What a training call leaves behind.

    Attributes
    ----------
    losses : array of shape (T,)
        Of each step, before the mask.
    aux : pytree
        What `step_fn` returned beside its losses, stacked over time; None without `has_aux`.
    """

    losses: Any
    aux: Any = None


class TrainingDriver:
    """A gradient driver and an update rule in one compiled loop.

    Parameters
    ----------
    driver : GradientDriver
        With the plan of `waiting`.
    waiting : Waiting
    rule : UpdateRule
    update_every : int
    mean : bool
        Whether the gradient of the steps between two updates is divided by the sum of their mask.
    masked : bool
        Whether steps without an unmasked loss may occur; they make no update.
    callbacks : sequence of Callback
    """

    def __init__(
        self,
        driver: GradientDriver,
        waiting: Waiting,
        rule: UpdateRule,
        update_every: int,
        mean: bool,
        masked: bool,
        callbacks: Sequence[Callback],
    ):
        self.driver, self.waiting, self.rule, self.bar = driver, waiting, rule, driver.bar
        self.update_every, self.mean, self.masked, self.callbacks = update_every, mean, masked, callbacks
        self.run = jax.jit(self._run)

    def fits(self) -> bool:
        """Whether the states still have the shapes that the driver was traced with."""
        return self.driver.fits()

    def __call__(self, sequences: Any, mask: Any) -> History:
        """Parameters, optimiser, states and traces advance."""
        driver, rule = self.driver, self.rule
        memory = [s.value for s in rule.states]
        (theta, values, traces, memory, _), history = self.run(*driver.read(), memory, sequences, mask)
        driver.write(values, traces)
        for path in self.rule.paths:
            driver.step.parameters[path].value = theta[path]
        for state, value in zip(rule.states, memory, strict=True):
            state.value = value
        return history

    def _run(self, theta: Any, values: Any, traces: Any, memory: Any, sequences: Any, mask: Any) -> Any:
        def chunk(carry, steps):
            theta, values, traces, memory, done = carry
            sequences, mask = steps
            norm = jnp.maximum(mask.sum(), 1) if self.mean else jnp.ones_like(mask.sum())
            grads, losses, aux, values, traces = self.driver.gradient(theta, values, traces, sequences, mask / norm)
            theta, memory = self._update({path: grads[path] for path in self.rule.paths}, theta, memory, mask)
            done = done + len(mask)
            if self.callbacks:
                jax.debug.callback(self._report, done, (losses * mask / norm).sum(), ordered=True)
            return (theta, values, traces, memory, done), History(losses, aux)

        def run(carry, steps):
            theta, values, traces, memory, done = carry
            carry = theta, values, self.waiting.begin(traces), memory, done
            (theta, values, held, memory, done), history = scan_windows(chunk, carry, steps, self.update_every)
            return (theta, values, self.waiting.end(held), memory, done), history

        start = (theta, values, self.waiting.packed(traces), memory, jnp.zeros((), jnp.int32))
        rest_first = self.waiting.steps > self.update_every  # behind the others XLA would copy the traces for it
        end, history = scan_windows(run, start, (sequences, mask), self.waiting.steps, rest_first)
        theta, values, packed, memory, done = end
        return (theta, values, unpacked(packed, traces), memory, done), history

    def _update(self, grads: Any, theta: Any, memory: Any, mask: Any) -> Any:
        def apply():
            new = self.rule.apply(grads, theta, memory)
            return jax.tree.map(lambda value, old: jnp.asarray(value, jnp.result_type(old)), new, (theta, memory))

        return jax.lax.cond(jnp.any(mask != 0), apply, lambda: (theta, memory)) if self.masked else apply()

    def _report(self, done: Any, loss: Any) -> None:
        for callback in self.callbacks:
            callback(int(done), float(loss))


class Training(SequenceDrivers):
    """The methods of a learner that change its parameters."""

    param_states: dict[Any, brainstate.State]
    etraces: Any
    _rule: Any = None

    def etrace_train(
        self,
        *sequences: Any,
        step_fn: Callable[..., Any],
        optimizer: Any,
        update_every: int = 1,
        mask: Any = None,
        weights: dict[Any, brainstate.State] | None = None,
        reduction: str = "mean",
        has_aux: bool = False,
        fold: int | str | None = None,
        progress: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Learn online: parameters are updated every `update_every` time steps, inside one compiled loop.

        Between updates the gradient is that of `etrace_grad`. Traces live on across updates, so they hold derivatives
        at the parameters of their time, as in any online rule. The optimiser's state stays with the learner from call
        to call, and goes into `save`.

        Parameters
        ----------
        *sequences : pytrees
            Leaves of shape (T, ...), sliced together.
        step_fn : callable
            As in `etrace_grad`: calls the learner once, returns the scalar loss of one time step.
        optimizer : object
            An Optax gradient transformation, or an optimiser of ``braintools.optim``. Pass the same object again
            to reuse the compiled loop; a warning tells where it is another one in call after call.
        update_every : int
            Steps between updates. Where it does not divide T, the steps that remain make an update of their own.
        mask : array of shape (T,), optional
            Weight of each step's loss. States and traces advance at every step; where all steps between two updates
            are masked, there is no update.
        weights : dict, optional
            Path -> parameter to learn; all parameters by default.
        reduction : {"mean", "sum"}
            Over the steps between two updates.
        has_aux : bool
        fold : int or "auto", optional
            As in `etrace_grad`.
        progress : bool
            Show a progress bar with the loss and the steps per second.
        callbacks : sequence of callable
            Each is called after every update as ``callback(step, loss)``: time steps done in this call, and the loss
            of the steps since the last update, reduced.

        Returns
        -------
        History
            ``losses`` (T,), each before the update that it leads to, and ``aux``.

        Raises
        ------
        LearnerError, LearnerTypeError
            If an argument does not fit. The learner is then as it was before the call.

        Examples
        --------
        >>> import brainstate, jax.numpy as jnp, optax
        >>> from braintrace_algos import compile
        >>> from braintrace_primitives import matmul
        >>> class Leaky(brainstate.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = brainstate.ParamState(jnp.zeros((2, 3)))
        ...     def init_state(self, batch_size=None):
        ...         self.h = brainstate.HiddenState(jnp.zeros(3))
        ...     def update(self, x):
        ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
        ...         return self.h.value
        >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros(2))
        >>> history = learner.etrace_train(
        ...     jnp.ones((40, 2)), step_fn=lambda x: ((learner(x) - 1) ** 2).mean(), optimizer=optax.sgd(0.1)
        ... )
        >>> bool(history.losses[-1] < 0.01 * history.losses[0])
        True
        """
        check_choice("reduction", reduction, ("mean", "sum"))
        check_steps("update_every", update_every)
        if callable(callbacks):
            raise LearnerTypeError(
                "`callbacks` must be a sequence.", where="etrace_train", found=repr(callbacks), expected="[callback]"
            )
        check_environment(self.plan)
        check_state_shapes(self.plan)
        sequences = jax.tree.map(as_array, sequences)
        T = sequence_length(sequences)
        masked = mask is not None
        mask = check_mask(mask, T)
        learning = check_weights(self.param_states, weights)
        rule = self._rule_of(optimizer, {path: self.param_states[path] for path in learning})
        length = self._fold_length(fold, min(update_every, T))

        bar = Progress(T, type(self).__name__) if progress else None

        def make():
            every = min(update_every, T)
            waiting = Waiting(self.plan, self.etraces.value, every, T)
            driver = GradientDriver(self, step_fn, has_aux, length, sequences, bar, waiting.plan, lasting=every)
            return TrainingDriver(driver, waiting, rule, every, reduction == "mean", masked, tuple(callbacks))

        options = (rule, update_every, reduction, masked, bool(callbacks), has_aux, length)
        driver = self._cached(make, step_fn, sequences, bar, *options)
        driver.callbacks = tuple(callbacks)
        history = self._driven(driver, sequences, mask)
        if callbacks:
            jax.effects_barrier()
        return history

    def init_optimizer(self, optimizer: Any, weights: dict[Any, brainstate.State] | None = None) -> None:
        """Start an optimiser afresh, forgetting what an earlier one remembered.

        `etrace_train` does so on its first call. Call it yourself to change to another optimiser, before `restore` in
        a new process, and before an `etrace_train` inside of a `jit`.

        Parameters
        ----------
        optimizer : object
            As in `etrace_train`.
        weights : dict, optional
            Path -> parameter to learn; all parameters by default.
        """
        if under_trace():
            raise LearnerError(
                "An optimiser cannot be started inside of compiled code.",
                where="init_optimizer",
                fix="call learner.init_optimizer(optimizer) once before, outside of jit",
            )
        parameters = dict(self.param_states if weights is None else weights)
        if isinstance(self._rule, TransformationRule) and self._rule.serves(optimizer, parameters):
            self._rule.restart(parameters)
        else:
            self._rule = update_rule(optimizer, parameters)

    @property
    def optimizer_states(self) -> tuple[brainstate.State, ...]:
        """The states of the optimiser that `etrace_train` steps; empty before its first call."""
        return () if self._rule is None else tuple(self._rule.states)

    def _rule_of(self, optimizer: Any, parameters: dict[Any, brainstate.State]) -> UpdateRule:
        """The update rule of `optimizer`, going on with the state that the learner keeps."""
        if self._rule is None:
            self.init_optimizer(optimizer, parameters)
        rule: Any = self._rule
        if not rule.serves(optimizer, parameters):
            kept = rule.states[0] if isinstance(rule, TransformationRule) else None
            rule = self._rule = update_rule(optimizer, parameters, kept)
            self._drivers.repeats.of_optimizer(type(optimizer), rule.paths)
        return rule
