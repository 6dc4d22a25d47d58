"""The compiled gradient of a sequence: windows of K steps, folded one by one or several at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_compiler import StateKind

from ._errors import LearnerError, LearnerTypeError
from ._fold import fold, signals_of, signals_of_steps
from ._fold_length import FoldLength
from ._fold_types import Window
from ._functional import StatefulProgram
from ._once import final
from ._outside import Entry, reads_past, warn_of_foreign_parameters
from ._plan import Operands, Perturbations, Plan
from ._progress import Progress
from ._recording import recording

Values = list[Any]
"""Values of the states that a step touches, parameters excepted."""


class GradientDriver:
    """Online gradient of a user's loss over sequences of one length.

    Parameters
    ----------
    learner : OnlineLearner
    step_fn : callable
        The user's loss of one step.
    has_aux : bool
    length : FoldLength
        How many steps are folded at once, and differentiated as a whole.
    sequences : pytree
        Example sequences.
    bar : Progress, optional
    plan : Plan, optional
        Of the same graph, in place of that of `learner`.
    lasting : int, optional
        Steps through which the weights stay as they are: those of `sequences` by default.
    """

    def __init__(
        self,
        learner: Any,
        step_fn: Callable[..., Any],
        has_aux: bool,
        length: FoldLength,
        sequences: Any,
        bar: Progress | None,
        plan: Plan | None = None,
        lasting: int | None = None,
    ):
        self.learner, self.length, self.bar = learner, length, bar
        self.plan: Plan = learner.plan if plan is None else plan
        T: int = jax.tree.leaves(sequences)[0].shape[0]
        loop = length.window or length.steps
        steps = loop if (T if lasting is None else lasting) > 1 else 0

        def recorded(weights: Operands, perturbations: Perturbations, slices: Any, entry: list[Any] | None) -> Any:
            begin = None if entry is None else Entry(self.plan, entry)
            with recording(learner, self.plan, weights, perturbations, steps, begin) as record:
                out = step_fn(*slices)
            loss, aux = check_loss(out, has_aux, len(record.tape))
            if begin is not None:
                begin.untouched.require()
            return loss, aux, record.tape[0], () if begin is None else begin.args

        plan = self.plan
        example = jax.tree.map(lambda s: s[0], sequences)
        weights = plan.weights(plan.parameter_leaves())
        hidden = [s.state for s in plan.graph.module_info.hidden]
        entry = [state.value for state in hidden] if plan.carry.remembers else None
        zeros = plan.zero_perturbations()
        self.step = StatefulProgram(recorded, dict(learner.param_states), weights, zeros, example, entry)
        number = {id(state): i for i, state in enumerate(hidden)}
        self.positions = [number.get(id(state)) for state in self.step.others]
        self.reads_past = entry is not None and reads_past(plan, self.step)
        warn_of_foreign_parameters(self.step)
        self.run = jax.jit(self.gradient)

    def fits(self) -> bool:
        """Whether the states still have the shapes that the driver was traced with."""
        return self.step.fits()

    def __call__(self, sequences: Any, scales: Any) -> tuple[dict[Any, Any], Any, Any]:
        """Gradients by path, losses and aux; states and traces advance."""
        grads, losses, aux, values, traces = self.run(*self.read(), sequences, scales)
        self.write(values, traces)
        return grads, losses, aux

    def read(self) -> tuple[dict[Any, Any], Values, Any]:
        """Parameters by path, values of the other states, and traces, as they are now."""
        return *self.step.read(), self.learner.etraces.value

    def write(self, values: Values, traces: Any) -> None:
        """Give the states, parameters excepted, and the traces new values."""
        self.step.write(values)
        self.learner.etraces.value = traces

    def gradient(self, theta: dict[Any, Any], values: Values, traces: Any, sequences: Any, scales: Any) -> Any:
        """The pure function behind a call: gradients by path, losses, aux, and new values and traces.

        `scales` are the weights of the losses, (T,), or one for all.
        """
        weights, pull = jax.vjp(lambda theta: self.plan.weights(self._leaves_of(theta)), theta)
        zero = jax.tree.map(jnp.zeros_like, (weights, theta))
        gradient = self._of_steps if self.length.window is None else self._of_windows

        def advance(carry, steps):
            values, traces, total = carry
            sequences, scales = steps
            grads, losses, aux, values, traces = gradient(theta, weights, values, traces, sequences, scales)
            if self.bar is not None:
                self.bar.advance(losses)
            return (values, traces, jax.tree.map(jnp.add, total, grads)), (losses, aux)

        carry, out = scan_windows(advance, (values, traces, zero), (sequences, scales), self.length.steps)
        values, traces, (d_weights, d_theta) = carry
        losses, aux = out
        (through_chain,) = pull(d_weights)
        return final(jax.tree.map(jnp.add, through_chain, d_theta)), losses, aux, values, traces

    def _leaves_of(self, theta: dict[Any, Any]) -> list[Any]:
        return [leaf for path in self.plan.parameters for leaf in jax.tree.leaves(theta[path])]

    def _add_leaves(self, theta: dict[Any, Any], leaves: list[Any]) -> dict[Any, Any]:
        """`theta` plus values for the leaves of the parameters that the step reads."""
        values = iter(leaves)
        added = {path: jax.tree.map(lambda v: v + next(values), theta[path]) for path in self.plan.parameters}
        return {**theta, **added}

    def _loss(self, theta, weights, perturbations, values, slices, scale) -> Any:
        entry = self._hidden(values) if self.plan.carry.remembers else None
        if self.reads_past:  # beside the step, which has perturbations of its own
            values = self._perturbed(values, perturbations.previous)
        (loss, aux, tape, _), values = self.step(theta, values, weights, perturbations, slices, entry)
        return loss * scale.astype(loss.dtype), (loss, aux, tape, values)

    def _of_steps(self, theta, weights, values, traces, sequences, scales) -> Any:
        """Each step is differentiated with its entry state held fixed; the fold joins the steps through D."""
        plan = self.plan

        def step(carry, inputs):
            values, total = carry
            slices, scale = inputs

            def loss(theta, perturbations):
                return self._loss(theta, weights, perturbations, values, slices, scale)

            gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
            (direct, signals), (value, aux, tape, values) = gradient(theta, plan.zero_perturbations())
            at = signals.previous if plan.signal == "past" else signals.new
            return (values, jax.tree.map(jnp.add, total, direct)), (tape, signals.deltas, at, value, aux)

        start = (values, jax.tree.map(jnp.zeros_like, theta))
        (values, direct), (tape, b, at, losses, aux) = plan.scan(self.length.steps)(step, start, (sequences, scales))
        window = Window(tape, b, signals_of_steps(plan, at, weights), scales)
        d_weights, _, traces = fold(plan, window, traces, weights, self._leaves_of(theta))
        return (d_weights, direct), losses, aux, values, traces

    def _hidden(self, values: Values) -> list[Any]:
        """The hidden states among `values`, in the order of the model."""
        found = {at: v for at, v in zip(self.positions, values, strict=True) if at is not None}
        return [found[i] for i in range(len(found))]

    def _by_state(self, values: Values) -> list[list[Any]]:
        """The leaves of `values`, in the order of the model's states."""
        value_of = {id(state): value for state, value in zip(self.step.others, values, strict=True)}
        moving = [s for s in self.plan.states if s.kind is not StateKind.PARAMETER]
        return [jax.tree.leaves(value_of[id(s.state)]) for s in moving]

    def _perturbed(self, values: Values, deltas: list[Any]) -> Values:
        """`values`, the hidden states among them plus plain arrays."""
        pairs = zip(self.positions, values, strict=True)
        return [v if at is None else jax.tree.map(lambda leaf, d=deltas[at]: leaf + d, v) for at, v in pairs]

    def _of_windows(self, theta, weights, values, traces, sequences, scales) -> Any:
        """Each window is differentiated as a whole. A fold of several sees steps, with signals where one begins."""
        plan, K, leaves = self.plan, self.length.window, self._leaves_of(theta)
        assert K is not None
        if len(scales) <= K:
            direct, entry, tape, b, losses, aux, values = self._of_window(
                theta, weights, values, traces, sequences, scales
            )
            window = Window(tape, b, {}, scales)
            d_weights, past, traces = fold(plan, window, traces, weights, leaves, entry)
            if past:
                direct = self._add_leaves(direct, past)
            return (d_weights, direct), losses, aux, values, traces

        def advance(carry, steps):
            values, total = carry
            direct, entry, tape, b, losses, aux, values = self._of_window(theta, weights, values, traces, *steps)
            signals = jax.tree.map(lambda v: jnp.zeros((len(losses), *v.shape), v.dtype).at[0].set(v), entry)
            return (values, jax.tree.map(jnp.add, total, direct)), (tape, b, signals, losses, aux)

        start = (values, jax.tree.map(jnp.zeros_like, theta))
        (values, direct), (tape, b, signals, losses, aux) = scan_windows(advance, start, (sequences, scales), K)
        d_weights, _, traces = fold(plan, Window(tape, b, signals, scales), traces, weights, leaves)
        return (d_weights, direct), losses, aux, values, traces

    def _of_window(self, theta, weights, values, traces, sequences, scales) -> Any:
        """The derivatives of one window by parameters, entry state (as signals of groups), and outputs of operations.

        States that are not hidden are carried, never differentiated through time: else what a window gives of them
        would depend on where it begins. One that no step changes must be left as it is: JAX then sees that it is no
        part of what is carried, of which a way back would keep a copy for each step.
        """
        plan = self.plan
        K = scales.shape[0]
        followed = [at is not None or same for at, same in zip(self.positions, self.step.unchanged, strict=True)]
        zeros = plan.zero_perturbations()

        def loss(theta, entry, deltas):
            perturbed = self._perturbed(values, entry)

            def step(values, inputs):
                slices, scale, deltas = inputs
                values = [v if follow else jax.lax.stop_gradient(v) for v, follow in zip(values, followed, strict=True)]
                scaled, (value, aux, tape, values) = self._loss(
                    theta, weights, zeros._replace(deltas=deltas), values, slices, scale
                )
                return values, (scaled, value, aux, plan.carry.of_step(tape))

            new, (scaled, losses, aux, tape) = plan.scan(K)(step, perturbed, (sequences, scales, deltas))
            tape = plan.carry.of_window(plan, tape, self._by_state(values))
            at_exit = [jax.tree.leaves(v)[0] for v in self._hidden(new)]
            ahead = plan.carry.beyond(plan, traces, plan.by_group(at_exit))
            return scaled.sum() + ahead, (losses, aux, tape, new)

        deltas = jax.tree.map(lambda v: jnp.zeros((K, *v.shape), v.dtype), zeros.deltas)
        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        (direct, q, b), (losses, aux, tape, values) = gradient(theta, zeros.previous, deltas)
        return direct, signals_of(plan, q, weights), tape, b, losses, aux, values


