"""What a step reads of brainstate's environment while it is traced, such as ``dt`` and ``fit``: it is fixed by then."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from brainstate import environ

_environ: Any = environ  # a module, whose function is replaced below
_LEFT_OUT = (environ.PRECISION, environ.PLATFORM, environ.HOST_DEVICE_COUNT)
"""What dtypes and devices of arrays tell by themselves."""


class _Notes(threading.local):
    """Pairs of an environment and what has been read of it, one for each trace that this thread is in."""

    def __init__(self) -> None:
        self.open: list[tuple[dict[Any, Any], dict[Any, Any]]] = []


_notes = _Notes()
_lock = threading.Lock()
_traces = 0


@contextlib.contextmanager
def environment_reads() -> Iterator[dict[Any, Any]]:
    """Note, by key, what is read inside of the environment around it; values that are set inside are not of it.

    Brainstate tells nobody who reads its environment: `environ.get` is another function while a step is traced.
    """
    global _traces
    around = {key: value for key, value in environ.all().items() if key not in _LEFT_OUT}
    found: dict[Any, Any] = {}
    with _lock:
        if not _traces:
            _environ.get = _noting(_environ.get)
        _traces += 1
    _notes.open.append((around, found))
    try:
        yield found
    finally:
        _notes.open.pop()
        with _lock:
            _traces -= 1
            if not _traces:
                _environ.get = _environ.get.__wrapped__


def _noting(get: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(get)
    def noting(key: Any, *args: Any, **kwargs: Any) -> Any:
        value = get(key, *args, **kwargs)
        for around, found in _notes.open:
            if key in around and around[key] is value:
                found[key] = value
        return value

    return noting
