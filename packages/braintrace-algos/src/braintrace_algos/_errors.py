"""Errors of the learners."""

from braintrace_primitives._errors import BraintraceError


class LearnerError(BraintraceError, ValueError):
    """A learner was given an argument that does not fit it."""

    code = "BT301"


class LearnerTypeError(BraintraceError, TypeError):
    """A learner was given an argument of the wrong type."""

    code = "BT302"


class UnknownAlgorithmError(BraintraceError, LookupError):
    """The name of an algorithm is not known."""

    code = "BT303"


class CheckpointError(BraintraceError, ValueError):
    """A checkpoint cannot be read, or belongs to another learner."""

    code = "BT304"