def scan_windows(
    advance: Callable[..., Any], carry: Any, steps: Any, K: int, rest_first: bool = False
) -> tuple[Any, Any]:
    """Scan `advance` over windows of K steps, and over what remains; outputs are joined over time.

    What remains comes last, or before the windows with `rest_first`. A leaf of `steps` without axes is that of every
    step: windows get it repeated, where XLA need not hold it.
    """
    leaves, tree = jax.tree.flatten(steps)
    steps = [None if jnp.ndim(v) == 0 else v for v in leaves]
    T = jax.tree.leaves(steps)[0].shape[0]
    whole, rest = divmod(T, K)
    parts = []

    def spread(carry: Any, window: Any) -> Any:
        n = jax.tree.leaves(window)[0].shape[0]
        own = [jnp.broadcast_to(v, n) if w is None else w for v, w in zip(leaves, window, strict=True)]
        return advance(carry, tree.unflatten(own))

    if whole == 1 and not rest:  # a scan of one iteration would keep XLA from seeing the window as a whole
        return spread(carry, steps)
    if rest and rest_first:
        carry, out = spread(carry, jax.tree.map(lambda v: v[:rest], steps))
        parts.append(out)
    if whole:

        def window(carry, start):  # a slice at a time: cutting off the rest would copy the sequence
            return spread(carry, jax.tree.map(lambda v: jax.lax.dynamic_slice_in_dim(v, start, K), steps))

        if rest:
            carry, out = jax.lax.scan(window, carry, rest_first * rest + K * jnp.arange(whole))
        else:
            carry, out = jax.lax.scan(spread, carry, jax.tree.map(lambda v: v.reshape(whole, K, *v.shape[1:]), steps))
        parts.append(jax.tree.map(lambda v: v.reshape(whole * K, *v.shape[2:]), out))
    if rest and not rest_first:
        carry, out = spread(carry, jax.tree.map(lambda v: v[whole * K :], steps))
        parts.append(out)
    return carry, jax.tree.map(lambda *v: v[0] if len(v) == 1 else jnp.concatenate(v), *parts)


