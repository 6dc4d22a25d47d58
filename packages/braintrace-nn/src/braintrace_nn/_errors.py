"""Errors of layers and cells."""

from braintrace_primitives._errors import BraintraceError


class ConfigurationError(BraintraceError, ValueError):
    """A layer was asked for something that it cannot be built as."""

    code = "BT301"


class InputShapeError(BraintraceError, ValueError):
    """The input of a layer has the wrong rank, feature size or batch size."""

    code = "BT302"


class InputTypeError(BraintraceError, TypeError):
    """The input of a layer has the wrong data type, or carries a unit where a plain number is due."""

    code = "BT303"


class MissingStateError(BraintraceError, RuntimeError):
    """A module was used, or reset, before ``init_state`` gave it its hidden states."""

    code = "BT304"
