"""Online learning of recurrent and spiking networks in JAX: the whole of braintrace in one import.

`compile` turns a model into an online learner; `braintrace.nn` has the layers and cells; everything public of
braintrace_primitives, braintrace_compiler and braintrace_algos is here under its own name.
"""

from braintrace_algos import BPTT as BPTT
from braintrace_algos import D_RTRL as D_RTRL
from braintrace_algos import UnknownAlgorithmError as UnknownAlgorithmError
from braintrace_algos import compile as compile
from braintrace_compiler import Certificate as Certificate
from braintrace_compiler import CompilationError as CompilationError
from braintrace_compiler import CompilationRecord as CompilationRecord
from braintrace_compiler import CompilationReport as CompilationReport
from braintrace_compiler import CompilationWarning as CompilationWarning
from braintrace_compiler import DiagnosticKind as DiagnosticKind
from braintrace_compiler import DiagnosticLevel as DiagnosticLevel
from braintrace_compiler import ETraceGraph as ETraceGraph
from braintrace_compiler import Feed as Feed
from braintrace_compiler import FeedKind as FeedKind
from braintrace_compiler import HiddenGroup as HiddenGroup
from braintrace_compiler import HiddenParamOpRelation as HiddenParamOpRelation
from braintrace_compiler import HiddenPerturbation as HiddenPerturbation
from braintrace_compiler import LocalTransition as LocalTransition
from braintrace_compiler import MarkedOperation as MarkedOperation
from braintrace_compiler import ModuleInfo as ModuleInfo
from braintrace_compiler import NotSupportedError as NotSupportedError
from braintrace_compiler import Omission as Omission
from braintrace_compiler import PerturbedStep as PerturbedStep
from braintrace_compiler import StateInfo as StateInfo
from braintrace_compiler import StateKind as StateKind
from braintrace_compiler import add_hidden_perturbation_from_minfo as add_hidden_perturbation_from_minfo
from braintrace_compiler import build_producer_map as build_producer_map
from braintrace_compiler import compile_etrace_graph as compile_etrace_graph
from braintrace_compiler import extract_module_info as extract_module_info
from braintrace_compiler import find_hidden_groups_from_minfo as find_hidden_groups_from_minfo
from braintrace_compiler import (
    find_hidden_param_op_relations_from_minfo as find_hidden_param_op_relations_from_minfo,
)
from braintrace_compiler import trace_var_to_param as trace_var_to_param
from braintrace_primitives import ETP_PRIMITIVES as ETP_PRIMITIVES
from braintrace_primitives import BraintraceError as BraintraceError
from braintrace_primitives import ETPPrimitive as ETPPrimitive
from braintrace_primitives import ETPPrimitiveSpec as ETPPrimitiveSpec
from braintrace_primitives import GenericTraceRule as GenericTraceRule
from braintrace_primitives import OperandError as OperandError
from braintrace_primitives import OperandTypeError as OperandTypeError
from braintrace_primitives import RegistrationError as RegistrationError
from braintrace_primitives import TraceRule as TraceRule
from braintrace_primitives import element_wise as element_wise
from braintrace_primitives import etp_elemwise_p as etp_elemwise_p
from braintrace_primitives import etp_mm_p as etp_mm_p
from braintrace_primitives import etp_mv_p as etp_mv_p
from braintrace_primitives import get_primitive_spec as get_primitive_spec
from braintrace_primitives import is_etp_primitive as is_etp_primitive
from braintrace_primitives import matmul as matmul
from braintrace_primitives import register_primitive as register_primitive

from . import nn as nn
from ._errors import MissingExtraError as MissingExtraError
from ._errors import TargetError as TargetError
from ._version import __version__ as __version__
