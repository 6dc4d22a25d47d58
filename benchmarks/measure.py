"""Interleaved timing of all sides of a problem, and memory against the length of the sequence."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from .processes import Remote, SideError
from .regimes import BASE, Profile, Regime, Side

_CURVES = (BASE, "checkpointed BPTT", "strict D-RTRL", "multi-step 64")
"""Sides whose memory is measured along T."""

Report = dict[str, Any]
Log = Callable[[str], None]


def measure(
    regime: Regime, sides: Sequence[Side], workers: dict[str, Remote], rounds: int, log: Log = lambda line: None
) -> Report:
    """Prepare every side, then run them in turn, `rounds` times.

    Returns
    -------
    dict
        ``regime``, and ``sides``: name -> medians over rounds of the seconds per time step and of the ratio to `BASE`
        within a round (``ratio``, with quartiles; ``against_ours`` to the counterpart), ``cpu_ratio`` of the processor
        time of all threads, which other work on the machine disturbs least, compile time, temporaries, and
        ``difference``: distance of the gradient from that of `BASE`, relative, where both saw the same data.
    """
    found: dict[str, Report] = {}
    steps = {side.name: min(regime.T, side.longest or regime.T) for side in sides}
    for side in sides:
        problem = regime.at(T=steps[side.name])
        log(f"{regime}: compiling {side.name}")
        try:
            found[side.name] = workers[side.worker].ask(
                "prepare", name=side.name, method=side.method, regime=problem.as_dict(), options=dict(side.options)
            )
        except SideError as error:
            found[side.name] = {"error": str(error)}
    ready = [side for side in sides if "error" not in found[side.name]]
    if BASE not in (side.name for side in ready):
        raise SideError(f"{BASE}, the unit of all ratios: {found[BASE]['error']}")
    times: dict[str, list[float]] = {side.name: [] for side in ready}
    cpu: dict[str, list[float]] = {side.name: [] for side in ready}
    for number in range(rounds):
        log(f"{regime}: round {number + 1} of {rounds}")
        for side in ready:
            seconds, busy = workers[side.worker].ask("run", name=side.name)
            times[side.name].append(seconds / steps[side.name])
            cpu[side.name].append(busy / steps[side.name])
    for worker in workers.values():
        worker.ask("clear")
    for side in ready:
        found[side.name] |= _summary(times[side.name], times[BASE]) | {"steps": steps[side.name]}
        found[side.name]["cpu_ratio"] = statistics.median(cpu[side.name]) / statistics.median(cpu[BASE])
        if side.counterpart in times:
            found[side.name]["against_ours"] = _quartiles(times[side.name], times[side.counterpart])[1]
        found[side.name]["compile_ratio"] = found[side.name]["compile_s"] / found[BASE]["compile_s"]
        if steps[side.name] == steps[BASE]:
            found[side.name]["difference"] = difference(found[side.name]["gradient"], found[BASE]["gradient"])
    for side in ready:
        del found[side.name]["gradient"]
    return {"regime": regime.as_dict(), "sides": found}


def _summary(times: list[float], base: list[float]) -> Report:
    low, middle, high = _quartiles(times, base)
    return {
        "s_per_step": statistics.median(times),
        "fastest_s_per_step": min(times),
        "ratio": middle,
        "ratio_quartiles": [low, high],
    }


def _quartiles(times: list[float], base: list[float]) -> list[float]:
    return statistics.quantiles((a / b for a, b in zip(times, base, strict=True)), n=4)


def difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """Largest relative difference between digests of two gradients, over their arrays."""
    worst = 0.0
    for path, (norm, *probes) in b.items():
        distance = max(abs(p - q) for p, q in zip(a[path][1:], probes, strict=True))
        worst = max(worst, distance / max(norm, 1e-30))
    return worst


def memory(regime: Regime, sides: Sequence[Side], workers: dict[str, Remote], lengths: Sequence[int]) -> Report:
    """Bytes of temporaries of the compiled program for each T; nothing is run."""
    curves: dict[str, list[int | None]] = {side.name: [] for side in sides}
    for T in lengths:
        for side in sides:
            try:
                facts = workers[side.worker].ask(
                    "inspect", method=side.method, regime=regime.at(T=T).as_dict(), options=dict(side.options)
                )
                curves[side.name].append(facts["temporary_bytes"])
            except SideError:
                curves[side.name].append(None)
    return {"regime": regime.as_dict(), "T": list(lengths), "temporary_bytes": curves}


def run(profile: Profile, all_sides: Sequence[Side], workers: dict[str, Remote], log: Log) -> Report:
    """Everything that a profile asks for."""
    start = time.perf_counter()
    sides = [side for side in all_sides if side.name in profile.sides and side.worker in workers]
    report: Report = {
        "about": {name: worker.ask("about") for name, worker in workers.items()},
        "machine": workers["ours"].ask("machine"),
        "results": [measure(regime, sides, workers, profile.rounds, log) for regime in profile.regimes],
    }
    if profile.lengths:
        at = profile.regimes[0]
        curves = [s for s in sides if s.name in _CURVES]
        log(f"{at}: memory against T")
        report["memory"] = memory(at, curves, workers, profile.lengths)
    report["seconds"] = time.perf_counter() - start
    return report
