"""The command line of the benchmarks."""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

from . import measure, processes, report
from .cells import CELLS
from .regimes import PROFILES, SIDES


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed and memory of the online learners beside their peers."
    )
    options.add_argument("--profile", choices=PROFILES, default="quick")
    options.add_argument("--cells", metavar="NAME,...", help=f"only these of {', '.join(CELLS)}")
    options.add_argument(
        "--heap", choices=processes.HEAPS, default="kept", help="whether freed memory stays with the workers"
    )
    options.add_argument("--rounds", type=int, help="interleaved rounds for each problem")
    options.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write the report as JSON")
    options.add_argument("--table", type=pathlib.Path, metavar="FILE", help="write the table as Markdown")
    options.add_argument("--plots", type=pathlib.Path, metavar="FOLDER", help="draw PNG figures")
    options.add_argument(
        "--upstream",
        metavar="PYTHON",
        default=os.environ.get("BRAINTRACE_UPSTREAM_PYTHON"),
        help="interpreter of an environment with the released library; `nox -s bench` makes one",
    )
    return options


def main(arguments: list[str] | None = None) -> dict:
    """Run, print, write; returns the report."""
    chosen = parser().parse_args(arguments)
    profile = PROFILES[chosen.profile]
    if chosen.cells:
        cells = chosen.cells.split(",")
        regimes = tuple(r for r in profile.regimes if r.cell in cells)
        if not regimes:
            parser().error(f"profile {chosen.profile} has none of {', '.join(cells)}")
        profile = dataclasses.replace(profile, regimes=regimes)
    if chosen.rounds:
        profile = dataclasses.replace(profile, rounds=chosen.rounds)

    workers = processes.start(chosen.upstream, chosen.heap)
    try:
        found = measure.run(profile, SIDES, workers, _progress)
    finally:
        for worker in workers.values():
            worker.close()
    found["heap"] = chosen.heap
    _progress("")
    report.show(found)
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.table:
        chosen.table.write_text(report.markdown(found))
    if chosen.plots:
        report.figures(found, chosen.plots)
    return found


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
