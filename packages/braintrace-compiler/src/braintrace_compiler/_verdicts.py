"""What becomes of one marked operation, in records."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ._diagnostics import EXACT_ELSEWHERE, CompilationRecord, DiagnosticKind, DiagnosticLevel, Path
from ._hidden_groups import HiddenGroup
from ._operations import MarkedOperation


class Verdict(NamedTuple):
    """A marked operation and what it reaches.

    Attributes
    ----------
    operation : MarkedOperation
    own, unmatched : tuple of HiddenGroup
        Groups that it feeds with a trace, and those whose positions its elements do not match.
    anyhow, direct, crossing : tuple of paths
        Hidden states that it reaches at all, without crossing an ETP operation, and through one.
    """

    operation: MarkedOperation
    own: tuple[HiddenGroup, ...]
    unmatched: tuple[HiddenGroup, ...]
    anyhow: tuple[Path, ...]
    direct: tuple[Path, ...]
    crossing: tuple[Path, ...]

    def records(self) -> Iterator[CompilationRecord]:
        """One record for each thing to say."""
        if self.own:
            yield from self._included()
        for group in self.unmatched:
            yield self._shape_mismatch(group)
        if self.own or self.unmatched:
            yield from self._tail()
        else:
            yield self._weight_to_weight() if self.anyhow else self._non_temporal()

    def _record(
        self, kind: DiagnosticKind, level: DiagnosticLevel, message: str, paths: Iterable[Path], **context: Any
    ) -> CompilationRecord:
        operation = self.operation
        context["source"] = operation.source
        return CompilationRecord(
            kind, level, message, operation.eqn.primitive, operation.weight_path, tuple(paths) or None, context
        )

    @property
    def _call(self) -> str:
        return f"{self.operation.spec.name}({self.operation.weight_path})"

    @property
    def _primitive(self) -> str:
        return f"ETP primitive {self.operation.spec.name} (weight={self.operation.weight_path})"

    def _included(self) -> Iterator[CompilationRecord]:
        indices = tuple(group.index for group in self.own)
        paths = [p for group in self.own for p in group.hidden_paths if p in self.anyhow]
        partial = [p for p in paths if p in self.crossing]
        yield self._record(
            DiagnosticKind.RELATION_INCLUDED,
            DiagnosticLevel.INFO,
            f"{self._call} -> {list(indices)}",
            paths,
            hidden_group_indices=indices,
            path_classification={p: "partial" if p in partial else "all_direct" for p in paths},
        )
        if partial:
            yield self._record(
                DiagnosticKind.RELATION_PARTIAL_PATH,
                DiagnosticLevel.INFO,
                f"{self._call} reaches {partial} also through another ETP operation. "
                "That part of its strict gradient covers the current step.",
                partial,
            )

    def _shape_mismatch(self, group: HiddenGroup) -> CompilationRecord:
        return self._record(
            DiagnosticKind.RELATION_EXCLUDED_SHAPE_MISMATCH,
            DiagnosticLevel.WARNING,
            f"{self._call} gives {self.operation.y_var.aval.shape}, mixed on its way to the positions "
            f"{group.varshape} of group {group.index} {list(group.hidden_paths)}. It is not traced there; its strict "
            f"gradient covers the current step. {EXACT_ELSEWHERE}",
            group.hidden_paths,
        )

    def _tail(self) -> Iterator[CompilationRecord]:
        matched = {p for group in (*self.own, *self.unmatched) for p in group.hidden_paths}
        beyond = [p for p in self.direct if p not in matched]
        if beyond:
            yield self._record(
                DiagnosticKind.TRANSITION_TAIL_BOUNDED,
                DiagnosticLevel.INFO,
                f"{self._call} reaches {beyond} only through new states of its own group, where its trace ends.",
                beyond,
            )

    def _weight_to_weight(self) -> CompilationRecord:
        return self._record(
            DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT,
            DiagnosticLevel.INFO,
            f"{self._primitive} reaches hidden states only through another ETP operation. "
            "Its strict gradient covers the current step.",
            self.anyhow,
        )

    def _non_temporal(self) -> CompilationRecord:
        return self._record(
            DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL,
            DiagnosticLevel.WARNING,
            f"{self._primitive} has no connected hidden states. It will be treated as a non-temporal parameter.",
            (),
        )
