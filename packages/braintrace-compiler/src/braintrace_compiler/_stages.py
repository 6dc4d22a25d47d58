"""Runs the stages of the compiler one after the other, watched."""

import os
from collections.abc import Callable
from typing import Any

from ._diagnostics import render
from ._listing import list_program
from ._module_info import ModuleInfo
from ._relations import Relations

StageCallback = Callable[[str, Any], None]
"""Called after each stage with its name and what it gave."""

DEBUG = "BRAINTRACE_DEBUG"
"""Environment variable; where it is set and not 0, the compiler prints what each stage gives."""


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
        if debugging():
            print(describe_stage(function.__name__, result))
        if self._callback is not None:
            self._callback(function.__name__, result)
        return result

    def check(self, function: Callable[..., Any], *args: Any) -> Any:
        """What is done between two stages; an error that leaves it is told like that of a stage."""
        return self._guard(function, *args)

    def _guard(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except Exception as error:
            after = f", after {', '.join(self._done)}" if self._done else ""
            error.add_note(f"braintrace: in stage {function.__name__}{after}")
            raise


def debugging() -> bool:
    """Whether the user asked for a look at every stage."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def describe_stage(name: str, result: Any) -> str:
    """What a stage gave, as text: the program after the first, its records after any."""
    text = f"--- braintrace: {name}"
    if isinstance(result, ModuleInfo):
        return f"{text}\n{list_program(result, result.records)}"
    if isinstance(result, Relations):
        return f"{text}: {len(result.relations)} relations\n{render(result.records)}".rstrip()
    if name == "find_hidden_groups_from_minfo":
        return "\n".join([text, *(f"group {g.index}: {list(g.hidden_paths)}" for g in result[0])])
    return text


def print_if_debugging(graph: Any) -> None:
    """Print the program of a graph with all its diagnostics inline, if the user asked for it."""
    if debugging():
        print(f"--- braintrace: compiled\n{list_program(graph.module_info, graph.diagnostics)}")
