"""What every carry provides (semantics, section 4)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from braintrace_algos._errors import LearnerError
from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._plan import Operands, Plan
from braintrace_algos._step import StepResult, Tape, operation_inputs
from braintrace_algos._truncation import CarryChoice, TruncatedTrace
from braintrace_compiler import ETraceGraph, LinearMemory
from braintrace_primitives._jax_compat import under_trace

from ._meeting import Meeting


class Carry:
    """What is known of ∂h/∂w when a window begins, and how a window is folded into it.

    Methods are pure; all but `observe` work on one copy of a mapped model. This base class carries nothing: with it,
    the past ends at the window, as in truncated backpropagation through time.
    """

    remembers: ClassVar[bool] = False
    """Whether derivatives of hidden states are carried from window to window, as they follow from the model's step."""
    every_group: ClassVar[bool] = False
    """Whether groups count that no marked operation drives."""
    every_state: ClassVar[bool] = True
    """Whether states count whose past meets no signal."""
    hears_loss: ClassVar[bool] = True
    """Whether signals come from the derivative of the loss."""
    constants: ClassVar[tuple[str, ...]] = ()
    """Attributes that what is carried follows from beside the model: with others it is not carried on."""

    def keeping(self, choice: CarryChoice) -> "Carry":
        """This carry, with traces that are cut short where `choice` says so."""
        if choice.truncates:
            raise LearnerError(
                "This algorithm has no traces that could be cut short.",
                where="carry",
                expected='carry="trace", or an algorithm with a trace for each weight, such as D_RTRL',
            )
        return self

    def absorbed(self, graph: ETraceGraph) -> tuple[LinearMemory, ...]:
        """The memory behind groups that traces may take in."""
        return ()

    def prepare(self, plan: Plan) -> Plan:
        """The plan as this carry lays it out, once."""
        return plan

    def remarks(self, plan: Plan) -> list[str]:
        """What a reader of the report should know of this carry, one line each."""
        return []

    def truncated(self, plan: Plan, carry: Any) -> tuple[TruncatedTrace, ...]:
        """The traces that are cut short, with what `carry` knows of them."""
        return ()

    def meeting(self, plan: Plan) -> Meeting | None:
        """How the carry of a step meets its signals; None where a step learns from what it enters with, if at all."""
        return Meeting.at_new_states(plan) if plan.signal == "state" else None

    def joins_windows(self, plan: Plan) -> bool:
        """Whether windows that are differentiated as a whole may be folded together, with a signal at each entry."""
        return type(self) is Carry  # what is carried must say so itself

    def observe(self, plan: Plan, result: StepResult) -> Any:
        """What to keep of a step on the tape."""
        return Tape({}, operation_inputs(plan, result))

    def of_step(self, tape: Any) -> Any:
        """What of `observe` differs between the steps of a window."""
        return tape

    def of_window(self, plan: Plan, tape: Any, entry: list[list[Any]]) -> Any:
        """The tape of a window with what its steps have in common, of leading axis 1.

        `entry` are the leaves of each state at the entry, parameters left out.
        """
        return tape

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        """The carry of a model that has no past: zeros."""
        return {}

    def begin(self, plan: Plan, dtype: Any = None) -> Any:
        """The carry of every mapped copy where a sequence begins."""
        shapes = jax.eval_shape(lambda: plan.copies(self.init(plan, dtype)))
        if under_trace():
            return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
        # From the host: XLA would compile a program for each shape, which takes longer than to trace the gradient.
        return jax.tree.map(lambda v: jax.device_put(np.zeros(v.shape, v.dtype)), shapes)

    def signals(self, plan: Plan, by_group: dict[int, Any]) -> dict[int, Any]:
        """Signals of the groups as this carry wants them, from ([copies,] S, *positions) each."""
        return by_group

    def window(
        self,
        plan: Plan,
        window: Window,
        carry: Any,
        weights: Operands,
        theta: list[Any],
        entry: Mapping[int, Any] | None,
    ) -> Folded:
        """Fold a window.

        Parameters
        ----------
        entry : mapping, optional
            Group -> (S, *positions): cotangent of the state at entry, where the window was differentiated as a whole.
        """
        return Folded(list(window.tape.x), list(window.b), [{} for _ in plan.operations], carry)

    def exit(
        self, plan: Plan, window: Window, carry: Any, weights: Operands, theta: list[Any], entry: Mapping[int, Any]
    ) -> Any:
        """The carry after a window of which nothing else is asked; `entry` and the rest of the signals are zero."""
        return self.window(plan, window, carry, weights, theta, entry).carry

    def entry_gradient(
        self, plan: Plan, carry: Any, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        """Gradient of the weights by way of a state whose cotangents are `signals`: signal · carry."""
        return [{} for _ in plan.operations]

    def past(self, plan: Plan, carry: Any, signals: Mapping[int, Any]) -> list[Any]:
        """Gradient of the parameter leaves by way of such a state, beyond that of the weights."""
        return []

    def beyond(self, plan: Plan, carry: Any, h: dict[int, Any]) -> Any:
        """What is added to the loss of a window for the credit beyond it, from the states at its exit."""
        return 0.0

    def advance(self, plan: Plan, tape: Any, carry: Any, weights: Operands, theta: list[Any]) -> Any:
        """The carry after one more step."""
        return carry
