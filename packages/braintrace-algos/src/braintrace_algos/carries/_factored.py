"""Two factors in place of a trace: what came in, and what it did."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_algos._entries import stacked
from braintrace_algos._feeds import collect, feed_shape, spread
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._foreign_rules import check_addend
from braintrace_algos._local import blocks_of, derivatives_of, with_local
from braintrace_algos._plan import Coupling, Operands, Plan
from braintrace_algos._step import StepResult, Tape, tape_of
from braintrace_primitives._precision import computed_in, narrowed, widened
from braintrace_primitives._trace_rule import over_states

from ._base import Carry
from ._trace import TraceCarry


class FactoredCarry(Carry):
    """The carry of ES-D-RTRL and its relatives: B · (I + O · S) numbers for a dense operation.

    The trace of an operation with an input is approximated by an outer product e^t ≈ e_f^t ⊗ e_x^t of

        e_x^t = a_x e_x^{t-1} + x^t,        e_f^t = a_f D^t e_f^{t-1} + b F^t,

    and e_f is divided by ``1 - a_f^n`` after n steps where `normalise` is set. Operations without an input
    (element-wise parameters) keep the exact trace, which is as small. Several uses of one weight in a step
    keep two factors each, since an outer product of sums is not the sum of outer products. Operations that read the
    same input share e_x. Of an index, x is the row of ones and zeros that it stands for. A bias meets e_f alone.

    Parameters
    ----------
    decay_x, decay_f : float
        a_x and a_f, in [0, 1).
    gain_f : float
        b.
    normalise : bool
    """

    remembers = True
    constants = ("decay_x", "decay_f", "gain_f", "normalise")

    def __init__(self, decay_x: float, decay_f: float, gain_f: float, normalise: bool):
        self.decay_x, self.decay_f, self.gain_f, self.normalise = decay_x, decay_f, gain_f, normalise
        self.exact = TraceCarry()

    def prepare(self, plan: Plan) -> Plan:
        for operation in {c.operation: plan.operations[c.operation] for c in _factored(plan)}.values():
            check_addend(operation, self.decay_x)
        self.exact.check_rules(_without_factored(plan))
        return with_local(plan, derivatives_of)

    def observe(self, plan: Plan, result: StepResult) -> Tape:
        return tape_of(plan, result)

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        x, f = {}, {}
        for c in _factored(plan):
            operation, key = plan.operations[c.operation], _input_key(plan, c)
            y = operation.y_var.aval
            precision = dtype or computed_in(y.dtype)
            S = plan.num_states(c.group)
            addend = operation.addend
            wider = precision if jnp.issubdtype(addend.dtype, jnp.inexact) else addend.dtype  # of indices none is lost
            x[key] = jnp.zeros(addend.shape, wider if key not in x else jnp.promote_types(wider, x[key].dtype))
            f[c.key] = jnp.zeros((S, *feed_shape(c.feed, y.shape)), precision)
        trace = self.exact.init(_without_factored(plan), dtype)
        return {"x": x, "f": f, "trace": trace, "steps": jnp.zeros((), jnp.int32)}

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
    ) -> Folded:
        """Sum of L^t e^t; with an `entry`, the window's own gradient and what the factors bring in."""
        wide = _wide(carry)
        history, end = self._over_window(plan, window, wide)
        exact = self.exact.window(_without_factored(plan), window, carry["trace"], weights, theta, entry)
        new = _kept({**end, "trace": exact.carry}, carry)
        if entry is not None:
            return Folded(exact.x, exact.g, self.entry_gradient(plan, carry, entry, weights), new)

        x, g, past = list(exact.x), list(exact.g), list(exact.past)
        for c in _factored(plan):
            g[c.operation] = jnp.zeros_like(g[c.operation])
        for c in _factored(plan):
            sent = spread(c.feed, window.signals[c.group], 2) * self._normalised(history["f"][c.key], history["steps"])
            onto_y = collect(c.feed, over_states(sent, 1), plan.operations[c.operation].y_var.aval.shape)
            g[c.operation] = g[c.operation] + onto_y.astype(g[c.operation].dtype)
        for k, key in {c.operation: _input_key(plan, c) for c in _factored(plan)}.items():
            if plan.operations[k].adds_inputs:
                x[k] = history["x"][key].astype(x[k].dtype)
            else:  # sum_t g^t e_x^t = sum_s (sum_{t >= s} a_x^{t-s} g^t) x^s, where only inputs of one step are given
                sent = g[k]
                g[k], first = self._backwards(sent)
                before = self.decay_x * first
                past[k] = self._of_sums(plan, k, wide["x"][key], before, weights)
                if plan.operations[k].spec.trace_rule.acts_beside_input(weights[k]):  # which is not filtered
                    beside = sent.sum(0) - g[k].sum(0) - before
                    more = self._of_sums(plan, k, jnp.zeros_like(wide["x"][key]), beside, weights)
                    past[k] = {name: value + more[name] for name, value in past[k].items()}
        return Folded(x, g, past, new)

    def entry_gradient(
        self, plan: Plan, carry: Any, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        total = self.exact.entry_gradient(_without_factored(plan), carry["trace"], signals, weights)
        carry = _wide(carry)
        for c in _factored(plan):
            sent = spread(c.feed, signals[c.group], 1) * self._normalised(carry["f"][c.key], carry["steps"])
            g = collect(c.feed, over_states(sent, 0)[None], plan.operations[c.operation].y_var.aval.shape)[0]
            x = carry["x"][_input_key(plan, c)]
            for name, value in self._of_sums(plan, c.operation, x, g, weights).items():
                total[c.operation][name] = total[c.operation].get(name, 0) + value
        return total

    def advance(self, plan: Plan, tape: Tape, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        trace = self.exact.advance(_without_factored(plan), tape, carry["trace"], weights, theta)
        wide = _wide(carry)
        x, f = self._filtered(plan, tape, wide["x"]), self._followed(plan, _factored(plan), tape, wide["f"])
        return _kept({"x": x, "f": f, "steps": carry["steps"] + 1, "trace": trace}, carry)

    def _over_window(self, plan: Plan, window: Window, carry: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The factors after each step of a window, and after the last."""
        lasting = [c for c in _factored(plan) if self._lasts(plan, c)]
        fresh = [c for c in _factored(plan) if not self._lasts(plan, c)]

        def step(factors, tape):
            x, f = self._filtered(plan, tape, factors["x"]), self._followed(plan, lasting, tape, factors["f"])
            return {"x": x, "f": f}, {"x": x, "f": f}

        start = {"x": carry["x"], "f": {c.key: carry["f"][c.key] for c in lasting}}
        end, history = jax.lax.scan(step, start, window.tape)
        if fresh:  # all steps at once, as none waits for the one before
            f = jax.vmap(lambda tape: self._followed(plan, fresh, tape, carry["f"]))(window.tape)
            history["f"] |= f
            end["f"] |= {key: value[-1] for key, value in f.items()}
        steps = carry["steps"] + jnp.arange(1, len(window.scale) + 1, dtype=jnp.int32)
        return {**history, "steps": steps}, {**end, "steps": steps[-1]}

    def _lasts(self, plan: Plan, c: Coupling) -> bool:
        """Whether e_f knows of earlier steps."""
        return bool(self.decay_f) and plan.local[c.group].pattern[0] is not None

    def _filtered(self, plan: Plan, tape: Tape, old: dict[str, Any]) -> dict[str, Any]:
        """e_x, one step on."""
        inputs = {}
        for c in _factored(plan):
            operation = plan.operations[c.operation]
            _, weights, _ = operation.operand_types
            inputs[_input_key(plan, c)] = operation.spec.trace_rule.addend(tape.x[c.operation], weights)
        return {key: (self.decay_x * old[key] + x).astype(old[key].dtype) for key, x in inputs.items()}

    def _of_sums(self, plan: Plan, k: int, x: Any, g: Any, weights: Operands) -> dict[str, Any]:
        """The gradient of the weights of an operation from what is summed of its inputs."""
        operation = plan.operations[k]
        x = x[None].astype(operation.addend.dtype)
        return operation.spec.trace_rule.pullback_of_sums(x, weights[k], g[None], operation.eqn.params)

    def _backwards(self, g: Any) -> tuple[Any, Any]:
        """``sum_{t >= s} a_x^{t-s} g^t`` for every s, and for the first."""

        def step(later: Any, now: Any) -> tuple[Any, Any]:
            both = (self.decay_x * later + now).astype(now.dtype)
            return both, both

        first, summed = jax.lax.scan(step, jnp.zeros_like(g[0]), g, reverse=True)
        return summed, first

    def _followed(self, plan: Plan, couplings: Sequence[Coupling], tape: Tape, old: dict[str, Any]) -> dict[str, Any]:
        """e_f of some couplings, one step on."""
        D, F = blocks_of(plan, tape.kept)
        new = {}
        for c in couplings:
            new_f, old_f = [self.gain_f * value for value in F[c.key]], old[c.key]
            if self._lasts(plan, c):
                rows = jax.tree.map(lambda v, feed=c.feed: spread(feed, v, 0), D[c.group])
                kept = [sum(d * old for d, old in zip(row, old_f, strict=True)) for row in rows]
                new_f = [new + self.decay_f * old for new, old in zip(new_f, kept, strict=True)]
            new[c.key] = stacked(new_f, old_f.shape[1:], old_f.dtype)
        return new

    def _normalised(self, f: Any, steps: Any) -> Any:
        """e_f divided by 1 - a_f^n; `steps` has the leading (time) axes of `f`."""
        if not self.normalise or not self.decay_f:
            return f
        weight = 1.0 - self.decay_f ** jnp.maximum(steps, 1)
        return f / weight.reshape(*steps.shape, *(1,) * (f.ndim - steps.ndim)).astype(f.dtype)


def _wide(carry: Any) -> Any:
    """A carry with its factors in the precision that they are computed in."""
    return carry | jax.tree.map(widened, {name: carry[name] for name in ("x", "f")})


def _kept(new: Any, old: Any) -> Any:
    """The next carry, its factors rounded as they are kept in the `old` one."""
    factors = {name: jax.tree.map(lambda v, like: narrowed(v, like.dtype), new[name], old[name]) for name in ("x", "f")}
    return new | factors


def _factored(plan: Plan) -> list[Coupling]:
    return [c for c in plan.traced_couplings if plan.operations[c.operation].x_var is not None]


def _input_key(plan: Plan, c: Coupling) -> str:
    """Name of the e_x of a coupling: the first operation that adds up the same of the same input."""
    own = plan.operations[c.operation]
    same = (k for k, operation in enumerate(plan.operations) if operation.x_var is own.x_var)
    return str(next(k for k in same if plan.operations[k].addend_key == own.addend_key))


def _without_factored(plan: Plan) -> Plan:
    """The plan of the operations that keep an exact trace."""
    return plan._replace(couplings=tuple(c for c in plan.couplings if plan.operations[c.operation].x_var is None))
