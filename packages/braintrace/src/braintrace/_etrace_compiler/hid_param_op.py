"""Module path of the founding notebook for the two functions that trace an operand back to its parameter."""

from braintrace_compiler import build_producer_map as _build_producer_map  # noqa: F401
from braintrace_compiler import trace_var_to_param as _trace_var_to_param  # noqa: F401
