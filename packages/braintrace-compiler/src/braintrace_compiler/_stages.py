"""Runs the stages of the compiler one after the other, watched."""

import os
from collections.abc import Callable
from typing import Any

from ._listing import list_program

StageCallback = Callable[[str, Any], None]
"""Called after each stage with its name and what it gave."""

DEBUG = "BRAINTRACE_DEBUG"
"""Environment variable; where it is set and not 0, the compiler prints its program with diagnostics inline."""


class Stages:
    """The stages that have run so far.

    Parameters
    ----------
    callback : callable, optional
        Called after each stage with its name and its result.
    """

    def __init__(self, callback: StageCallback | None = None):
        self._callback = callback
        self._done: list[str] = []

    def run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """One stage; an error that leaves it says in which stage it arose, and what came before."""
        result = self._guard(function, *args, **options)
        self._done.append(function.__name__)
        if self._callback is not None:
            self._callback(function.__name__, result)
        return result

    def check(self, function: Callable[..., None], *args: Any, **options: Any) -> None:
        """What must hold between two stages; an error that leaves it is told like that of a stage."""
        self._guard(function, *args, **options)

    def _guard(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except Exception as error:
            after = f", after {', '.join(self._done)}" if self._done else ""
            error.add_note(f"braintrace: in stage {function.__name__}{after}")
            raise


def print_if_debugging(graph: Any) -> None:
    """Print the program of a graph with its diagnostics inline, if the user asked for it."""
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        print(list_program(graph.module_info, graph.diagnostics))
