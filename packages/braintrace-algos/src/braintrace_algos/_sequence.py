"""Drivers: gradients and states over whole sequences."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_primitives._jax_compat import under_trace

from ._call_checks import check_step_fn, check_weights
from ._checks import (
    check_choice,
    check_environment,
    check_fold,
    check_state_shapes,
    check_steps,
    describe,
    refuse_explicit_axes,
)
from ._chunks import ChunkDriver
from ._driver import GradientDriver
from ._errors import LearnerError, LearnerTypeError
from ._fold_length import FoldLength, auto_fold
from ._functional import CompiledCall
from ._hold import Hold
from ._plan import Plan
from ._progress import Progress
from ._repeats import Repeats
from ._sizes import tape_bytes, tree_bytes
from ._step_functions import key_of
from ._transforms import in_trace


class SequenceDrivers:
    """The methods of a learner that drive it over sequences."""

    plan: Plan
    param_states: dict[Any, brainstate.State]
    vjp_method: str
    window: int | None
    fold: int | str
    model: Any
    etraces: Any
    _drivers: "DriverCache"

    def etrace_grad(
        self,
        *sequences: Any,
        step_fn: Callable[..., Any],
        mask: Any = None,
        chunk_size: int | None = None,
        weights: dict[Any, brainstate.State] | None = None,
        reduction: str = "mean",
        loss_output: str = "per_step",
        has_aux: bool = False,
        return_value: bool = False,
        fold: int | str | None = None,
        progress: bool = False,
    ) -> Any:
        """Gradient of a loss summed over a sequence, forward in time.

        Hidden states, traces and everything else that `step_fn` touches advance by T steps; call `reset_state` first
        where a sequence begins. The work is compiled once for each `step_fn`, shapes and options, as by `jax.jit`;
        what `step_fn` takes from its surroundings may be fixed by then, unless it is a `brainstate.State`. Functions
        made anew from the same code (a lambda in a loop) are one where they provably read the same values around
        them; otherwise each is compiled, and a warning tells so in time.

        Parameters
        ----------
        *sequences : pytrees
            Leaves of shape (T, ...), sliced together.
        step_fn : callable
            ``step_fn(*slices)`` calls the learner exactly once and returns the scalar loss of one time step, or
            ``(loss, aux)`` with `has_aux`.
        mask : array of shape (T,), optional
            Weight of each step's loss. States and traces advance at every step.
        chunk_size : int, optional
            K > 1 gives `step_fn` windows of K steps instead of single ones: slices of shape (K, ...), of which it makes
            one call ``learner(MultiStepData(xs))`` and returns K losses. The last window may be shorter. In the
            single-step method the result is that of single steps, in about their time.
        weights : dict, optional
            Path -> parameter to differentiate for; all parameters by default.
        reduction : {"mean", "sum"}
            "mean" divides by the sum of the mask, or by 1 where that is smaller.
        loss_output : {"per_step", "masked", "scalar"}
            What `return_value` gives: losses (T,), losses times mask (T,), or the reduced loss.
        has_aux, return_value : bool
        fold : int or "auto", optional
            Steps folded into the traces at once: speed and memory, never the result. Of multi-step windows as many as
            fit, and one at least.
        progress : bool
            Show a progress bar.

        Returns
        -------
        grads[, losses][, aux]
            `grads` maps the path of a parameter to its gradient, structured like the parameter.

        Raises
        ------
        LearnerError, LearnerTypeError
            If sequences, mask or the value of `step_fn` do not fit. The learner is then as it was before the call.
        """
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("loss_output", loss_output, ("per_step", "masked", "scalar"))
        check_environment(self.plan)
        check_state_shapes(self.plan)
        wanted = check_weights(self.param_states, weights)
        sequences = jax.tree.map(as_array, sequences)
        T = sequence_length(sequences)
        is_full, mask = mask is None, check_mask(mask, T)
        if chunk_size is not None:
            check_steps("chunk_size", chunk_size)
        chunk = 1 if chunk_size is None else chunk_size
        chunked = chunk > 1
        length = min(chunk, T) if chunked else self._fold_length(fold, T)
        norm = 1.0 if reduction == "sum" else T if is_full else jnp.maximum(mask.sum(), 1)

        bar = Progress(T, type(self).__name__) if progress else None
        cls = ChunkDriver if chunked else GradientDriver
        make = functools.partial(cls, self, step_fn, has_aux, length, sequences, bar)
        driver = self._cached(make, step_fn, sequences, bar, cls, has_aux, length)
        grads, losses, aux = self._driven(driver, sequences, (mask[0] if is_full else mask) / norm)

        result = [{path: grads[path] for path in wanted}]
        if return_value:
            values = {"per_step": losses, "masked": losses * mask, "scalar": (losses * mask / norm).sum()}
            result.append(values[loss_output])
        if has_aux:
            result.append(aux)
        return tuple(result) if len(result) > 1 else result[0]

    def etrace_evolve(
        self,
        *sequences: Any,
        step_fn: Callable[..., Any] | None = None,
        return_outputs: bool = False,
        progress: bool = False,
    ) -> Any:
        """Advance states and traces over a sequence without a gradient.

        Parameters
        ----------
        *sequences : pytrees
            Leaves of shape (T, ...), sliced together.
        step_fn : callable, optional
            ``step_fn(*slices)``; by default the learner itself.
        return_outputs : bool
            Return what `step_fn` returns, stacked over time.
        progress : bool
            Show a progress bar.
        """
        sequences = jax.tree.map(as_array, sequences)
        T = sequence_length(sequences)
        function: Any = self if step_fn is None else step_fn
        if step_fn is not None:
            check_step_fn(step_fn, sequences)
        bar = Progress(T, "evolve") if progress else None

        def body(slices):
            out = function(*slices)
            if bar is not None:
                bar.advance()
            return out if return_outputs else None

        def evolve(*sequences):
            return brainstate.transform.for_loop(body, sequences)

        if step_fn is None and bar is None:
            return self._compiled(("evolve", return_outputs), evolve, *sequences)
        return in_trace(self, evolve, *sequences) if under_trace() else evolve(*sequences)

    def _driven(self, driver: Callable[..., Any], *args: Any) -> Any:
        """``driver(*args)``, after which the states are as the learner left them."""
        if under_trace():
            return in_trace(self, driver, *args)
        out = driver(*args)
        self._drivers.hold.leave(self.etraces)
        return out

    def _fold_length(self, fold: int | str | None, T: int) -> FoldLength:
        fold = self.fold if fold is None else fold
        check_fold(fold)
        K = 1
        if self.vjp_method == "multi-step":
            K = T if self.window is None else min(self.window, T)
            if K == T:
                return FoldLength(T, "the whole sequence", T)
            if not self.plan.carry.joins_windows(self.plan):
                return FoldLength(K, f"window={K}", K)
        window = K if K > 1 else None
        if fold == "auto":
            return auto_fold(*self._drivers.sizes(self.plan), T, window)
        return FoldLength(min(max(int(fold) - int(fold) % K, K), T), f"fold={fold}", window)

    def _cached(
        self, make: Callable[[], Any], step_fn: Any, sequences: Any, bar: Progress | None, *options: Any
    ) -> Any:
        """The driver that `make` gives, or one made before, where nothing that it depends on has changed."""
        if under_trace():
            check_step_fn(step_fn, sequences)
            return make()
        self._drivers.hold.resume(self.model, self.plan, self.etraces)
        settings: Any = jax.config
        leaves, tree = jax.tree.flatten(sequences)
        shapes = tree, *((leaf.shape, leaf.dtype) for leaf in leaves)
        precision = settings.jax_enable_x64, settings.jax_default_matmul_precision
        use = (id(self), options, bar is not None, shapes, precision)

        def before() -> None:
            check_step_fn(step_fn, sequences)
            self._drivers.repeats.of_step(step_fn, use)

        driver = self._drivers.get((key_of(step_fn, self), use), make, before)
        if bar is not None:
            driver.bar.begin()
        return driver

    def _compiled(self, key: Any, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, by a compiled program kept under `key` unless the call is part of a JAX trace."""
        settings: Any = jax.config
        if under_trace() or settings.jax_disable_jit:
            for state in self.param_states.values():
                _ = state.value  # brainstate gives a gradient only for what was read; an unused parameter's is zero
            return in_trace(self, function, *args)
        check_environment(self.plan)
        hold = self._drivers.hold
        hold.resume(self.model, self.plan, self.etraces)
        out = self._drivers.get((id(self), key), lambda: CompiledCall(function))(*args)
        hold.leave(self.etraces)
        return out


