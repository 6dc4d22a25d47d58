"""All four stages in one call, and the graph that they give."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._certificate import Certificate, certify
from ._control_flow import ControlFlowPolicy
from ._diagnostics import CompilationRecord, DiagnosticKind, Path, emit_warnings, render, select
from ._findings import structural_findings
from ._hidden_groups import HiddenGroup, find_hidden_groups_from_minfo
from ._module_info import ModuleInfo, extract_module_info
from ._perturbation import HiddenPerturbation, perturb
from ._relations import HiddenParamOpRelation, find_relations
from ._report import CompilationReport, make_report


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
        weight_path: Path | None = None,
        hidden_path: Path | None = None,
        kind: DiagnosticKind | None = None,
    ) -> tuple[CompilationRecord, ...]:
        """Print the diagnostics grouped by kind, and return them.

        Parameters
        ----------
        weight_path, hidden_path : tuple of str, optional
            Only records about this parameter, or this hidden state.
        kind : DiagnosticKind, optional
            Only records of this kind.

        Returns
        -------
        tuple of CompilationRecord
        """
        records = select(self.diagnostics, weight_path=weight_path, hidden_path=hidden_path, kind=kind)
        print(render(records))
        return records

    def certificates(self) -> tuple[Certificate, ...]:
        """What a strict gradient leaves out, for each marked operation."""
        perturb = self.hidden_perturb
        return certify(
            self.module_info,
            self.hidden_groups,
            perturb.operations,
            self.hidden_param_op_relations,
            perturb.transitions,
        )

    def report(self) -> CompilationReport:
        """The page to read about this graph: groups, relations, omissions, memory, excluded weights."""
        return make_report(self)

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def compile_etrace_graph(
    model: Callable[..., Any], *args: Any, control_flow: ControlFlowPolicy | None = None
) -> ETraceGraph:
    """Run the four stages of the compiler.

    Parameters
    ----------
    model : brainstate.nn.Module
        With initialised states.
    *args
        Example inputs of one step.
    control_flow : ControlFlowPolicy, optional
        What is done with marked operations inside branches and loops.

    Returns
    -------
    ETraceGraph

    Raises
    ------
    NotSupportedError
        If a marked operation stands where the compiler cannot follow it.

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
    minfo = extract_module_info(model, *args, control_flow=control_flow)
    groups, hid_path_to_group = find_hidden_groups_from_minfo(minfo)
    found = find_relations(minfo, groups)
    perturbation = perturb(minfo, groups, found.operations, found.transitions)
    told = {r.weight_path for r in found.records if r.kind is DiagnosticKind.TIME_VARYING_WEIGHT}
    records = (
        *minfo.records,
        *found.records,
        *structural_findings(model, minfo, groups, found.relations, perturbation, told),
    )
    graph = ETraceGraph(minfo, groups, hid_path_to_group, found.relations, perturbation, records)
    emit_warnings(records)
    return graph
