"""A word to users who have the same thing compiled again and again."""

import warnings
from collections import Counter
from typing import Any

from braintrace_compiler import CompilationWarning
from braintrace_compiler._diagnostics import users_level

_PATIENCE = 4
"""Programs for what seems to be the same after which the user is told."""


class Repeats:
    """Counts what is compiled again because a call gave another object, and tells once that it has become often."""

    def __init__(self) -> None:
        self._programs: Counter[Any] = Counter()

    def of_step(self, function: Any, use: Any) -> None:
        """One more program of a step function, for a `use` that differs where programs differ for other reasons."""
        code = getattr(function, "__code__", None)
        if code is not None:
            self._count(
                (code, use),
                f"The step_fn of {code.co_filename}:{code.co_firstlineno} ({code.co_name}) has been compiled "
                f"{_PATIENCE} times for one learner: each call gave another function, and what it reads from around it "
                "differs or cannot be compared. Define it once, outside of the loop; hand over what changes in the "
                "sequences or in a brainstate.State.",
            )

    def of_optimizer(self, kind: type, paths: Any) -> None:
        """Another optimiser of a `kind` for the same parameters."""
        self._count(
            (kind, paths),
            f"Training has been compiled {_PATIENCE} times anew for one learner: each call gave another "
            f"{kind.__name__}. Make the optimiser once, outside of the loop, with a schedule where its rate changes; "
            "learner.init_optimizer(optimizer) starts the same one afresh.",
        )

    def _count(self, key: Any, message: str) -> None:
        self._programs[key] += 1
        if self._programs[key] == _PATIENCE:
            warnings.warn(message, CompilationWarning, stacklevel=users_level())
