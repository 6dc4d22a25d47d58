"""The page a person reads after compiling: text, HTML, JSON and Mermaid from the same data."""

import html
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ._certificate import Certificate, Truncated, summarise
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path, render
from ._feeds import LocalTransition
from ._memory import influence_bytes, input_bytes, relation_memory, states_read
from ._module_info import ModuleInfo
from ._perturbation import HiddenPerturbation, PerturbedStep
from ._relations import HiddenParamOpRelation
from ._tables import Table, readable_bytes

_REASONS = {
    DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL: "drives no hidden state (a readout)",
    DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT: "drives hidden states only through another operation",
    DiagnosticKind.RELATION_EXCLUDED_SHAPE_MISMATCH: "its output is mixed on the way to the positions of the state",
    DiagnosticKind.TIME_VARYING_WEIGHT: "the weight depends on data or state",
    DiagnosticKind.PLAIN_PARAMETER_TEMPORAL: "feeds hidden states without a marked operation",
    DiagnosticKind.PARAMETER_UNUSED: "the step does not read it",
}


class CompilationReport(NamedTuple):
    """What the compiler understood of a model.

    ``print(report)`` for text, `to_json` and `to_mermaid` for tools; Jupyter shows tables.

    Attributes
    ----------
    groups : tuple of dict
        Index, states, positions, whether the group remembers position by position, and what is proven of D.
    operations : tuple of dict
        Every marked operation: primitive, weights, number of uses in a step, groups it drives, what a strict gradient
        omits, bytes of the trace that D-RTRL keeps for it, and as what: "a full trace"; "filtered inputs" where D and F
        are proven constant; "the latest step" where nothing is remembered; "the last R steps" where a learner cuts it
        short. No bytes where none of the past that it reaches is read.
    carries : tuple of dict
        What an algorithm may keep of the past, and the bytes it takes for the whole model.
    untraced : tuple of dict
        Parameters without a trace: why, and what their strict gradient covers.
    notes : str
        Diagnostics at level WARNING and above.
    """

    groups: tuple[dict[str, Any], ...]
    operations: tuple[dict[str, Any], ...]
    carries: tuple[dict[str, Any], ...]
    untraced: tuple[dict[str, Any], ...]
    notes: str

    @property
    def tables(self) -> dict[str, Table]:
        """The tables of the page by their titles; empty ones are left out."""
        groups = [(g["index"], ", ".join(g["states"]), g["positions"], g["memory"]) for g in self.groups]
        operations = [
            (o["operation"], ", ".join(o["weights"]), o["drives"], o["strict"], trace_of(o)) for o in self.operations
        ]
        carries = [(c["carry"], c["algorithms"], readable_bytes(c["bytes"])) for c in self.carries]
        untraced = [(u["weight"], u["reason"], u["gradient"]) for u in self.untraced]
        tables = {
            "Hidden groups": Table(("group", "states", "positions", "own memory"), groups),
            "Marked operations": Table(("operation", "weight", "drives", "strict gradient", "trace"), operations),
            "What a learner carries": Table(("carry", "algorithms", "memory"), carries),
            "Parameters without a trace": Table(("parameter", "reason", "strict gradient covers"), untraced),
        }
        return {title: table for title, table in tables.items() if table.rows}

    def __str__(self) -> str:
        parts = [f"{title}\n{textwrap.indent(str(table), '  ')}" for title, table in self.tables.items()]
        return "\n\n".join([*parts, *([f"Notes\n{self.notes}"] if self.notes else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        parts = [f"<h4>{html.escape(title)}</h4>{table._repr_html_()}" for title, table in self.tables.items()]
        notes = f"<h4>Notes</h4><pre>{html.escape(self.notes)}</pre>" if self.notes else ""
        return "".join(parts) + notes

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps(self._asdict(), indent=2)

    def to_mermaid(self) -> str:
        """The report as a Mermaid flow chart: weights, groups, and what drives what."""
        lines = ["flowchart LR"]
        lines += [f'  g{g["index"]}(["{_label(g["states"])}"])' for g in self.groups]
        for i, o in enumerate(self.operations):
            lines.append(f'  w{i}["{_label([o["operation"], *o["weights"]])}"]')
            lines += [f"  w{i} --> g{g}" for g in o["groups"]]
        return "\n".join(lines)


def make_report(
    minfo: ModuleInfo,
    relations: Sequence[HiddenParamOpRelation],
    perturb: HiddenPerturbation,
    certificates: Sequence[Certificate],
    records: Sequence[CompilationRecord],
    copies: int,
    truncated: Truncated,
    step: PerturbedStep,
) -> CompilationReport:
    """Gather what `CompilationReport` shows; what is carried is carried for each of `copies` of the model."""
    groups = tuple(
        {
            "index": t.group.index,
            "states": [dotted(p) for p in t.group.hidden_paths],
            "positions": "x".join(map(str, t.group.varshape)) or "1",
            "memory": _memory(t),
            "constant_D": [[str(v) if isinstance(v, complex) else v for v in row] for row in t.constants.D],
        }
        for t in perturb.transitions
    )
    operations = _operations(relations, perturb, certificates, copies, truncated, step)
    serious = (r for r in records if r.level is not DiagnosticLevel.INFO)
    notes = render(r for r in serious if r.kind is not DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL)
    notes = "\n".join(filter(None, [notes, *_remarks(relations, operations)]))
    carries = _carries(minfo, relations, perturb, operations, copies)
    untraced = tuple(_untraced(minfo, relations, certificates, records))
    return CompilationReport(groups, operations, carries, untraced, notes)


def _memory(transition: LocalTransition) -> str:
    if not transition.remembers:
        return "none"
    states = range(transition.group.num_state)
    if not transition.constants.decays(states):
        return "yes, true diagonal only" if transition.mixes else "yes"
    rows = [", ".join(f"{value:.4g}" for value in row) for row in transition.constants.D]
    return f"constant, D = {rows[0] if len(rows) == 1 else '[[' + '], ['.join(rows) + ']]'}"


def _operations(
    relations: Sequence[HiddenParamOpRelation],
    perturb: HiddenPerturbation,
    certificates: Sequence[Certificate],
    copies: int,
    truncated: Truncated,
    step: PerturbedStep,
) -> tuple[dict[str, Any], ...]:
    relation_of = {use.y_var: r for r in relations for use in r.uses}
    read = states_read(perturb, step)
    uses: dict[Any, list[Certificate]] = {}
    for certificate in certificates:
        op = certificate.operation
        relation = relation_of.get(op.y_var)
        key = relation.y_var if relation else (op.spec.name, op.parameter_paths, op.source)
        uses.setdefault(key, []).append(certificate)
    operations = []
    for same in uses.values():
        op = same[0].operation
        relation = relation_of.get(op.y_var)
        indices = [g.index for g in relation.hidden_groups] if relation else []
        absorbed = same[0].absorbed
        memory = relation_memory(perturb.transitions, relation, read, absorbed, truncated) if relation else None
        operations.append(
            {
                "operation": op.spec.name + (f", {len(same)} uses" if len(same) > 1 else ""),
                "weights": [dotted(p) for p in op.parameter_paths],
                "uses": len(same),
                "groups": indices,
                "drives": ", ".join(f"group {i}" for i in indices) or "no hidden state",
                "strict": summarise(same),
                "trace_bytes": copies * memory.trace if memory else 0,
                "factors_bytes": copies * memory.factors if memory else 0,
                "kept_as": memory.kept_as if memory and memory.trace else None,
                "source": op.source,
            }
        )
    return tuple(operations)


def _remarks(relations: Sequence[HiddenParamOpRelation], operations: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """What the operations that carry a trace say of it."""
    carried = {tuple(o["weights"]) for o in operations if o["trace_bytes"]}
    for relation in relations:
        operation = relation.operation
        remark = operation.spec.trace_rule.remark(operation.eqn.params)
        names = tuple(dotted(p) for p in operation.parameter_paths)
        if remark and names in carried:
            yield f"{operation.spec.name} ({', '.join(names)}): {remark}"


def _carries(
    minfo: ModuleInfo,
    relations: Sequence[HiddenParamOpRelation],
    perturb: HiddenPerturbation,
    operations: Iterable[Mapping[str, Any]],
    copies: int,
) -> tuple[dict[str, Any], ...]:
    operations = list(operations)
    influence, sketch = influence_bytes(minfo)
    rows = (
        ("nothing", "bptt, tbptt", 0),
        ("trace", "d_rtrl", sum(o["trace_bytes"] for o in operations)),
        (
            "two factors",
            "pp_prop",
            sum(o["factors_bytes"] for o in operations) + copies * input_bytes(relations),
        ),
        ("full influence", "rtrl", copies * influence),
        ("random rank one", "uoro", copies * sketch),
    )
    return tuple({"carry": carry, "algorithms": algorithms, "bytes": size} for carry, algorithms, size in rows)


def _untraced(
    minfo: ModuleInfo,
    relations: Sequence[HiddenParamOpRelation],
    certificates: Sequence[Certificate],
    records: Sequence[CompilationRecord],
) -> Iterable[dict[str, Any]]:
    traced = {path for r in relations for use in r.uses for path in use.parameter_paths}
    exact: dict[Path, bool] = {}
    why: dict[Path, CompilationRecord | None] = {}
    for record in records:
        if record.kind in _REASONS and record.weight_path is not None:
            why.setdefault(record.weight_path, record)
    for c in certificates:
        for path in c.operation.parameter_paths:
            exact[path] = exact.get(path, True) and c.exact
            why.setdefault(path, why.get(c.operation.weight_path))  # the second factor of a product
    unread = [p for p, r in why.items() if r is not None and r.kind is DiagnosticKind.PARAMETER_UNUSED]
    for path in [*(s.path for s in minfo.parameters), *unread]:
        if path in traced:
            continue
        record = why.get(path)
        covers = "everything" if exact.get(path, record is None) else "the current step"
        if path in unread:
            covers = "nothing: it is zero"
        yield {
            "weight": dotted(path),
            "kind": record.kind.value if record else None,
            "reason": _REASONS[record.kind] if record else "no marked operation; reaches no hidden state",
            "gradient": covers,
            "source": record.context.get("source") if record else None,
        }


def trace_of(operation: Mapping[str, Any]) -> str:
    """What is carried for an operation, in words."""
    if not operation["trace_bytes"]:
        return "none"
    return f"{readable_bytes(operation['trace_bytes'])}, {operation['kept_as']}"


def dotted(path: Sequence[Any]) -> str:
    """A path as text."""
    return ".".join(map(str, path))


def _label(words: Iterable[str]) -> str:
    """Text inside a Mermaid node: quotes and angle brackets end it or are read as markup."""
    return html.escape(" ".join(words)).replace("&", "#")
