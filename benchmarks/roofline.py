"""What the update of a trace attains of the machine, by the number of steps that are folded at once.

``python -m benchmarks.roofline`` measures and writes ``docs/recorded/roofline.csv``, ``docs/recorded/fold.csv`` and
their figure. To fold K steps into a trace of B · I · O · S numbers takes 2 K operations for each number, which is read
and written once: K / 4 operations per byte. One step at a time is bound by memory, and a long fold by arithmetic.
Beside it, the time of the whole gradient by the same K.
"""

import csv
import pathlib
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import braintrace

from . import recorded
from .machine import fastest, rates
from .regimes import Regime
from .worker import Worker

STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TRACE = {"B": 16, "I": 768, "O": 512}
PROBLEMS = (Regime("gru", 16, 128, 256, 256), Regime("lif2", 16, 128, 256, 256))
ROUNDS = 7


def update_seconds(B: int, I: int, O: int, K: int) -> float:
    """Seconds to fold K steps into the trace of a dense operation, one state per position."""
    rng = np.random.default_rng(0)
    rule = braintrace.get_primitive_spec(braintrace.etp_mm_p).trace_rule
    params = {"has_bias": False}
    weights = {"weight": jnp.zeros((I, O))}
    xs, factors, blocks = (
        jnp.asarray(rng.random(shape), jnp.float32) for shape in ((K, B, I), (K, 1, B, O), (1, 1, B, O))
    )

    def advance(trace: Any, blocks: Any, xs: Any, factors: Any) -> Any:
        return rule.advance(trace, blocks, xs, factors, weights, params)

    update = jax.jit(advance, donate_argnums=0)
    held = [rule.init(xs[0], weights, factors[0, 0], 1, params, jnp.float32)]

    def run() -> None:
        held.append(jax.block_until_ready(update(held.pop(), blocks, xs, factors)))

    return fastest(run)


def measure_updates() -> list[dict[str, Any]]:
    """A row for each K: operations per byte and per second, and what the machine allows."""
    machine, rows = rates(), []
    numbers = TRACE["B"] * TRACE["I"] * TRACE["O"]
    for K in tqdm(STEPS, desc="updates of a trace"):
        attained = 2 * K * numbers / update_seconds(**TRACE, K=K)
        allowed = min(machine["flops_per_s"], machine["bytes_per_s"] * K / 4)
        rows.append(
            {
                "K": K,
                "flops_per_byte": K / 4,
                "gflops": f"{attained / 1e9:.4g}",
                "roof_gflops": f"{allowed / 1e9:.4g}",
                "peak_gflops": f"{machine['flops_per_s'] / 1e9:.4g}",
                "gbytes_per_s": f"{machine['bytes_per_s'] / 1e9:.4g}",
            }
        )
    return rows


def measure_folds() -> list[dict[str, Any]]:
    """A row for each problem and fold: time of the gradient over that of backpropagation through time."""
    worker, rows = Worker(), []
    for problem in PROBLEMS:
        sides = {"bptt": ("bptt", {}), **{f"fold {K}": ("strict", {"fold": K}) for K in STEPS}}
        for name, (method, options) in tqdm(sides.items(), desc=f"{problem}: compiling"):
            worker.prepare(name, method, problem.as_dict(), options)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in tqdm(range(ROUNDS), desc=str(problem)):
            for name in sides:
                times[name].append(worker.run(name)[0])
        for K in STEPS:
            ratio = statistics.median(a / b for a, b in zip(times[f"fold {K}"], times["bptt"], strict=True))
            rows.append({"problem": str(problem), "fold": K, "ratio": f"{ratio:.3f}"})
        worker.clear()
    return rows


def draw(folder: pathlib.Path) -> None:
    """Draw what has been recorded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = _read(folder / "roofline.csv")
    intensity = [float(r["flops_per_byte"]) for r in rows]
    first = rows[0]
    peak, bandwidth = float(first["peak_gflops"]), float(first["gbytes_per_s"])
    corner = [intensity[0], peak / bandwidth, intensity[-1]]
    left.loglog(corner, [bandwidth * corner[0], peak, peak], "k-", lw=1, label="bandwidth, then products")
    left.loglog(intensity, [float(r["gflops"]) for r in rows], "o", label="update of a trace")
    for r, x in zip(rows, intensity, strict=True):
        left.annotate(f"K={r['K']}", (x, float(r["gflops"])), textcoords="offset points", xytext=(4, -11), fontsize=7)
    left.set(xlabel="operations per byte of trace", ylabel="GFLOP/s", title="What a fold attains")
    left.legend(frameon=False, fontsize=8)
    rows = _read(folder / "fold.csv")
    for problem in dict.fromkeys(r["problem"] for r in rows):
        own = [r for r in rows if r["problem"] == problem]
        right.loglog([int(r["fold"]) for r in own], [float(r["ratio"]) for r in own], "o-", label=problem)
    right.axhline(1, color="black", lw=1, ls="--", label="BPTT")
    right.set_xscale("log", base=2)
    right.set(xlabel="fold K (steps)", ylabel="time / BPTT", title="The whole gradient, strict D-RTRL")
    right.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "roofline.png", dpi=110)


def _read(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measure(folder: pathlib.Path) -> None:
    """Write both tables."""
    _write(folder / "roofline.csv", measure_updates())
    _write(folder / "fold.csv", measure_folds())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    recorded.main("roofline", __doc__, measure, draw, arguments)


if __name__ == "__main__":
    main()
