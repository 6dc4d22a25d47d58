"""What a caller may demand of a compiled graph."""

import math
from collections.abc import Sequence
from typing import Literal

from ._certificate import Certificate
from ._diagnostics import CompilationRecord, DiagnosticKind
from ._errors import CompilationError
from ._relations import HiddenParamOpRelation
from ._transitions import FeedKind, LocalTransition

OnMixing = Literal["diagonal", "error", "exact"]
_CHOICES = ("diagonal", "error", "exact")
_MIXING_LIMIT = 2**28
"""Elements of a local Jacobian whose diagonal is taken."""

_NEVER_STRICT = (
    DiagnosticKind.TIME_VARYING_WEIGHT,
    DiagnosticKind.PLAIN_PARAMETER_TEMPORAL,
    DiagnosticKind.WEIGHT_IN_CONTROL_FLOW,
)


def require_positions(
    transitions: Sequence[LocalTransition], relations: Sequence[HiddenParamOpRelation], on_mixing: OnMixing
) -> None:
    """Refuse position mixing, or a local Jacobian that is too large to take the diagonal of.

    Raises
    ------
    CompilationError
    """
    if on_mixing not in _CHOICES:
        raise CompilationError(
            "There is no such policy for position mixing.",
            found=f"on_mixing={on_mixing!r}",
            expected=f"one of {_CHOICES}",
        )
    if on_mixing == "exact":
        return
    mixed = {t.group.index: f"the transition of {list(t.group.hidden_paths)}" for t in transitions if t.mixes}
    for relation in relations:
        for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
            if feed.kind is FeedKind.DIAGONAL:
                where = f"the way from {relation.operation.source} into {list(group.hidden_paths)}"
                mixed.setdefault(group.index, where)
    for index, where in mixed.items():
        group = transitions[index].group
        size = (group.num_state * math.prod(group.varshape)) ** 2
        if on_mixing == "error" or size > _MIXING_LIMIT:
            raise CompilationError(
                "Positions are mixed where traces need them apart (a normalisation, a softmax, an unmarked product).",
                where=where,
                found=f"a local Jacobian of {size} elements, on_mixing={on_mixing!r}",
                expected="position by position memory"
                if on_mixing == "error"
                else f"at most {_MIXING_LIMIT} elements, to take its diagonal",
                fix="mix by a marked operation (matmul, conv, ...), or outside of the state's own memory",
            )


def require_exact(certificates: Sequence[Certificate], records: Sequence[CompilationRecord]) -> None:
    """Refuse any weight whose strict gradient leaves something out.

    Raises
    ------
    CompilationError
        That names every such weight and what is left out.
    """
    missing = [
        f"{c.operation.spec.name}({c.operation.weight_path}) omits {', '.join(o.value for o in c.omissions)}"
        f" ({c.operation.source})"
        for c in certificates
        if not c.exact
    ]
    missing += [r.message for r in records if r.kind in _NEVER_STRICT]
    if missing:
        raise CompilationError(
            "strict=True asks for exact gradients, and this model has others.",
            found="\n".join(missing),
            expected="every weight certified EXACT",
            fix='compile without strict=True, or use an algorithm that keeps what is missing (vjp_method="multi-step")',
        )
