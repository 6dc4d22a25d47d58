"""Errors of layers and cells."""

from collections.abc import Iterable, Mapping

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


class ParameterMismatchError(BraintraceError, ValueError):
    """Saved parameters are not those of the model.

    Attributes
    ----------
    missing, unexpected : tuple of str
        Paths that only the model has, and that only the saved parameters have.
    mismatched : dict
        What is wrong with the value, by path.
    """

    code = "BT305"

    def __init__(
        self,
        missing: Iterable[tuple[str, ...]],
        unexpected: Iterable[tuple[str, ...]],
        mismatched: Mapping[tuple[str, ...], str],
    ):
        self.missing, self.unexpected = (tuple(map(".".join, paths)) for paths in (missing, unexpected))
        self.mismatched = {".".join(path): reason for path, reason in mismatched.items()}
        lines = [f"missing: {path}" for path in self.missing]
        lines += [f"unexpected: {path}" for path in self.unexpected]
        lines += [f"mismatched: {path}, {reason}" for path, reason in self.mismatched.items()]
        super().__init__(
            "The saved parameters are not those of the model.",
            found="\n".join(lines),
            expected="a value of the right shape for every parameter, and no other",
            fix="build the model with the sizes and options of the saved one, or rename or leave out what differs",
        )
