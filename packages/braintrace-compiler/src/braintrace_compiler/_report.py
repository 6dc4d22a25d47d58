"""The page a person reads after compiling: text, HTML, JSON and Mermaid from the same data."""

import html
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from ._certificate import Certificate
from ._diagnostics import DiagnosticLevel, render
from ._feeds import FeedKind
from ._relations import HiddenParamOpRelation

if TYPE_CHECKING:
    from ._graph import ETraceGraph


class CompilationReport(NamedTuple):
    """What the compiler understood of a model.

    ``print(report)`` for text, `to_json` and `to_mermaid` for tools; Jupyter shows tables.

    Attributes
    ----------
    groups : tuple of dict
        Index, states, positions and whether the group remembers position by position.
    operations : tuple of dict
        Every marked operation: primitive, weights, number of uses in a step, groups it drives, what a strict gradient
        omits, bytes of its trace.
    notes : str
        Diagnostics at level WARNING and above.
    """

    groups: tuple[dict[str, Any], ...]
    operations: tuple[dict[str, Any], ...]
    notes: str

    def __str__(self) -> str:
        parts = [
            "Hidden groups",
            _table(
                ("group", "states", "positions", "own memory"),
                [(g["index"], ", ".join(g["states"]), g["positions"], g["memory"]) for g in self.groups],
            ),
            "",
            "Marked operations",
            _table(
                ("operation", "weight", "drives", "strict gradient", "trace"),
                [
                    (
                        o["operation"],
                        ", ".join(o["weights"]),
                        o["drives"],
                        o["strict"],
                        _bytes(o["trace_bytes"]),
                    )
                    for o in self.operations
                ],
            ),
        ]
        if self.notes:
            parts += ["", "Notes", self.notes]
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def rows(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
            head = "".join(f"<th style='text-align:left'>{html.escape(h)}</th>" for h in header)
            lines = "".join(
                "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(c))}</td>" for c in row) + "</tr>"
                for row in body
            )
            return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"

        groups = rows(
            ("group", "states", "positions", "own memory"),
            [(g["index"], ", ".join(g["states"]), g["positions"], g["memory"]) for g in self.groups],
        )
        operations = rows(
            ("operation", "weight", "drives", "strict gradient", "trace"),
            [
                (o["operation"], ", ".join(o["weights"]), o["drives"], o["strict"], _bytes(o["trace_bytes"]))
                for o in self.operations
            ],
        )
        notes = f"<pre>{html.escape(self.notes)}</pre>" if self.notes else ""
        return f"<h4>Hidden groups</h4>{groups}<h4>Marked operations</h4>{operations}{notes}"

    def to_json(self) -> str:
        """The report as a JSON document."""
        return json.dumps({"groups": self.groups, "operations": self.operations, "notes": self.notes}, indent=2)

    def to_mermaid(self) -> str:
        """The report as a Mermaid flow chart: weights, groups, and what drives what."""
        lines = ["flowchart LR"]
        lines += [f'  g{g["index"]}(["{" ".join(g["states"])}"])' for g in self.groups]
        for i, o in enumerate(self.operations):
            lines.append(f'  w{i}["{o["operation"]} {" ".join(o["weights"])}"]')
            lines += [f"  w{i} --> g{g}" for g in o["groups"]]
        return "\n".join(lines)


def make_report(graph: "ETraceGraph") -> CompilationReport:
    """Gather what `CompilationReport` shows."""
    remembers = {t.group.index: t.remembers for t in graph.hidden_perturb.transitions}
    groups = tuple(
        {
            "index": g.index,
            "states": [_dotted(p) for p in g.hidden_paths],
            "positions": "x".join(map(str, g.varshape)) or "1",
            "memory": "yes" if remembers[g.index] else "none",
        }
        for g in graph.hidden_groups
    )
    relation_of = {use.y_var: r for r in graph.hidden_param_op_relations for use in r.uses}
    uses: dict[Any, list[Certificate]] = {}
    for certificate in graph.certificates():
        op = certificate.operation
        relation = relation_of.get(op.y_var)
        key = relation.y_var if relation else (op.spec.name, op.parameter_paths, op.source)
        uses.setdefault(key, []).append(certificate)
    operations = []
    for certificates in uses.values():
        op = certificates[0].operation
        relation = relation_of.get(op.y_var)
        indices = [g.index for g in relation.hidden_groups] if relation else []
        omissions = dict.fromkeys(o.value for c in certificates for o in c.omissions)
        exact = "omits " + ", ".join(omissions) if omissions else "exact"
        operations.append(
            {
                "operation": op.spec.name + (f", {len(certificates)} uses" if len(certificates) > 1 else ""),
                "weights": [_dotted(p) for p in op.parameter_paths],
                "uses": len(certificates),
                "groups": indices,
                "drives": ", ".join(f"group {i}" for i in indices) or "no hidden state",
                "strict": exact,
                "trace_bytes": trace_bytes(graph, relation) if relation else 0,
                "source": op.source,
            }
        )
    serious = [r for r in graph.diagnostics if r.level is not DiagnosticLevel.INFO]
    readouts = {"relation_excluded_non_temporal"}
    notes = [render(r for r in serious if r.kind.value not in readouts), *_remarks(graph)]
    return CompilationReport(groups, tuple(operations), "\n".join(filter(None, notes)))


def _remarks(graph: "ETraceGraph") -> list[str]:
    """What the operations that carry a trace say of it."""
    remarks = []
    for relation in graph.hidden_param_op_relations:
        operation = relation.operation
        remark = operation.spec.trace_rule.remark(operation.eqn.params)
        if remark and trace_bytes(graph, relation):
            names = ", ".join(_dotted(p) for p in operation.parameter_paths)
            remarks.append(f"{operation.spec.name} ({names}): {remark}")
    return remarks


def trace_bytes(graph: "ETraceGraph", relation: HiddenParamOpRelation) -> int:
    """Bytes that the traces of a relation take, for the batch it was compiled with; 0 where none is carried."""
    total = 0
    for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
        if group.index not in graph.hidden_perturb.strict.recalls:
            continue
        total += trace_elements(relation, group.num_state, group.varshape, feed.kind) * _itemsize(relation.y_var)
    return total


def trace_elements(relation: HiddenParamOpRelation, num_states: int, varshape: tuple[int, ...], kind: FeedKind) -> int:
    """Number of elements of the trace of one relation into one group."""
    operation = relation.operation
    params = operation.eqn.params
    weights = {n: _struct(v) for n, v in operation.weight_vars.items()}
    x = None if operation.x_var is None else _struct(operation.x_var)
    size = operation.spec.trace_rule.trace_size(x, weights, _struct(operation.y_var), num_states, params)
    if kind is FeedKind.BROADCAST:
        return size * int(np.prod(varshape)) // max(int(operation.y_var.aval.size), 1)
    return size


def _struct(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


def _itemsize(var: Any) -> int:
    return max(np.dtype(var.aval.dtype).itemsize, 4)


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _bytes(count: int) -> str:
    if not count:
        return "none"
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log10(count)) // 3, 3)
    return f"{count / 1000**power:.1f} {('B', 'KB', 'MB', 'GB')[power]}"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  " + "  ".join("-" * w for w in widths), *lines[1:]])
