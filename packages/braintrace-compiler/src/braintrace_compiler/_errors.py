"""Errors and the warning category of the compiler."""

from braintrace_primitives._errors import BraintraceError


class CompilationError(BraintraceError, ValueError):
    """A model cannot be compiled for online learning."""

    code = "BT201"


class NotSupportedError(BraintraceError, NotImplementedError):
    """A model uses a construction that the compiler refuses rather than misreads."""

    code = "BT202"


class CompilationWarning(UserWarning):
    """Category of every Python warning of the compiler, so that they can be filtered together.

    Examples
    --------
    >>> import warnings
    >>> warnings.filterwarnings("ignore", category=CompilationWarning)
    """
