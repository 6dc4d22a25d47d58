"""Tables and figures of a report."""

import pathlib
from typing import Any

from .regimes import BASE, SIDES, Regime

HEADER = (
    "problem",
    "side",
    "ms/step",
    "× BPTT",
    "quartiles",
    "× BPTT, CPU time",
    "× ours",
    "temporaries MB",
    "compile s",
    "Δ gradient",
)


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of the table, as text."""
    lines = []
    for result in report["results"]:
        title = str(Regime(**result["regime"]))
        for name, facts in result["sides"].items():
            lines.append((title, name, *_cells(facts)))
            title = ""
    return lines


def _cells(facts: dict[str, Any]) -> tuple[str, ...]:
    if "error" in facts:
        return ("-", "-", "-", "-", "-", "-", "-", facts["error"][:60])
    low, high = facts["ratio_quartiles"]
    distance = facts.get("difference")
    return (
        f"{1e3 * facts['s_per_step']:.3g}",
        f"{facts['ratio']:.3g}",
        f"{low:.3g} - {high:.3g}",
        f"{facts['cpu_ratio']:.3g}",
        f"{facts['against_ours']:.3g}" if "against_ours" in facts else "",
        f"{facts['temporary_bytes'] / 1e6:.3g}",
        f"{facts['compile_s']:.2g}",
        "" if distance is None else f"{distance:.0e}",
    )


def heading(report: dict[str, Any]) -> str:
    """The machine and the installations."""
    about, machine = report["about"], report["machine"]
    versions = "; ".join(
        f"{n}: braintrace {a['braintrace']}, jax {a['jax']}, Python {a['python']}" for n, a in about.items()
    )
    ours = about["ours"]
    return (
        f"{ours['cpus']} CPU cores, {ours['device']} device; "
        f"{machine['bytes_per_s'] / 1e9:.3g} GB/s read and write, {machine['flops_per_s'] / 1e9:.3g} GFLOP/s float32. "
        f"{versions}. Heap: {report['heap']}."
    )


def markdown(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *rows(report)]
    return heading(report) + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def show(report: dict[str, Any]) -> None:
    """Print the table, in colour where rich is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(markdown(report))
        return
    table = Table(*HEADER, caption=heading(report))
    for line in rows(report):
        if line[0] and table.row_count:
            table.add_section()
        table.add_row(*line)
    console = Console()
    console.print(table) if console.is_terminal else print(markdown(report))


def figures(report: dict[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draw time and memory as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_time_figure(report, folder / "time.png")]
    if "memory" in report:
        paths.append(_memory_figure(report["memory"], folder / "memory.png"))
    lines = curves(report)
    if any(len(points) > 2 for by_side in lines.values() for points in by_side.values()):
        paths.append(_scaling_figure(lines, folder / "scaling.png"))
    return paths


def curves(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, list[tuple[int, float]]]]:
    """Ratios along each size: (size, the rest of the problem) -> side -> (value, ratio), sorted.

    S is the number of states of a unit, where a cell has a variant for each.
    """
    found: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for result in report["results"]:
        sizes = dict(result["regime"])
        cell = sizes.pop("cell")
        name, S = (cell.rstrip("0123456789"), cell[len(cell.rstrip("0123456789")) :])
        if S:
            sizes["S"] = int(S)
        for axis in sizes:
            rest = " ".join([name, *(f"{k}{v}" for k, v in sizes.items() if k != axis)])
            for side, facts in result["sides"].items():
                if side != BASE and "ratio" in facts:
                    found.setdefault((axis, rest), {}).setdefault(side, []).append((sizes[axis], facts["ratio"]))
    return {key: {side: sorted(points) for side, points in by_side.items()} for key, by_side in found.items()}


def _time_figure(report: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
    import matplotlib.pyplot as plt

    results = report["results"]
    names = list(dict.fromkeys(n for r in results for n, facts in r["sides"].items() if "ratio" in facts and n != BASE))
    figure, axes = plt.subplots(figsize=(2 + 1.3 * len(results), 4.5), layout="constrained")
    width = 0.8 / max(len(names), 1)
    colours, others = _colours(names)
    for k, name in enumerate(names):
        shade: dict[str, Any] = {"color": colours[name]}
        if name in others:
            shade |= {"hatch": "////", "edgecolor": "white"}
        at = [i for i, r in enumerate(results) if "ratio" in r["sides"].get(name, {})]
        facts = [results[i]["sides"][name] for i in at]
        heights = [f["ratio"] for f in facts]
        errors = [[abs(h - f["ratio_quartiles"][e]) for h, f in zip(heights, facts, strict=True)] for e in (0, 1)]
        axes.bar([i + (k - len(names) / 2 + 0.5) * width for i in at], heights, width, yerr=errors, label=name, **shade)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", ylabel=f"time per step / {BASE}, lower is better")
    labels = [str(Regime(**r["regime"])).replace(" ", "\n") for r in results]
    axes.set_xticks(range(len(results)), labels, fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _colours(names: list[str]) -> tuple[dict[str, str], set[str]]:
    """The colour of each side, and the sides of the other library, which have the colour of ours."""
    ours = {side.name: side.counterpart for side in SIDES if side.counterpart in names and side.name in names}
    own = [name for name in names if name not in ours]
    return {name: f"C{own.index(ours.get(name, name))}" for name in names}, set(ours)


def _scaling_figure(
    lines: dict[tuple[str, str], dict[str, list[tuple[int, float]]]], path: pathlib.Path
) -> pathlib.Path:
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    long = {k: by_side for k, by_side in lines.items() if max(map(len, by_side.values())) > 2}
    names = list(dict.fromkeys(side for by_side in long.values() for side in by_side))
    colours, others = _colours(names)
    figure, axes = plt.subplots(
        1, len(long), figsize=(2 + 3.2 * len(long), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, ((size, rest), by_side) in zip(axes[0], sorted(long.items()), strict=True):
        for side, points in by_side.items():
            style = "--" if side in others else "-"
            panel.plot(*zip(*points, strict=True), marker="o", label=side, color=colours[side], linestyle=style)
        values = sorted({value for points in by_side.values() for value, _ in points})
        panel.set(xscale="linear" if size == "S" else "log", yscale="log", xlabel=size)
        panel.set_xticks(values, [str(v) for v in values])
        panel.minorticks_off()
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_title(rest, fontsize=9)
    axes[0, 0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel(f"time per step / {BASE}, lower is better")
    handles = {
        label: handle for panel in axes[0] for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend([handles[name] for name in names], names, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _memory_figure(memory: dict[str, Any], path: pathlib.Path) -> pathlib.Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for name, sizes in memory["temporary_bytes"].items():
        points = [(T, size / 1e6) for T, size in zip(memory["T"], sizes, strict=True) if size is not None]
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    regime = Regime(**memory["regime"])
    axes.set(xlabel="time steps T", ylabel="temporaries of the compiled program, MB")
    axes.set_title(f"{regime.cell} B{regime.B} I{regime.I} H{regime.H}", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
