"""Marked operations for online learning of recurrent networks."""

from ._errors import BraintraceError as BraintraceError
from ._errors import OperandError as OperandError
from ._errors import OperandTypeError as OperandTypeError
from ._errors import RegistrationError as RegistrationError
from ._primitive import ETP_PRIMITIVES as ETP_PRIMITIVES
from ._primitive import ETPPrimitive as ETPPrimitive
from ._primitive import ETPPrimitiveSpec as ETPPrimitiveSpec
from ._primitive import get_primitive_spec as get_primitive_spec
from ._primitive import is_etp_primitive as is_etp_primitive
from ._primitive import register_primitive as register_primitive
from ._trace_rule import GenericTraceRule as GenericTraceRule
from ._trace_rule import TraceRule as TraceRule
from .ops._dense import etp_mm_p as etp_mm_p
from .ops._dense import etp_mv_p as etp_mv_p
from .ops._dense import matmul as matmul
from .ops._elementwise import element_wise as element_wise
from .ops._elementwise import etp_elemwise_p as etp_elemwise_p
