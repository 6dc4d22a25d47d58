"""All four stages in one call, and the graph that they give."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ._absorption import LinearMemory
from ._certificate import Certificate, Truncated, certify
from ._contracts import ensure_perturbation, ensure_program, ensure_relations
from ._control_flow import ControlFlowPolicy
from ._diagnostics import CompilationRecord, DiagnosticKind, Path, emit_warnings, render, select
from ._drawing import draw_report
from ._findings import structural_findings
from ._hidden_groups import HiddenGroup, find_hidden_groups_from_minfo
from ._listing import list_program
from ._module_info import ModuleInfo, extract_module_info
from ._perturbation import HiddenPerturbation, PerturbedStep, perturb
from ._relations import HiddenParamOpRelation, find_relations
from ._report import CompilationReport, make_report
from ._requirements import OnMixing, require_exact, require_positions, require_reverse_derivatives
from ._stages import StageCallback, Stages, print_if_debugging


class ETraceGraph(NamedTuple):
    """What an online learner needs to know about one step of a model.

    Attributes
    ----------
    module_info : ModuleInfo
    hidden_groups : tuple of HiddenGroup
    hid_path_to_group : dict
        Path of a hidden state -> its group.
    hidden_param_op_relations : tuple of HiddenParamOpRelation
    hidden_perturb : HiddenPerturbation
    diagnostics : tuple of CompilationRecord
    """

    module_info: ModuleInfo
    hidden_groups: tuple[HiddenGroup, ...]
    hid_path_to_group: Mapping[Path, HiddenGroup]
    hidden_param_op_relations: tuple[HiddenParamOpRelation, ...]
    hidden_perturb: HiddenPerturbation
    diagnostics: tuple[CompilationRecord, ...]

    def explain(
        self,
        *,
        weight_path: Path | str | None = None,
        hidden_path: Path | str | None = None,
        kind: DiagnosticKind | str | None = None,
    ) -> tuple[CompilationRecord, ...]:
        """Print the diagnostics grouped by kind, and return them.

        Parameters
        ----------
        weight_path, hidden_path : tuple of str, or str with dots, optional
            Only records about this parameter, or this hidden state.
        kind : DiagnosticKind, or its value, optional
            Only records of this kind.

        Returns
        -------
        tuple of CompilationRecord
        """
        records = select(self.diagnostics, weight_path=weight_path, hidden_path=hidden_path, kind=kind)
        print(render(records) or "no such diagnostics")
        return records

    def certificates(
        self, absorbed: Sequence[LinearMemory] = (), truncated: Truncated = MappingProxyType({})
    ) -> tuple[Certificate, ...]:
        """What a strict gradient leaves out, for each marked operation.

        Parameters
        ----------
        absorbed : sequence of LinearMemory
            Those of ``hidden_perturb.memories`` that a learner takes into its traces.
        truncated : mapping
            (y, group), the output of an operation and the number of a group that it drives -> the number of steps that
            a learner keeps in place of the trace.
        """
        perturb = self.hidden_perturb
        return certify(
            self.module_info,
            self.hidden_groups,
            perturb.operations,
            self.hidden_param_op_relations,
            perturb.transitions,
            perturb.full.jaxpr,
            absorbed,
            truncated,
        )

    def report(
        self,
        copies: int = 1,
        absorbed: Sequence[LinearMemory] = (),
        truncated: Truncated = MappingProxyType({}),
        step: PerturbedStep | None = None,
    ) -> CompilationReport:
        """The page to read about this graph: groups, relations, omissions, memory, weights without a trace.

        Parameters
        ----------
        copies : int
            How many copies of the model a learner maps over a batch; what is carried is carried for each.
        absorbed, truncated
            As in `certificates`.
        step : PerturbedStep, optional
            What a learner differentiates: ``hidden_perturb.strict``, the default, or ``hidden_perturb.full``, as in
            multi-step windows. What it does not read of the past needs no trace.

        Returns
        -------
        CompilationReport
        """
        return make_report(
            self.module_info,
            self.hidden_param_op_relations,
            self.hidden_perturb,
            self.certificates(absorbed, truncated),
            self.diagnostics,
            copies,
            truncated,
            step or self.hidden_perturb.strict,
        )

    def to_mermaid(self) -> str:
        """Weights, groups, and what drives what, as a Mermaid flow chart."""
        return self.report().to_mermaid()

    def draw(self, path: str | pathlib.Path) -> pathlib.Path:
        """Write a picture of the graph.

        Parameters
        ----------
        path : str or pathlib.Path
            The suffix says the format: ``.svg``, ``.png``, ``.pdf``.

        Returns
        -------
        pathlib.Path

        Raises
        ------
        NotSupportedError
            If matplotlib is not installed.
        """
        return draw_report(self.report(), path)

    def listing(self) -> str:
        """The step program, with the diagnostics below the operations that they are about."""
        return list_program(self.module_info, self.diagnostics)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def compile_etrace_graph(
    model: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    control_flow: ControlFlowPolicy | None = None,
    on_mixing: OnMixing = "diagonal",
    strict: bool = False,
    callback: StageCallback | None = None,
) -> ETraceGraph:
    """Run the four stages of the compiler.

    Parameters
    ----------
    model : brainstate.nn.Module
        With initialised states.
    *args
        Example inputs of one step, pytrees. Of arrays and numbers only shapes and dtypes matter; anything else (a bool,
        a string, None) is static.
    kwargs : mapping, optional
        Arguments that the model takes by keyword.
    control_flow : ControlFlowPolicy, optional
        What is done with marked operations inside branches and loops.
    on_mixing : {"diagonal", "error", "exact"}
        Where a state's memory mixes positions: follow the true diagonal of the local Jacobian, refuse, or leave it to
        an algorithm that keeps the whole influence.
    strict : bool
        Refuse a model unless every gradient is certified exact.
    callback : callable, optional
        Called after each stage with its name and its result.

    Returns
    -------
    ETraceGraph

    Raises
    ------
    NotSupportedError
        If a marked operation stands where the compiler cannot follow it.
    CompilationError
        If `on_mixing` or `strict` refuse the model. A note names the stage that failed, and those before it.

    Warns
    -----
    CompilationWarning
        For each WARNING record except those about readouts.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_primitives import matmul
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = 0.9 * self.h.value + matmul(x, self.w.value)
    ...         return self.h.value
    >>> model = brainstate.nn.init_all_states(Leaky())
    >>> graph = compile_etrace_graph(model, jnp.zeros(2))
    >>> [(r.weight_path, r.connected_hidden_paths) for r in graph.hidden_param_op_relations]
    [(('w',), (('h',),))]
    """
    stages = Stages(callback)
    minfo = stages.run(extract_module_info, model, *args, kwargs=kwargs, control_flow=control_flow)
    stages.check(ensure_program, minfo)
    groups, hid_path_to_group = stages.run(find_hidden_groups_from_minfo, minfo)
    stages.check(require_reverse_derivatives, minfo)
    found = stages.run(find_relations, minfo, groups)
    stages.check(ensure_relations, minfo, groups, found)
    stages.check(require_positions, found.transitions, found.relations, on_mixing)
    perturbation = stages.run(perturb, minfo, groups, found)
    stages.check(ensure_perturbation, minfo, perturbation)
    told = {r.weight_path for r in found.records if r.kind is DiagnosticKind.TIME_VARYING_WEIGHT}
    findings = stages.check(structural_findings, model, minfo, groups, found.relations, perturbation, told)
    records = (*minfo.records, *found.records, *findings)
    graph = ETraceGraph(minfo, groups, hid_path_to_group, found.relations, perturbation, records)
    print_if_debugging(graph)
    if strict:
        stages.check(require_exact, graph.certificates(), records)
    emit_warnings(records)
    return graph
