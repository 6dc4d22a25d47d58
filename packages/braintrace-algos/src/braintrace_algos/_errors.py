"""Errors of the learners."""

from braintrace_primitives._errors import BraintraceError


class LearnerError(BraintraceError, ValueError):
    """A learner was given an argument that does not fit it."""

    code = "BT401"


class LearnerTypeError(BraintraceError, TypeError):
    """A learner was given an argument of the wrong type."""

    code = "BT402"


class UnknownAlgorithmError(BraintraceError, LookupError):
    """The name of an algorithm is not known."""

    code = "BT403"


class CheckpointError(BraintraceError, ValueError):
    """A checkpoint cannot be read, or belongs to another learner."""

    code = "BT404"
