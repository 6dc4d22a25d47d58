"""The base class of every error that braintrace raises, and the layout of its messages."""

import textwrap


class BraintraceError(Exception):
    """Base class of all errors raised by the braintrace packages.

    A message says what went wrong, then where, what was found, what was expected and what to do, each on a line of
    its own and only where it is known.

    Parameters
    ----------
    what : str
        What went wrong, one sentence.
    where : str, optional
        Module path, operation and source line.
    found, expected : str, optional
        What the operation met and what it needs.
    fix : str, optional
        What the reader can do about it.

    Attributes
    ----------
    code : str
        Stable identifier of the error class, for searching the documentation.

    Examples
    --------
    >>> print(BraintraceError("The weight does not fit.", found="f32[4,5]", expected="f32[3,5]", fix="transpose it"))
    The weight does not fit. [BT000]
      found:    f32[4,5]
      expected: f32[3,5]
      to do:    transpose it
    """

    code: str = "BT000"

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ):
        self.what, self.where, self.found, self.expected, self.fix = what, where, found, expected, fix
        labelled = (("where", where), ("found", found), ("expected", expected), ("to do", fix))
        lines = [f"{what} [{self.code}]"]
        for label, text in labelled:
            if text is not None:
                lines.append(f"  {label + ':':<10}" + textwrap.indent(text, " " * 12).lstrip())
        super().__init__("\n".join(lines))


class OperandError(BraintraceError, ValueError):
    """An operation was given operands whose rank, size or value does not fit."""

    code = "BT101"


class OperandTypeError(BraintraceError, TypeError):
    """An operation was given an operand of the wrong type or data type."""

    code = "BT102"


class RegistrationError(BraintraceError, ValueError):
    """A primitive could not be registered."""

    code = "BT103"


class ConformanceError(BraintraceError, AssertionError):
    """A primitive does not do what the library relies on."""

    code = "BT104"