def check_loss(out: Any, has_aux: bool, calls: int) -> tuple[Any, Any]:
    """The loss and aux that `step_fn` returned."""
    where = "step_fn"
    if calls != 1:
        raise LearnerError(
            "step_fn must call the learner exactly once for each time step.",
            where=where,
            found=f"{calls} calls",
            expected="1 call",
            fix="call learner(x) once, on the slice of one time step",
        )
    if has_aux and not (isinstance(out, tuple) and len(out) == 2):
        raise LearnerTypeError(
            "With has_aux=True, step_fn returns a pair.",
            where=where,
            found=type(out).__name__,
            expected="(loss, aux)",
        )
    loss, aux = out if has_aux else (out, None)
    if isinstance(loss, tuple) or not hasattr(loss, "dtype"):
        raise LearnerTypeError(
            "step_fn must return a scalar loss.",
            where=where,
            found=type(loss).__name__,
            expected="a scalar array",
            fix="pass has_aux=True to return (loss, aux)"
            if isinstance(loss, tuple)
            else "compute it from what learner(x) gives, with jax.numpy, and return it",
        )
    loss = without_unit(loss)
    if jnp.shape(loss) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise LearnerError(
            "step_fn must return a scalar loss.",
            where=where,
            found=f"{jnp.dtype(loss.dtype).name}{list(jnp.shape(loss))}",
            expected="a scalar of floating dtype",
            fix="reduce it, for example with .mean()",
        )
    return loss, aux


def without_unit(loss: Any) -> Any:
    """The number that a dimensionless loss is."""
    if not hasattr(loss, "unit"):
        return loss
    if not loss.is_unitless:
        raise LearnerTypeError(
            "A loss is a number.",
            where="step_fn",
            found=f"a quantity in {loss.unit}",
            expected="a number without a unit",
            fix="divide it by its unit",
        )
    return loss.to_decimal()
