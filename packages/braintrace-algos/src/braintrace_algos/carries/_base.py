"""What every carry provides (semantics, section 4)."""

from collections.abc import Mapping
from typing import Any

from braintrace_algos._fold_types import Folded, Window
from braintrace_algos._plan import Operands, Plan
from braintrace_algos._step import Derivatives, StepResult, local_derivatives


class Carry:
    """What is known of ∂h/∂w when a window begins, and how a window is folded into it.

    Methods are pure; all but `observe` work on one copy of a mapped model. This base class carries nothing: with it,
    the past ends at the window, as in truncated backpropagation through time.
    """

    def observe(self, plan: Plan, result: StepResult) -> Any:
        """What to keep of a step on the tape."""
        return local_derivatives(plan, result)

    def init(self, plan: Plan, dtype: Any = None) -> Any:
        """The carry of a model that has no past."""
        return {}

    def signals(self, plan: Plan, by_group: dict[int, Any]) -> dict[int, Any]:
        """Signals of the groups as this carry wants them, from ([copies,] S, *positions) each."""
        return by_group

    def window(
        self, plan: Plan, window: Window, carry: Any, weights: Operands, entry: Mapping[int, Any] | None
    ) -> Folded:
        """Fold a window.

        Parameters
        ----------
        entry : mapping, optional
            Group -> (S, *positions): cotangent of the state at entry, where the window was differentiated as a whole.
        """
        return Folded(list(window.tape.x), list(window.b), [{} for _ in plan.operations], carry)

    def entry_gradient(
        self, plan: Plan, carry: Any, signals: Mapping[int, Any], weights: Operands
    ) -> list[dict[str, Any]]:
        """Gradient of the weights by way of a state whose cotangents are `signals`: signal · carry."""
        return [{} for _ in plan.operations]

    def advance(self, plan: Plan, tape: Derivatives, carry: Any, weights: Operands) -> Any:
        """The carry after one more step."""
        return carry
