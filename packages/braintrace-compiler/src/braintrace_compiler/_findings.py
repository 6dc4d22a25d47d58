"""Records about the structure of a step as a whole; those about single operations come with the relations."""

import functools
import operator
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import brainstate

from ._certificate import driven_groups, recalled_groups, untraced_feeds
from ._diagnostics import EXACT_ELSEWHERE, CompilationRecord, DiagnosticKind, DiagnosticLevel, Path
from ._feeds import FeedKind
from ._flow import differentiable, influence, join_bits, numbers
from ._hidden_groups import HiddenGroup, recurrent_operations
from ._jaxpr import build_producer_map, reads, source_line
from ._module_info import ModuleInfo, StateKind
from ._perturbation import HiddenPerturbation
from ._relations import HiddenParamOpRelation


def structural_findings(
    model: Callable[..., Any],
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    relations: Sequence[HiddenParamOpRelation],
    perturbation: HiddenPerturbation,
    told: Container[Path | None],
) -> tuple[CompilationRecord, ...]:
    """Records about groups, mixing, plain parameters, memory and untouched states, in this order.

    A parameter whose path is in `told` needs no further word.
    """
    written = _lines_of_new_states(minfo)
    return (
        *_merged_groups(groups, written),
        *_cross_group_memory(minfo, perturbation, written),
        *_position_mixing(relations, perturbation, written),
        *_plain_parameters(minfo, perturbation, told),
        *_memory_not_hidden(minfo),
        *_untouched_states(model, minfo),
    )


def _lines_of_new_states(minfo: ModuleInfo) -> dict[Path, str]:
    """The user's line that computes each new hidden state."""
    producers = build_producer_map(minfo.jaxpr)
    return {s.path: source_line(producers[s.outvars[0]]) for s in minfo.hidden if s.outvars[0] in producers}


def _at(group: HiddenGroup, written: Mapping[Path, str], **facts: Any) -> dict[str, Any]:
    """Context of a record about a group: the line that writes its last state."""
    lines = [written[path] for path in group.hidden_paths if path in written]
    return {**facts, "source": lines[-1]} if lines else facts


def _merged_groups(groups: Sequence[HiddenGroup], written: Mapping[Path, str]) -> Iterator[CompilationRecord]:
    for group in groups:
        if len(group.hidden_paths) > 1 or any(group.widths):
            yield CompilationRecord(
                DiagnosticKind.HIDDEN_GROUP_MERGED,
                DiagnosticLevel.INFO,
                f"group {group.index}: {list(group.hidden_paths)} exchange information position by position.",
                hidden_paths=group.hidden_paths,
                context=_at(group, written, hidden_group_indices=(group.index,)),
            )


def _cross_group_memory(
    minfo: ModuleInfo, perturbation: HiddenPerturbation, written: Mapping[Path, str]
) -> Iterator[CompilationRecord]:
    groups = [t.group for t in perturbation.transitions]
    remembering = _of_their_own(minfo, perturbation)
    absorbable = {(m.source.index, m.target.index) for m in perturbation.memories}
    for group, reached in zip(groups, driven_groups(minfo, groups), strict=True):
        targets = tuple(numbers(reached & remembering))
        if targets:
            shown = ", ".join(f"{g} {list(groups[g].hidden_paths)}" for g in targets[:8])
            shown += f" and {len(targets) - 8} more" if len(targets) > 8 else ""
            yield CompilationRecord(
                DiagnosticKind.CROSS_GROUP_MEMORY,
                DiagnosticLevel.INFO,
                f"group {group.index} {list(group.hidden_paths)} drives groups with memory of their own, {shown}, for "
                "which a strict gradient gives it no credit beyond the current step"
                f"{_unless(group.index, targets, absorbable)}.",
                hidden_paths=(*group.hidden_paths, *(p for g in targets for p in groups[g].hidden_paths)),
                context=_at(group, written, hidden_group_indices=(group.index, *targets)),
            )


def _of_their_own(minfo: ModuleInfo, perturbation: HiddenPerturbation) -> int:
    """The groups, as bits, that remember otherwise than through recurrent operations alone."""
    transitions = perturbation.transitions
    groups = [t.group for t in transitions]
    by_position = sum(1 << t.group.index for t in transitions if t.remembers)
    recurrent = functools.reduce(operator.or_, recurrent_operations(minfo, groups).values(), 0)
    return by_position | recalled_groups(minfo, groups) & ~recurrent


def _unless(group: int, targets: Sequence[int], absorbable: Container[tuple[int, int]]) -> str:
    linear = [str(g) for g in targets if (group, g) in absorbable]
    return f", unless a learner absorbs linear memory (of {', '.join(linear)})" if linear else ""


