"""Diagnostics are data: one record for each decision of the compiler."""

import enum
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ._errors import CompilationError, CompilationWarning

Path = tuple[Any, ...]
EXACT_ELSEWHERE = 'Windows (vjp_method="multi-step") follow the rest over their steps, and rtrl follows all of it.'


class DiagnosticLevel(enum.Enum):
    """How much a record should worry its reader."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class DiagnosticKind(enum.Enum):
    """What a record is about.

    Each member says when it is emitted. What is said of gradients is said of the strict ones, whose past comes through
    traces alone; windows, RTRL and UORO carry credit where no trace does.
    """

    RELATION_INCLUDED = "relation_included"
    """An ETP operation drives hidden states; its weights are learnt with eligibility traces."""

    RELATION_EXCLUDED_NON_TEMPORAL = "relation_excluded_non_temporal"
    """An ETP operation reaches no hidden state (a readout): its ordinary gradient is its whole gradient."""

    RELATION_EXCLUDED_WEIGHT_TO_WEIGHT = "relation_excluded_weight_to_weight"
    """An ETP operation reaches hidden states only through another ETP operation: same-step gradient."""

    RELATION_EXCLUDED_SHAPE_MISMATCH = "relation_excluded_shape_mismatch"
    """The positions of an ETP operation's output cannot be matched to those of a state it feeds: same-step gradient."""

    RELATION_EXCLUDED_NO_PARAMSTATE = "relation_excluded_no_paramstate"
    """No weight of an ETP operation comes from a parameter: there is nothing to learn."""

    RELATION_PARTIAL_PATH = "relation_partial_path"
    """A traced weight reaches its group also through another ETP operation: that part is same-step only."""

    TRANSITION_TAIL_BOUNDED = "transition_tail_bounded"
    """A traced operation reaches another group only through new states of its own: its trace ends there."""

    TIME_VARYING_WEIGHT = "time_varying_weight"
    """The weight an ETP operation sees depends on data or state: same-step gradient through that operation."""

    POSITION_MIXING = "position_mixing"
    """A state's transition, or the way into it, mixes positions (normalisation, softmax, a plain dense)."""

    PLAIN_PARAMETER_TEMPORAL = "plain_parameter_temporal"
    """A parameter that no ETP operation marks feeds a hidden state: no trace carries its credit on."""

    CROSS_GROUP_MEMORY = "cross_group_memory"
    """A group drives another group that has memory of its own: that later memory gives it no credit."""

    HIDDEN_GROUP_MERGED = "hidden_group_merged"
    """Several hidden states exchange information position by position and share a group."""

    MEMORY_NOT_HIDDEN = "memory_not_hidden"
    """A state that is not a `HiddenState` hands what was learnt in one step to a later one: no credit passes."""

    STATE_MISMATCH = "state_mismatch"
    """A hidden state of the model is not touched by the step."""

    PARAMETER_UNUSED = "parameter_unused"
    """A parameter of the model is not read by the step: its gradient is zero."""

    COND_IF_CONVERTED = "cond_if_converted"
    """A ``cond`` or ``switch`` holds a marked operation: every branch is evaluated, and one selected."""

    SCAN_UNROLLED = "scan_unrolled"
    """A loop of few iterations holds a marked operation: it is unrolled."""

    SCAN_DESCENT_APPLIED = "scan_descent_applied"
    """A loop of many iterations holds a marked operation: it is followed as a whole, exactly."""

    PRIMITIVE_INSIDE_CONTROL_FLOW = "primitive_inside_control_flow"
    """What became of a marked operation inside such a loop: one operation on all iterations, or one before the loop."""

    WEIGHT_IN_CONTROL_FLOW = "weight_in_control_flow"
    """A marked operation stands inside control flow that stays closed by choice: same-step gradient."""


