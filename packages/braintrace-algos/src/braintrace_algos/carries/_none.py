"""No carry: backpropagation through time, truncated at the window."""

from typing import Any

from braintrace_algos._plan import Operands, Plan


class NoCarry:
    """Nothing is known of the past; see `TraceCarry` for the meaning of the methods."""

    @staticmethod
    def init(plan: Plan, dtype: Any = None) -> dict[str, Any]:
        return {}

    @staticmethod
    def entry_gradient(plan: Plan, traces: Any, signals: Any, weights: Operands) -> list[dict[str, Any]]:
        return [{} for _ in plan.operations]

    @staticmethod
    def exit(plan: Plan, traces: Any, P: Any, PF: Any, x: Any, weights: Operands) -> dict[str, Any]:
        return {}
