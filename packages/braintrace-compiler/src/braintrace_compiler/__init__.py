"""The braintrace compiler: one step of a model in, a graph for online learning out.

Four stages, each a function from immutable data to immutable data:

1. `extract_module_info` traces one step of a model into a program and names its states;
2. `find_hidden_groups_from_minfo` finds hidden states that exchange information position by position;
3. `find_hidden_param_op_relations_from_minfo` connects marked operations to the groups they drive and the parameters
   behind them;
4. `add_hidden_perturbation_from_minfo` rewrites the step so that one reverse pass gives every learning signal.

`compile_etrace_graph` runs them all.
"""

import sys as _sys

import brainstate as _brainstate

from braintrace_primitives._jax_compat import hide_frames as _hide_frames

from ._absorption import LinearMemory as LinearMemory
from ._arguments import Arguments as Arguments
from ._certificate import Certificate as Certificate
from ._certificate import Omission as Omission
from ._control_flow import ControlFlowPolicy as ControlFlowPolicy
from ._diagnostics import CompilationRecord as CompilationRecord
from ._diagnostics import DiagnosticKind as DiagnosticKind
from ._diagnostics import DiagnosticLevel as DiagnosticLevel
from ._errors import CompilationError as CompilationError
from ._errors import CompilationWarning as CompilationWarning
from ._errors import NotSupportedError as NotSupportedError
from ._feeds import ConstantFactors as ConstantFactors
from ._feeds import Feed as Feed
from ._feeds import FeedKind as FeedKind
from ._feeds import LocalTransition as LocalTransition
from ._from_module import add_hidden_perturbation_from_module as add_hidden_perturbation_from_module
from ._from_module import find_hidden_groups_from_module as find_hidden_groups_from_module
from ._from_module import (
    find_hidden_param_op_relations_from_module as find_hidden_param_op_relations_from_module,
)
from ._graph import ETraceGraph as ETraceGraph
from ._graph import compile_etrace_graph as compile_etrace_graph
from ._hidden_groups import HiddenGroup as HiddenGroup
from ._hidden_groups import find_hidden_groups_from_minfo as find_hidden_groups_from_minfo
from ._jaxpr import build_producer_map as build_producer_map
from ._module_info import ModuleInfo as ModuleInfo
from ._module_info import StateInfo as StateInfo
from ._module_info import StateKind as StateKind
from ._module_info import extract_module_info as extract_module_info
from ._operations import MarkedOperation as MarkedOperation
from ._operations import trace_var_to_param as trace_var_to_param
from ._perturbation import HiddenPerturbation as HiddenPerturbation
from ._perturbation import PerturbedStep as PerturbedStep
from ._perturbation import add_hidden_perturbation_from_minfo as add_hidden_perturbation_from_minfo
from ._relations import HiddenParamOpRelation as HiddenParamOpRelation
from ._relations import find_hidden_param_op_relations_from_minfo as find_hidden_param_op_relations_from_minfo
from ._report import CompilationReport as CompilationReport
from ._requirements import OnMixing as OnMixing
from ._step_module import StepModule as StepModule
from ._step_module import extract_module_info_from_step as extract_module_info_from_step
from ._tables import Table as Table
from ._version import __version__ as __version__

_hide_frames(_brainstate.__file__)
if _units := _sys.modules.get("saiunit"):  # which brainstate brings along: the arithmetic of quantities
    _hide_frames(str(_units.__file__))
_hide_frames(__file__)
