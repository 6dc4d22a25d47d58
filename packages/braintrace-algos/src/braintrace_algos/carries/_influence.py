"""The influence of every parameter on every hidden state: exact, or of random rank one.

Both follow the same window. With e the state at the exit of a window as a function of the parameters θ and of
the state at its entry h,

    dl/dθ  =  ∂l/∂θ |_h  +  ∂l/∂h · C            C  <-  ∂e/∂θ |_h  +  ∂e/∂h · C
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_algos._errors import LearnerError
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._plan import Operands, Plan
from braintrace_algos._step import Inputs, StepResult, operation_inputs, run_step
from braintrace_compiler import StateKind
from braintrace_primitives._precision import computed_in, narrowed, widened

from ._base import Carry

LARGEST = 2**27
"""Elements of an influence matrix that are still allowed, unless told otherwise."""


class Replay(NamedTuple):
    """What it takes to run a step again.

    Attributes
    ----------
    x : Inputs
        Of the operations.
    states : list of lists
        Leaves of every state before the step, parameters left out; nothing of what `entry` holds.
    args : list
        Leaves of the step's arguments.
    entry : list of lists
        Leaves of the states that are read where a window begins and nowhere else, one for all of its steps: those that
        no step changes, and the hidden states, which running the steps again makes anew. Nothing of the others.
    """

    x: Inputs
    states: list[list[Any]]
    args: list[Any]
    entry: list[list[Any]]


def replay(plan: Plan, result: StepResult) -> Replay:
    """What is kept of a step."""
    entry = at_entry(plan, result.before)
    states = [[] if kept else before for kept, before in zip(entry, result.before, strict=True)]
    return jax.lax.stop_gradient(Replay(operation_inputs(plan, result), states, result.args, entry))


def at_entry(plan: Plan, states: list[list[Any]]) -> list[list[Any]]:
    """The leaves of the states of which a window needs no other than those it begins with."""
    followed = {path for g in plan.traced for path in plan.transitions[g].group.hidden_paths}
    others = (s for s in plan.states if s.kind is not StateKind.PARAMETER)
    return [
        v if s.path in followed or (s.unchanged and s.kind is not StateKind.HIDDEN) else []
        for s, v in zip(others, states, strict=True)
    ]


class InfluenceCarry(Carry):
    """The carry of RTRL: C = ∂h/∂θ in full, N_h · |θ| numbers for each copy.

    Exact for every model and every parameter, marked or not. The batch of a model that takes it itself counts as N_h;
    map a single-sample model (``vmap=True``) to keep one C for each sample instead.

    Parameters
    ----------
    limit : int
        Largest number of elements of C.
    """

    remembers = True
    every_group = True

    def __init__(self, limit: int = LARGEST):
        self.limit = limit

    def observe(self, plan: Plan, result: StepResult) -> Replay:
        return replay(plan, result)

    def of_step(self, tape: Replay) -> Replay:
        return tape._replace(entry=[])

    def of_window(self, plan: Plan, tape: Replay, entry: list[list[Any]]) -> Replay:
        kept = at_entry(plan, jax.lax.stop_gradient(entry))
        return tape._replace(entry=jax.tree.map(lambda v: v[None], kept))

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        n, leaves = state_size(plan), plan.parameter_avals()
        size = n * sum(math.prod(leaf.shape) for leaf in leaves) * (plan.batch or 1)
        if size > self.limit:
            raise LearnerError(
                "The full influence matrix is larger than its limit.",
                where="RTRL",
                found=f"{n} hidden units x {size // n // (plan.batch or 1)} parameters x {plan.batch or 1} copies "
                f"= {size:,} elements",
                expected=f"at most {self.limit:,} elements (option `limit`)",
                fix="use a smaller model, another algorithm, or vmap=True where batch_size is what makes it large",
            )
        return [jnp.zeros((n, *leaf.shape), dtype or computed_in(leaf.dtype)) for leaf in leaves]

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
    ) -> Folded:
        new = self._through(plan, window.tape, carry, theta)
        assert entry is not None  # windows are differentiated as a whole
        past = self.past(plan, carry, entry)
        return Folded(list(window.tape.x), list(window.b), [{} for _ in plan.operations], new, past)

    def past(self, plan: Plan, carry: Any, signals: Mapping[int, Any]) -> list[Any]:
        flat = flat_signals(plan, signals)
        leaves = zip(map(widened, carry), plan.parameter_avals(), strict=True)
        return [jnp.tensordot(flat.astype(C.dtype), C, 1).astype(leaf.dtype) for C, leaf in leaves]

    def advance(self, plan: Plan, tape: Replay, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        return self._through(plan, jax.tree.map(lambda v: v[None], tape), carry, theta)

    def _through(self, plan: Plan, tape: Replay, carry: Any, theta: list[Any]) -> Any:
        exit, entry = exit_function(plan, tape)
        of_theta, of_entry = jax.jacrev(exit, argnums=(0, 1))(theta, entry)
        return [
            narrowed(direct + jnp.tensordot(of_entry.astype(wide.dtype), wide, 1), C.dtype)
            for direct, C, wide in zip(of_theta, carry, map(widened, carry), strict=True)
        ]


class SketchCarry(InfluenceCarry):
    """The carry of UORO: an unbiased estimate of the influence, C ≈ s z^T with E[s z^T] = C; N_h + |θ| numbers.

    Parameters
    ----------
    key : brainstate.State
        A raw random key, split whenever a sequence begins.
    """

    def __init__(self, key: brainstate.State):
        super().__init__(limit=0)
        self.key = key

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        leaves = plan.parameter_avals()
        z = [jnp.zeros(leaf.shape, dtype or computed_in(leaf.dtype)) for leaf in leaves]
        s = jnp.zeros(state_size(plan), jnp.result_type(*z))
        return {"s": s, "z": z, "key": jax.random.PRNGKey(0)}

    def begin(self, plan: Plan, dtype: Any = None) -> Any:
        self.key.value, own = jax.random.split(self.key.value)
        carry = super().begin(plan, dtype)
        return {**carry, "key": own if plan.batch is None else jax.random.split(own, plan.batch)}

    def past(self, plan: Plan, carry: Any, signals: Mapping[int, Any]) -> list[Any]:
        s = widened(carry["s"])
        along = flat_signals(plan, signals).astype(s.dtype) @ s
        leaves = zip(map(widened, carry["z"]), plan.parameter_avals(), strict=True)
        return [(along * z).astype(leaf.dtype) for z, leaf in leaves]

    def _through(self, plan: Plan, tape: Replay, carry: Any, theta: list[Any]) -> Any:
        exit, entry = exit_function(plan, tape)
        new, pull = jax.vjp(exit, theta, entry)
        # The forward product by the transpose of the reverse one: a custom reverse rule may have no forward one.
        _, push = jax.vjp(lambda ct: pull(ct)[1], jnp.zeros_like(new))
        s, old_z = widened(carry["s"]), [widened(z) for z in carry["z"]]
        moved = push(s.astype(new.dtype))[0].astype(s.dtype)
        key, sub = jax.random.split(carry["key"])
        signs = jax.random.rademacher(sub, new.shape, s.dtype)
        fresh = [got.astype(z.dtype) for got, z in zip(pull(signs.astype(new.dtype))[0], old_z, strict=True)]
        rho_0 = _balance(_norm(old_z), _norm([moved]))
        rho_1 = _balance(_norm(fresh), _norm([signs]))
        z = [old / rho_0 + got / rho_1 for old, got in zip(old_z, fresh, strict=True)]
        moved = rho_0 * moved + rho_1 * signs
        kept = [narrowed(value, old.dtype) for value, old in zip(z, carry["z"], strict=True)]
        return {"s": narrowed(moved, carry["s"].dtype), "z": kept, "key": key}


def _norm(leaves: list[Any]) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(v) ** 2) for v in leaves))


def _balance(a: Any, b: Any) -> Any:
    """sqrt(a / b), the scale that gives both factors of a product the same norm."""
    tiny = 1e-7
    return jnp.sqrt((a + tiny) / (b + tiny))


def state_size(plan: Plan) -> int:
    """N_h, the number of hidden units of one copy."""
    return sum(plan.num_states(g) * math.prod(plan.transitions[g].group.varshape) for g in plan.traced)


def exit_function(plan: Plan, tape: Replay) -> tuple[Callable[..., Any], Any]:
    """The state at the exit of a window as a function of parameters and of the state at its entry.

    Returns
    -------
    callable
        ``exit(theta, entry) -> state``; states are flat, in the order of the traced groups.
    array
        The state at the entry.
    """
    one = plan._replace(batch=None)
    others = [s for s in plan.states if s.kind is not StateKind.PARAMETER]
    at = {s.path: i for i, s in enumerate(others)}
    groups = [plan.transitions[g].group for g in plan.traced]
    lasting = jax.tree.map(lambda v: v[0], tape.entry)
    steps = tape._replace(entry=[])

    def flatten(states: list[list[Any]]) -> Any:
        parts = [part for g in groups for part in g.split([states[at[p]][0] for p in g.hidden_paths])]
        return jnp.concatenate([part.reshape(-1) for part in parts])

    def insert(states: list[list[Any]], flat: Any) -> list[list[Any]]:
        states, start = list(states), 0
        for g in groups:
            size = g.num_state * math.prod(g.varshape)
            parts = flat[start : start + size].reshape(g.num_state, *g.varshape)
            for path, value in zip(g.hidden_paths, g.join(list(parts)), strict=True):
                states[at[path]] = [value]
            start += size
        return states

    def exit(theta: list[Any], entry: Any) -> Any:
        weights = one.weights(theta)

        def step(flat, recorded):
            present = [kept or own for kept, own in zip(lasting, recorded.states, strict=True)]
            states = iter(insert(present, flat))
            parameters = iter(theta)
            full = [
                [next(parameters) for _ in s.invars] if s.kind is StateKind.PARAMETER else next(states)
                for s in one.states
            ]
            result = run_step(one, recorded.args, full, weights, one.zero_perturbations())
            new = [v for s, v in zip(one.states, result.states, strict=True) if s.kind is not StateKind.PARAMETER]
            return flatten(new), None

        return jax.lax.scan(step, entry, steps)[0]

    return exit, flatten(lasting)


def flat_signals(plan: Plan, signals: Mapping[int, Any]) -> Any:
    """Signals of the groups, (S, *positions) each, in the order of `exit_function`."""
    return jnp.concatenate([signals[g].reshape(-1) for g in plan.traced])


def units(plan: Plan) -> np.ndarray:
    """The unit of each hidden state, a position of a group, in the order of `exit_function`."""
    found, start = [], 0
    for g in plan.traced:
        group = plan.transitions[g].group
        found.append(start + np.tile(group.positions.reshape(-1), group.num_state))
        start += group.positions.size
    return np.concatenate(found)


def elements(plan: Plan) -> np.ndarray:
    """The element that each hidden state is of, all hidden states of the traced groups flat, one after the other."""
    found, start = [], 0
    for g in plan.traced:
        group = plan.transitions[g].group
        for v, width, held in zip(group.hidden_invars, group.widths, group.held, strict=True):
            numbers = start + np.arange(v.aval.size).reshape(*group.varshape, width or 1)
            found.append(np.repeat(np.moveaxis(numbers, -1, 0), held // (width or 1), axis=0).reshape(-1))
            start += v.aval.size
    return np.concatenate(found)
