"""The workers, seen from the process that directs them."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).parents[1]

HEAPS = {
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)},
    "system": {},
}
"""What a worker does with memory that a program has given back (glibc): keep it, or leave that to the system.

By default blocks of megabytes are returned and taken anew at each call, and the system clears every page of them.
"""


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
    heap : str
        One of `HEAPS`.
    """

    def __init__(self, python: str, ours: bool, heap: str):
        path = [str(_ROOT), *(sys.path if ours else [])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **HEAPS[heap]}
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


def start(upstream: str | None, heap: str = "kept") -> dict[str, Remote]:
    """The workers by name; `upstream` is the interpreter of its environment, if there is one, `heap` one of `HEAPS`."""
    workers = {"ours": Remote(sys.executable, ours=True, heap=heap)}
    if upstream is not None:
        workers["upstream"] = Remote(upstream, ours=False, heap=heap)
    return workers
