"""Traces that see more, or less, than D: filtered, coupled through the recurrence, gated by a modulator."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from braintrace_algos._checks import broadcasts, describe
from braintrace_algos._errors import LearnerError
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._local import Blocks
from braintrace_algos._plan import Operands, Plan
from braintrace_algos._step import StepResult, Tape, tape_of
from braintrace_algos._truncation import TruncatedTrace
from braintrace_compiler import ETraceGraph, LinearMemory
from braintrace_compiler._derivatives import true_diagonals
from braintrace_compiler._entries import Known
from braintrace_compiler._hidden_groups import recurrent_operations
from braintrace_primitives._jax_compat import eval_jaxpr

from ._trace import TraceCarry


def recurrent_groups(graph: ETraceGraph) -> frozenset[int]:
    """Groups whose previous states reach their new ones through a marked operation."""
    found = recurrent_operations(graph.module_info, graph.hidden_groups).values()
    return frozenset(g.index for g in graph.hidden_groups if any(bits >> g.index & 1 for bits in found))


class FilteredTraceCarry(TraceCarry):
    """Traces of recurrent groups followed by a low-pass filter, ē^t = κ ē^{t-1} + e^t.

    The filter is one more state behind each state of the group: with D̄ = [[D, 0], [D, κ]] and F̄ = [F; F] the
    pair (e, ē) is an ordinary trace, and the signal meets its second half. With κ = 0 there is e alone.

    Parameters
    ----------
    kappa : float
        In [0, 1).
    """

    factors = False
    constants = ("kappa",)

    def __init__(self, kappa: float):
        self.kappa = kappa

    def filtered(self, plan: Plan) -> frozenset[int]:
        """Groups whose traces are filtered."""
        return recurrent_groups(plan.graph) if self.kappa else frozenset()

    def num_states(self, plan: Plan, group: int) -> int:
        return super().num_states(plan, group) * (2 if group in self.filtered(plan) else 1)

    def derivatives_of(self, plan: Plan, group: int) -> tuple[tuple[Any, ...], Callable[..., Blocks]]:
        variables, derivatives = super().derivatives_of(plan, group)
        if group not in self.filtered(plan):
            return variables, derivatives
        S = range(plan.num_states(group))

        def filtered(*values: Any) -> Blocks:
            D, F = derivatives(*values)
            own = D if D is not None else tuple((Known(0),) * len(S) for _ in S)
            upper = [(*row, *(Known(0) for _ in S)) for row in own]
            lower = [(*row, *(Known(self.kappa if r == s else 0) for r in S)) for s, row in enumerate(own)]
            return (*upper, *lower), {key: (*f, *f) for key, f in F.items()}

        return variables, filtered

    def signals(self, plan: Plan, by_group: dict[int, Any]) -> dict[int, Any]:
        axis = 0 if plan.batch is None else 1
        filtered = self.filtered(plan)
        return {g: jnp.concatenate([jnp.zeros_like(v), v], axis) if g in filtered else v for g, v in by_group.items()}


class CoupledTraceCarry(TraceCarry):
    """Traces that follow a unit's influence on itself through recurrent operations too.

    D is the true diagonal of the whole transition, marked operations included, instead of that of its local part.
    """

    every_state = True
    factors = False

    def absorbed(self, graph: ETraceGraph) -> tuple[LinearMemory, ...]:
        # What the recurrence of a group brings into the memory behind it, no row of D tells.
        coupled = recurrent_groups(graph)
        return tuple(m for m in super().absorbed(graph) if m.source.index not in coupled)

    def derivatives_of(self, plan: Plan, group: int) -> tuple[tuple[Any, ...], Callable[..., Blocks]]:
        variables, derivatives = super().derivatives_of(plan, group)
        if group not in recurrent_groups(plan.graph):
            return variables, derivatives
        own = plan.transitions[group].group
        program, S, count = own.by_state(own.transition_jaxpr), range(own.num_state), len(own.hidden_invars)
        whole = (*own.hidden_invars, *own.transition_jaxpr_constvars)

        def coupled(*values: Any) -> Blocks:
            known, of_whole = values[: len(variables)], values[len(variables) :]
            h, constants = own.split(list(of_whole[:count])), of_whole[count:]
            new, pull = jax.vjp(lambda h: eval_jaxpr(program, *h, *constants), h)
            D = tuple(tuple(true_diagonals(lambda ct: pull(ct)[0], new, s)) for s in S)
            local, F = derivatives(*known)
            absorbed = D if local is None else local
            beside = [(*row, *more[len(row) :]) for row, more in zip(D, absorbed, strict=False)]
            return (*beside, *absorbed[len(D) :]), F

        return (*variables, *whole), coupled


class Modulated(NamedTuple):
    """A tape entry with the modulator of its step."""

    tape: Tape
    modulator: Any


class ModulatedTraceCarry(TraceCarry):
    """Traces that meet a modulator in place of a learning signal.

    Parameters
    ----------
    modulator : brainstate.State
        Read at every step; a scalar, or an array that broadcasts to the positions of every group.
    """

    hears_loss = False

    def __init__(self, modulator: brainstate.State):
        self.modulator = modulator

    def observe(self, plan: Plan, result: StepResult) -> Modulated:
        value = self._value(plan)
        if plan.batch is not None and value.ndim == 0:
            value = jnp.broadcast_to(value, (plan.batch,))
        return Modulated(tape_of(plan, result), value)

    def absorbed(self, graph: ETraceGraph) -> tuple[LinearMemory, ...]:
        return ()

    def truncated(self, plan: Plan, carry: Any) -> tuple[TruncatedTrace, ...]:
        return super().truncated(plan, carry["trace"])

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        value = self._value(plan)
        one = value if plan.batch is None or value.ndim == 0 else value[0]
        return {"trace": super().init(plan, dtype), "modulator": jnp.zeros_like(one)}

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
        waits: bool = True,
    ) -> Folded:
        tape, modulator = window.tape
        scaled = modulator * window.scale.reshape(-1, *(1,) * (modulator.ndim - 1)).astype(modulator.dtype)
        signals = jax.vmap(lambda m: self._expand(plan, m))(scaled)
        window = window._replace(tape=tape, signals=signals)
        folded = super().window(plan, window, carry["trace"], weights, theta, entry, waits)
        return folded._replace(carry={"trace": folded.carry, "modulator": modulator[-1]})

    def entry_gradient(
        self, plan: Plan, carry: Any, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        if "modulator" in carry:
            carry, signals = carry["trace"], self._expand(plan, carry["modulator"])
        return super().entry_gradient(plan, carry, signals, weights)

    def advance(self, plan: Plan, tape: Modulated, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        trace = super().advance(plan, tape.tape, carry["trace"], weights, theta)
        return {"trace": trace, "modulator": tape.modulator}

    def _value(self, plan: Plan) -> Any:
        """The standing modulator, if it fits every traced group."""
        value = jnp.asarray(self.modulator.value)
        copies = () if plan.batch is None else (plan.batch,)
        for index in plan.traced:
            expected = (plan.num_states(index), *plan.transitions[index].group.varshape)
            if value.ndim == 0 or (
                value.shape[: len(copies)] == copies and broadcasts(value.shape[len(copies) :], expected)
            ):
                continue
            lead = "" if plan.batch is None else f"(batch, ...) = ({plan.batch}, ...), with ... "
            raise LearnerError(
                "The modulator does not broadcast to the states of a group.",
                where=f"modulator; group {index} of {[list(p) for p in plan.transitions[index].group.hidden_paths]}",
                found=describe(value),
                expected=f"a scalar, or a shape {lead}that broadcasts to (states, *positions) = {expected}",
                fix="add axes of length 1 for the positions: m[:, None] for one value of each sample of a batch",
            )
        return value

    def _expand(self, plan: Plan, modulator: Any) -> dict[int, Any]:
        """The modulator at every state and position of every traced group."""
        expanded = {}
        for index in plan.traced:
            group = plan.transitions[index].group
            expanded[index] = jnp.broadcast_to(modulator, (plan.num_states(index), *group.varshape)).astype(group.dtype)
        return expanded
