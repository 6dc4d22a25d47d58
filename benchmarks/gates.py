"""Gates in one matrix against gates of their own: `python -m benchmarks.gates`."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from .models import data
from .regimes import Regime
from .sides import METHODS

SIZES = (Regime("", 16, 128, 256, 256), Regime("", 1, 128, 256, 256), Regime("", 16, 16, 32, 256))
WAYS = {"strict D-RTRL": "strict", "BPTT by a learner": "full", "per-step SGD": "per_step"}
ROUNDS = 9


def prepared(regime: Regime, method: str) -> Callable[[], Any]:
    """A compiled gradient of one sequence, run once."""
    function, arguments = METHODS[method](regime)
    program, values = jax.jit(function), (*arguments, *data(regime))
    jax.block_until_ready(program(*values))
    return lambda: jax.block_until_ready(program(*values))


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of one run, all threads together: what other work on the machine disturbs least."""
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(cell: str, size: Regime, method: str) -> tuple[float, float, float]:
    """Quartiles of (fused / separate) over interleaved rounds."""
    steps = 32 if method == "per_step" else size.T
    sides = [prepared(size.at(T=steps, cell=name), method) for name in (f"{cell} fused", cell)]
    ratios = []
    for _ in range(ROUNDS):
        fused, separate = map(seconds, sides)
        ratios.append(fused / separate)
    return tuple(statistics.quantiles(ratios, n=4))


def main() -> None:
    """Print one row per cell and size."""
    print("| problem | " + " | ".join(WAYS) + " |")
    print("| --- |" + " --- |" * len(WAYS))
    for size in SIZES:
        for cell in ("gru", "lstm"):
            found = map(functools.partial(compare, cell, size), WAYS.values())
            texts = [f"{middle:.2f} ({low:.2f} - {high:.2f})" for low, middle, high in found]
            print(f"| {size.at(cell=cell)} | " + " | ".join(texts) + " |", flush=True)


if __name__ == "__main__":
    main()
