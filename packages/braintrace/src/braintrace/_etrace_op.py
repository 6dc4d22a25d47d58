"""Module path of the founding notebook for `braintrace.is_etp_primitive`."""

from braintrace_primitives import is_etp_primitive as is_etp_primitive