def _position_mixing(
    relations: Sequence[HiddenParamOpRelation], perturbation: HiddenPerturbation, written: Mapping[Path, str]
) -> Iterator[CompilationRecord]:
    for transition in perturbation.transitions:
        if transition.mixes:
            yield CompilationRecord(
                DiagnosticKind.POSITION_MIXING,
                DiagnosticLevel.WARNING,
                f"the transition of group {transition.group.index} {list(transition.group.hidden_paths)} mixes "
                f"positions; traces follow its true diagonal only. {EXACT_ELSEWHERE}",
                hidden_paths=transition.group.hidden_paths,
                context=_at(transition.group, written),
            )
    for relation in relations:
        for group, feed in zip(relation.hidden_groups, relation.feeds, strict=True):
            if feed.kind is FeedKind.DIAGONAL:
                yield CompilationRecord(
                    DiagnosticKind.POSITION_MIXING,
                    DiagnosticLevel.WARNING,
                    f"positions are mixed between {relation.primitive.name}({relation.weight_path}) and group "
                    f"{group.index} {list(group.hidden_paths)}; its trace follows the true diagonal only. "
                    f"{EXACT_ELSEWHERE}",
                    relation.primitive,
                    relation.weight_path,
                    group.hidden_paths,
                    {"source": relation.operation.source},
                )


def _plain_parameters(
    minfo: ModuleInfo, perturbation: HiddenPerturbation, told: Container[Path | None]
) -> Iterator[CompilationRecord]:
    """Parameters that still reach hidden states once the weights of all operations have become inputs."""
    reader = {v: eqn for eqn in reversed(minfo.jaxpr.eqns) for v in reads(eqn)}
    fed_by = untraced_feeds(minfo, perturbation.full.jaxpr)
    for parameter in minfo.parameters:
        fed = fed_by.get(parameter.path)
        if fed and parameter.path not in told:
            yield CompilationRecord(
                DiagnosticKind.PLAIN_PARAMETER_TEMPORAL,
                DiagnosticLevel.WARNING,
                f"parameter {parameter.path} feeds hidden states {list(fed)} without an ETP operation of constant "
                "weight; its strict gradient covers the current step only. Mark the operation (matmul, element_wise, "
                "...) to trace it. Where another operation is marked, rtrl and uoro follow this one unmarked.",
                weight_path=parameter.path,
                hidden_paths=fed,
                context={"source": next(source_line(reader[v]) for v in parameter.invars if v in reader)},
            )


def _memory_not_hidden(minfo: ModuleInfo) -> Iterator[CompilationRecord]:
    """States of no kind that learns, on a differentiable way from hidden states or parameters to later steps."""
    others = minfo.of_kind(StateKind.OTHER)
    learnt = 1 << len(others)
    seeds = {v: learnt for s in (*minfo.hidden, *minfo.parameters) for v in s.invars}
    seeds |= {v: 1 << k for k, s in enumerate(others) for v in s.invars}
    ahead = influence(minfo.jaxpr.eqns, {v: bit for v, bit in seeds.items() if differentiable(v)})
    producers = build_producer_map(minfo.jaxpr)
    into = [join_bits(ahead, s.outvars) for s in others]
    seen = join_bits(ahead, (*(v for s in minfo.hidden for v in s.outvars), *minfo.out_outvars))
    for _ in others:  # what one state takes from another it hands on
        learnt |= sum(1 << k for k, bits in enumerate(into) if bits & learnt)
        seen |= functools.reduce(operator.or_, (bits for k, bits in enumerate(into) if seen >> k & 1), 0)
    for k, state in enumerate(others):
        if seen & learnt & 1 << k:
            line = next((source_line(producers[v]) for v in state.outvars if v in producers), None)
            yield CompilationRecord(
                DiagnosticKind.MEMORY_NOT_HIDDEN,
                DiagnosticLevel.WARNING,
                f"{type(state.state).__name__} {state.path} takes what parameters made to a later step, and is not "
                "differentiated through time. Make it a HiddenState to give it credit, or put stop_gradient around "
                "what it is given.",
                hidden_paths=(state.path,),
                context={"source": line} if line else {},
            )


def _untouched_states(model: Callable[..., Any], minfo: ModuleInfo) -> Iterator[CompilationRecord]:
    touched = {s.path for s in minfo.states}
    states: Any = brainstate.graph.states(model)
    read = {s.path for s in minfo.parameters}
    for path, state in states.items():
        if isinstance(state, brainstate.ParamState) and path not in read:
            yield CompilationRecord(
                DiagnosticKind.PARAMETER_UNUSED,
                DiagnosticLevel.INFO,
                f"parameter {path} is not read by the step; its gradient is zero.",
                weight_path=path,
            )
        if isinstance(state, brainstate.HiddenState) and path not in touched:
            yield CompilationRecord(
                DiagnosticKind.STATE_MISMATCH,
                DiagnosticLevel.WARNING,
                f"hidden state {path} is neither read nor written by the step. Use it in update, or leave it out.",
                hidden_paths=(path,),
            )
