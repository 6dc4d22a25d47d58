"""Which traces are cut short, and what is known of the rest."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from braintrace_compiler import MarkedOperation, Table
from braintrace_compiler._tables import readable_bytes

from ._checks import check_steps
from ._errors import LearnerError, LearnerTypeError


@dataclasses.dataclass(frozen=True)
class Truncate:
    """Keep the factors of the last steps in place of a trace, for the option `carry` of a learner.

    For an operation with I inputs, O outputs and S states that is B · R · (I + O · S) numbers in place of the trace's
    B · I · O · S. Credit reaches back over R steps at least, and over the window that is folded: what is left out has
    passed R transitions, D^t ... D^{t-R+1}, and is as small as their product.

    Parameters
    ----------
    steps : int
        R.

    Examples
    --------
    >>> Truncate(steps=32)
    Truncate(steps=32)
    """

    steps: int = 64

    def __post_init__(self) -> None:
        check_steps("Truncate(steps)", self.steps)


Kept = Truncate | None
"""What is kept of a trace; None for all of it."""


class CarryChoice(NamedTuple):
    """What is to be kept of each trace.

    Attributes
    ----------
    default : Kept
    named : dict
        Name of a weight or of an operation -> Kept.
    """

    default: Kept
    named: dict[str, Kept]

    @classmethod
    def of(cls, option: Any) -> "CarryChoice":
        """From the option `carry` of a learner."""
        if not isinstance(option, Mapping):
            return cls(_kept(option), {})
        return cls(None, {_name(key): _kept(value) for key, value in option.items()})

    @property
    def truncates(self) -> bool:
        """Whether any trace is to be cut short."""
        return self.default is not None or any(self.named.values())

    def for_operation(self, operation: MarkedOperation) -> Kept:
        """What to keep of the traces of `operation`; the name of a weight counts before that of an operation."""
        found = [name for name in _names(operation) if name in self.named]
        return self.named[found[0]] if found else self.default

    def require_known(self, operations: Sequence[MarkedOperation]) -> None:
        """Refuse names that no operation has."""
        known = list(dict.fromkeys(name for operation in operations for name in _names(operation)))
        unknown = [name for name in self.named if name not in known]
        if unknown:
            raise LearnerError(
                "There is no weight, and no operation, of this name.",
                where="carry={name: ...}",
                found=", ".join(unknown),
                expected="one of " + ", ".join(known),
            )


def _names(operation: MarkedOperation) -> list[str]:
    paths = [_name(path) for path in operation.parameter_paths]
    return [*paths, operation.spec.name, operation.spec.name.removeprefix("etp_")]


def _name(key: Any) -> str:
    return key if isinstance(key, str) else ".".join(map(str, key))


def _kept(value: Any) -> Kept:
    if isinstance(value, Truncate):
        return value
    if value == "truncate":
        return Truncate()
    if value == "trace":
        return None
    raise LearnerTypeError(
        "`carry` says what is kept of a trace.",
        where="carry",
        found=repr(value),
        expected='"trace", "truncate", Truncate(steps=R), or a mapping from weights or operations to these',
    )


class TruncatedTrace(NamedTuple):
    """One trace that is cut short.

    Attributes
    ----------
    key : str
        Weight, use and state, as in ``learner.etraces``.
    weights : tuple of str
        Paths of the weights.
    steps : int
        R, the number of steps whose factors are kept.
    bytes, saved : int
        What they take, and what the exact trace would take beyond that.
    left_out : array ()
        The largest norm of a product of R successive D behind which a trace was left out, since the last reset: what
        is missing is at most so many times what the signal would get from the trace of R steps before. 0 where nothing
        was left out yet. The largest over the copies of a mapped model and over the positions.
    largest : array ()
        ρ, the largest norm of a single D since the last reset; `left_out` is at most ρ^R.
    """

    key: str
    weights: tuple[str, ...]
    steps: int
    bytes: int
    saved: int
    left_out: Any
    largest: Any

    @property
    def bound(self) -> Any:
        """ρ^R."""
        return self.largest**self.steps

    def __str__(self) -> str:
        size, saved = readable_bytes(self.bytes), readable_bytes(self.saved)
        return (
            f"The trace {self.key} is cut short: the factors of the last {self.steps} steps take {size} and save "
            f"{saved}. Credit that was left out since the last reset had shrunk to {float(self.left_out):.2e} or less "
            f"(rho = {float(self.largest):.4g}, rho^{self.steps} = {float(self.bound):.2e})."
        )


class Truncation(NamedTuple):
    """The traces that are cut short; prints as text, and as a table in a notebook.

    Attributes
    ----------
    traces : tuple of TruncatedTrace
        ``truncation["conv.weight"]`` finds the first one of a weight.
    """

    traces: tuple[TruncatedTrace, ...]

    def __getitem__(self, weight: Any) -> Any:
        found = [trace for trace in self.traces if _name(weight) in trace.weights]
        if not found:
            raise KeyError(f"{weight}: cut short are the traces of {[trace.weights for trace in self.traces]}")
        return found[0]

    @property
    def table(self) -> Table:
        """The table to show."""
        rows = [
            (
                ", ".join(t.weights),
                str(t.steps),
                readable_bytes(t.bytes),
                readable_bytes(t.saved),
                f"{float(t.left_out):.2e}",
                f"{float(t.largest):.4g}",
                f"{float(t.bound):.2e}",
            )
            for t in self.traces
        ]
        return Table(("weight", "steps kept", "memory", "saved", "left out, at most", "rho", "rho^steps"), rows)

    def __str__(self) -> str:
        return str(self.table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table._repr_html_()
