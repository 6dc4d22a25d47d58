"""Step functions that are made anew in each call: when two of them are one.

Two functions are one where they come from the same code, and everything that this code reads from around it is fixed:
numbers and strings of the same value; the same arrays of JAX; the learner, where none of its attributes is read;
modules and functions of a few libraries; functions of which the same holds. Nothing is concluded of anything else.
"""

import dis
import functools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from braintrace_primitives._jax_compat import Tracer

_LIBRARIES = frozenset({"jax", "optax", "math"})
_OURS = frozenset({"braintrace", "braintrace_algos", "braintrace_primitives"})
_SETTINGS = frozenset({"config"})
_BUILTINS = frozenset(
    (
        *("abs", "all", "any", "bool", "complex", "dict", "divmod", "enumerate", "filter", "float", "int"),
        *("isinstance", "len", "list", "map", "max", "min", "pow", "range", "reversed", "round", "slice"),
        *("sorted", "str", "sum", "tuple", "zip"),
    )
)
_MORE_THAN_READING = ("IMPORT_", "STORE_GLOBAL", "STORE_ATTR", "STORE_DEREF", "STORE_SUBSCR", "DELETE_", "LOAD_BUILD_")
_DEPTH = 8


class _Same:
    """An object that is equal to itself only; kept alive, so that no other takes its identity."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class _Unknown(Exception):
    """Something may differ that cannot be compared."""


class _Reads(NamedTuple):
    """What code reads from around it, other than closures: names of globals, and all names, attributes included."""

    globals: tuple[str, ...]
    names: frozenset[str]


def key_of(function: Any, learner: Any) -> Any:
    """A key that functions have in common only if they do the same; the function itself where this cannot be told.

    Parameters
    ----------
    function : callable
        A step function of `learner`.
    """
    try:
        return _of(function, learner, 0)
    except _Unknown:
        return function


def _of(value: Any, learner: Any, depth: int) -> Any:
    if depth > _DEPTH:
        raise _Unknown
    if value is None or type(value) in (bool, int, float, complex, str, bytes):
        return type(value), repr(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return value.dtype, value.tobytes()
    if type(value) is tuple:
        return tuple, tuple(_of(item, learner, depth + 1) for item in value)
    if type(value) is functools.partial:
        parts = value.func, value.args, tuple(value.keywords.items())
        return functools.partial, _of(parts, learner, depth + 1)
    if value is learner or _is_fixed(value):
        return _Same(value)
    if isinstance(value, types.FunctionType):
        return _of_function(value, learner, depth)
    raise _Unknown


def _is_fixed(value: Any) -> bool:
    """Whether the identity of a value says all of it."""
    if isinstance(value, jax.Array):
        return not isinstance(value, Tracer)
    is_module = isinstance(value, types.ModuleType)
    name = value.__name__ if is_module else getattr(value, "__module__", None)
    root = str(name).partition(".")[0]
    plain = is_module or isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
    return (root in _LIBRARIES and (plain or callable(value))) or (root in _OURS and plain)


def _of_function(function: types.FunctionType, learner: Any, depth: int) -> Any:
    reads = _reads(function.__code__)
    if reads is None or any(_is_attribute(learner, name) for name in reads.names):
        raise _Unknown
    try:
        around = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # a variable that has no value yet
        raise _Unknown from None
    for name in reads.globals:
        if name in function.__globals__:
            around.append(function.__globals__[name])
        elif name not in _BUILTINS:
            raise _Unknown
    own = function.__defaults__, tuple(sorted((function.__kwdefaults__ or {}).items())), tuple(around)
    return function.__code__, _Same(function.__globals__), _of(own, learner, depth + 1)


def _is_attribute(learner: Any, name: str) -> bool:
    """Whether `name` is one of the learner's own: code that reads these may read anything that belongs to it."""
    return name in vars(learner) or any(name in vars(cls) for cls in type(learner).__mro__)


@functools.lru_cache(maxsize=256)
def _reads(code: types.CodeType) -> _Reads | None:
    """What `code`, and the code inside of it, reads; None where it does more than read."""
    found: dict[str, None] = {}
    names: set[str] = set()
    for part in _parts(code):
        names.update(part.co_names)
        for instruction in dis.get_instructions(part):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                found[instruction.argval] = None
            elif instruction.opname.startswith(_MORE_THAN_READING):
                return None
    return None if names & _SETTINGS else _Reads(tuple(found), frozenset(names))


def _parts(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _parts(constant)
