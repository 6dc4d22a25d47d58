"""The workers, seen from the process that directs them."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]


class SideError(RuntimeError):
    """A worker could not do what it was asked for."""


class Remote:
    """A worker process.

    Parameters
    ----------
    python : str
        The interpreter of its environment.
    ours : bool
        Whether it is to see the packages that this process sees; an upstream worker must not.
    """

    def __init__(self, python: str, ours: bool):
        path = [str(_ROOT), *(sys.path if ours else [])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker"],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise SideError("the process has no pipes")
        self.requests, self.answers = self.process.stdin, self.process.stdout

    def ask(self, do: str, **arguments: Any) -> Any:
        """Send a request and wait for its result.

        Raises
        ------
        SideError
            If the worker reports an error or has ended.
        """
        try:
            self.requests.write(json.dumps({"do": do, "with": arguments}) + "\n")
            self.requests.flush()
        except BrokenPipeError:
            raise SideError("the process has ended") from None
        line = self.answers.readline()
        if not line:
            raise SideError(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        self.requests.close()
        self.answers.close()
        self.process.wait()


def start(upstream: str | None) -> dict[str, Remote]:
    """The workers by name; `upstream` is the interpreter of its environment, if there is one."""
    workers = {"ours": Remote(sys.executable, ours=True)}
    if upstream is not None:
        workers["upstream"] = Remote(upstream, ours=False)
    return workers