class DriverCache:
    """What a learner used last, compiled drivers and sizes; opaque to walks over the learner's states."""

    def __init__(self, size: int = 16):
        self._size, self._kept, self.repeats, self.hold = size, {}, Repeats(), Hold()
        self._measured: tuple[Plan, tuple[int, int]] | None = None

    def __deepcopy__(self, memo: Any) -> "DriverCache":
        return DriverCache(self._size)  # what is kept belongs to the states of the learner that is copied

    def sizes(self, plan: Plan) -> tuple[int, int]:
        """Bytes of the traces of `plan`, and of what one step leaves on the tape."""
        if self._measured is None or self._measured[0] is not plan:
            held = (plan.batch or 1) * tree_bytes(jax.eval_shape(lambda: plan.carry.init(plan)))
            self._measured = plan, (held, tape_bytes(plan))
        return self._measured[1]

    def get(self, key: Any, make: Callable[[], Any], before: Callable[[], None] = lambda: None) -> Any:
        """The driver kept under `key` if it still fits, or a new one; `before` is called first where there is none."""
        cached = self._kept.pop(key, None)
        if cached is None:
            before()
        self._kept[key] = cached if cached is not None and cached.fits() else make()
        if len(self._kept) > self._size:
            self._kept.pop(next(iter(self._kept)))
        return self._kept[key]


def as_array(leaf: Any) -> Any:
    """A leaf of the data as an array of JAX."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)


def sequence_length(sequences: Sequence[Any]) -> int:
    """T, the common length of the leading axes."""
    leaves = jax.tree.leaves(sequences)
    if not leaves:
        raise LearnerTypeError(
            "There is no sequence to drive the learner with.",
            expected="at least one array of shape (T, ...)",
            fix="pass the sequences first: learner.etrace_grad(xs, ys, step_fn=...)",
        )
    for leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise LearnerError(
                "A sequence must have a leading time axis.",
                found="a scalar",
                expected="an array of shape (T, ...)",
            )
    lengths = {leaf.shape[0] for leaf in leaves}
    if len(lengths) > 1 or 0 in lengths:
        raise LearnerError(
            "The sequences must have one length, of at least one step.",
            found=", ".join(describe(leaf) for leaf in leaves),
            expected="leading axes of the same length T >= 1",
        )
    refuse_explicit_axes(leaves)
    return lengths.pop()


def check_mask(mask: Any, T: int) -> Any:
    """Weights of the steps as an array of shape (T,)."""
    if mask is None:
        return np.ones(T, jnp.result_type(float))
    mask = jnp.asarray(mask)
    if mask.shape != (T,):
        raise LearnerError("The mask weighs time steps.", where="mask", found=describe(mask), expected=f"shape ({T},)")
    return mask.astype(jnp.result_type(float))
