"""Errors of the command line."""

from braintrace_primitives import BraintraceError as BraintraceError


class MissingExtraError(BraintraceError, ImportError):
    """A command needs packages that are not installed."""

    code = "BT501"


class TargetError(BraintraceError, ValueError):
    """What was to be inspected is not a model that can be built."""

    code = "BT502"
