"""One process that holds one installation of braintrace and answers requests, a line of JSON each.

It runs in the environment of a peer as well as in ours: `python -m benchmarks.worker`.
"""

import contextlib
import json
import os
import sys
import time
import traceback
import warnings
from typing import Any

import jax
import numpy as np

from .machine import rates, temporary_bytes
from .models import abstract_data, data, network
from .regimes import Regime
from .sides import METHODS

_MIN_SECONDS = 0.02


class Worker:
    """What a worker can be asked for; each method returns JSON."""

    def __init__(self) -> None:
        self.prepared: dict[str, Any] = {}
        for method in ("bptt", "strict"):  # what is loaded on first use is not compile time
            _compile(Regime("rnn", 1, 2, 3, 4), method, {})

    def about(self) -> dict[str, Any]:
        """Versions."""
        import braintrace

        device = jax.devices()[0]
        return {
            "braintrace": braintrace.__version__,
            "jax": jax.__version__,
            "python": ".".join(map(str, sys.version_info[:2])),
            "device": device.device_kind,
            "cpus": len(os.sched_getaffinity(0)),
        }

    def machine(self) -> dict[str, float]:
        """Bandwidth and matrix product rate."""
        return rates()

    def prepare(self, name: str, method: str, regime: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Compile a side and run it once."""
        problem = Regime(**regime)
        program, arguments, facts = _compile(problem, method, options)
        values = (*arguments, *data(problem))
        gradient = jax.block_until_ready(program(*values))[0]
        start = time.perf_counter()
        jax.block_until_ready(program(*values))
        repeats = 1 + int(_MIN_SECONDS / (time.perf_counter() - start))
        self.prepared[name] = (program, values, repeats)
        return facts | {"gradient": digest(gradient)}

    def inspect(self, method: str, regime: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Compile a side without running it."""
        return _compile(Regime(**regime), method, options)[2]

    def run(self, name: str) -> tuple[float, float]:
        """Seconds of one call on the clock and of all threads, the mean of several where a call is short."""
        program, values, repeats = self.prepared[name]
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            jax.block_until_ready(program(*values))
        return (time.perf_counter() - start) / repeats, (time.process_time() - start_cpu) / repeats

    def clear(self) -> None:
        """Forget what was prepared."""
        self.prepared.clear()
        jax.clear_caches()


def _compile(regime: Regime, method: str, options: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    network(regime)  # what initial values take to compile is not compile time
    start = time.perf_counter()
    function, arguments = METHODS[method](regime, **options)
    traced = jax.jit(function).lower(*arguments, *abstract_data(regime))
    middle = time.perf_counter()
    program = traced.compile()
    facts = {
        "trace_s": middle - start,
        "compile_s": time.perf_counter() - start,
        "temporary_bytes": temporary_bytes(program),
        "carried_bytes": sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(arguments)),
    }
    return program, arguments, facts


def digest(gradient: dict[Any, Any]) -> dict[str, list[float]]:
    """Of each array its norm and its products with four fixed random arrays: enough to compare processes."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(gradient):
        value = np.asarray(leaf, np.float64).ravel()
        probes = np.random.default_rng(value.size).standard_normal((4, value.size))
        found[jax.tree_util.keystr(path)] = [float(np.linalg.norm(value)), *(probes @ value).tolist()]
    return found


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = {"result": getattr(worker, request["do"])(**request.get("with", {}))}
        except Exception as error:  # a side that fails is reported and the others go on
            message = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {message[0]}", "trace": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