class CompilationRecord(NamedTuple):
    """One decision of the compiler.

    Attributes
    ----------
    kind : DiagnosticKind
    level : DiagnosticLevel
    message : str
    primitive : Primitive or None
        The ETP primitive concerned.
    weight_path : tuple of str or None
        Path of the `ParamState`.
    hidden_paths : tuple of paths or None
    context : mapping
        Further facts; ``"source"`` is the user's line where it is known.
    """

    kind: DiagnosticKind
    level: DiagnosticLevel
    message: str
    primitive: Any = None
    weight_path: Path | None = None
    hidden_paths: tuple[Path, ...] | None = None
    context: Mapping[str, Any] = MappingProxyType({})

    def __repr__(self) -> str:
        shown: dict[str, str] = {"kind": self.kind.value, "level": self.level.value}
        if self.primitive is not None:
            shown["primitive"] = repr(self.primitive.name)
        if self.weight_path is not None:
            shown["weight_path"] = repr(self.weight_path)
        if self.hidden_paths is not None:
            shown["hidden_paths"] = repr(list(self.hidden_paths))
        shown["message"] = repr(self.message)
        facts = {k: v for k, v in self.context.items() if k != "source"}
        if facts:
            shown["context"] = repr(facts)
        return f"CompilationRecord({', '.join(f'{k}={v}' for k, v in shown.items())})"


_QUIET = frozenset(
    {DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL}
)  # worth a record, not worth a line on everyone's screen: every network has a readout


def emit_warnings(records: Iterable[CompilationRecord]) -> None:
    """Send the WARNING records that a user should see out as Python warnings."""
    for record in records:
        if record.level is DiagnosticLevel.WARNING and record.kind not in _QUIET:
            source = record.context.get("source")
            where = f" ({source})" if source else ""
            warnings.warn(f"{record.kind.name}: {record.message}{where}", CompilationWarning, stacklevel=users_level())


def users_level() -> int:
    """The stack level of the first frame that is the user's, as `warnings.warn` in the caller counts."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _OURS.match(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


_OURS = re.compile(r"(braintrace(_\w+)?|brainstate)(\.|$)")


def each_once(records: Iterable[CompilationRecord]) -> tuple[CompilationRecord, ...]:
    """The records without those that say the same of the same line: the iterations of an unrolled loop."""
    return tuple({(r.kind, r.message, r.weight_path, r.context.get("source")): r for r in records}.values())


def select(
    records: Iterable[CompilationRecord],
    *,
    weight_path: Path | str | None = None,
    hidden_path: Path | str | None = None,
    kind: DiagnosticKind | str | None = None,
) -> tuple[CompilationRecord, ...]:
    """The records about a weight, a hidden state or a kind of decision.

    Raises
    ------
    CompilationError
        If there is no such kind.
    """
    if isinstance(kind, str):
        found = [known for known in DiagnosticKind if known.value == kind.lower()]
        if not found:
            raise CompilationError(
                "There is no such kind of diagnostics.",
                found=repr(kind),
                expected="one of " + ", ".join(known.value for known in DiagnosticKind),
            )
        kind = found[0]
    return tuple(
        r
        for r in records
        if (weight_path is None or _is_path(r.weight_path, weight_path))
        and (hidden_path is None or any(_is_path(path, hidden_path) for path in r.hidden_paths or ()))
        and (kind is None or r.kind is kind)
    )


def _is_path(path: Path | None, wanted: Path | str) -> bool:
    """Whether a path is the wanted one, a tuple or with dots."""
    if path is None or not isinstance(wanted, str):
        return path == (wanted if path is None else tuple(wanted))
    return ".".join(map(str, path)) == wanted


def render(records: Iterable[CompilationRecord]) -> str:
    """The records grouped by kind, as text."""
    by_kind: dict[DiagnosticKind, list[CompilationRecord]] = {}
    for record in records:
        by_kind.setdefault(record.kind, []).append(record)
    lines = []
    for kind, group in by_kind.items():
        lines.append(f"{kind.name} ({len(group)})")
        for record in group:
            source = record.context.get("source")
            lines.append(f"  [{record.level.name:7s}] {record.message}")
            if source:
                lines.append(f"            at {source}")
    return "\n".join(lines)
