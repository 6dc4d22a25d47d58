"""What one step costs when the weights change after every step, as a share of what memory allows.

``python -m benchmarks.per_step [--upstream PYTHON]`` measures and writes ``docs/recorded/per_step.csv`` and its figure.
A trace must be read and written at every step: 8 bytes for each element in single precision. How long that takes is
measured in the same rounds, on an array of the size of the trace in a loop that does nothing else.
"""

import csv
import os
import pathlib
import statistics
from typing import Any, NamedTuple

from . import processes, recorded
from .regimes import Regime

SIZES = {
    "full": (Regime("lif1", 32, 256, 512, 64), Regime("lif2", 32, 256, 512, 64), Regime("gru", 16, 128, 512, 32)),
    "quick": (Regime("lif1", 32, 256, 512, 64),),
    "smoke": (Regime("lif1", 2, 3, 4, 8),),
}
ROUNDS = {"full": 7, "quick": 5, "smoke": 3}
LIMIT = "8 bytes per element"


class Way(NamedTuple):
    """One way to learn at every step: a method of `sides`."""

    name: str
    worker: str
    method: str
    options: dict[str, Any]
    longest: int | None = None


WAYS = (
    Way(LIMIT, "ours", "stream", {}),
    Way("etrace_train", "ours", "train", {}),
    Way("etrace_train, bfloat16 traces", "ours", "train", {"trace_dtype": "bfloat16"}),
    Way("grad in a loop of one's own", "ours", "per_step", {}),
    Way("upstream, grad in a loop of one's own", "upstream", "per_step", {}, 8),
)


def measure(profile: str, workers: dict[str, processes.Remote]) -> list[dict[str, Any]]:
    """A row for each problem and way: milliseconds per step, and share of the limit within a round."""
    rows = []
    for regime in SIZES[profile]:
        ways = [way for way in WAYS if way.worker in workers]
        steps = {way.name: min(regime.T, way.longest or regime.T) for way in ways}
        for way in ways:
            problem = regime.at(T=steps[way.name]).as_dict()
            workers[way.worker].ask("prepare", name=way.name, method=way.method, regime=problem, options=way.options)
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(ROUNDS[profile]):
            for way in ways:
                times[way.name].append(workers[way.worker].ask("run", name=way.name)[0] / steps[way.name])
        for worker in workers.values():
            worker.ask("clear")
        for name, found in times.items():
            shares = [limit / own for limit, own in zip(times[LIMIT], found, strict=True)]
            low, middle, high = statistics.quantiles(shares, n=4)
            rows.append(
                {
                    "problem": str(regime),
                    "way": name,
                    "ms": f"{1e3 * statistics.median(found):.3g}",
                    "share": f"{middle:.3f}",
                    "low": f"{low:.3f}",
                    "high": f"{high:.3f}",
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| problem | way | ms/step | share of the limit | quartiles |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r['problem']} | {r['way']} | {r['ms']} | {r['share']} | {r['low']} - {r['high']} |" for r in rows]
    return "\n".join(lines)


def draw(folder: pathlib.Path) -> None:
    """Draw what has been recorded."""
    from matplotlib.figure import Figure

    with (folder / "per_step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    problems = list(dict.fromkeys(r["problem"] for r in rows))
    names = [n for n in dict.fromkeys(r["way"] for r in rows) if n != LIMIT]
    figure = Figure(figsize=(2.5 + 2.5 * len(problems), 4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        found = {r["problem"]: float(r["share"]) for r in rows if r["way"] == name}
        at = [i + (k - len(names) / 2 + 0.5) * width for i, p in enumerate(problems) if p in found]
        axes.bar(at, [100 * share for share in found.values()], width, label=name)
    axes.axhline(50, color="black", lw=0.8, ls=":")
    axes.set_xticks(range(len(problems)), problems, fontsize=8)
    axes.set(ylabel="% of the memory limit, higher is better")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(folder / "per_step.png", dpi=110)


def record(folder: pathlib.Path, profile: str, upstream: str | None) -> None:
    """Measure, print and write the table."""
    workers = processes.start(upstream)
    try:
        rows = measure(profile, workers)
    finally:
        for worker in workers.values():
            worker.close()
    print(table(rows))
    with (folder / "per_step.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    upstream = {
        "metavar": "PYTHON",
        "default": os.environ.get("BRAINTRACE_UPSTREAM_PYTHON"),
        "help": "interpreter of an environment with the released library",
    }
    profile = {"choices": SIZES, "default": "quick"}
    recorded.main("per_step", __doc__, record, draw, arguments, profile=profile, upstream=upstream)


if __name__ == "__main__":
    main()
