"""``python -m braintrace demo``: handwritten digits, read row by row, learnt online and by BPTT."""

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from braintrace_algos import BPTT, D_RTRL

from ._demo_figure import draw
from ._demo_training import COLUMNS, ROWS, DemoConfig, Digits, Run, load_digits, make_learner, train
from ._errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def require_extra(*modules: str) -> None:
    """Refuse with the command to run where packages of the extra ``demo`` are not installed."""
    distributions = {"sklearn": "scikit-learn"}
    missing = [distributions.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"The demo needs {', '.join(missing)}.",
            found="not installed",
            expected="the packages of the extra `demo`",
            fix=f"python -m pip install {' '.join(missing)}",
        )


def run_demo(config: DemoConfig, console: "Console | None" = None) -> tuple[Run, Run]:
    """Train online and by BPTT with one budget, print how they compare and draw what was learnt.

    Parameters
    ----------
    config : DemoConfig
    console : rich.console.Console, optional
        Where to print; the terminal by default.

    Returns
    -------
    tuple of Run
        The online run, then that of BPTT.

    Raises
    ------
    MissingExtraError
        If a package of the extra ``demo`` is not installed.
    """
    require_extra("matplotlib", "optax", "rich", "sklearn")
    from rich.console import Console

    console = console or Console()
    digits = load_digits(config.seed)
    console.print(
        f"{len(digits.train_labels)} digits to learn from, {len(digits.test_labels)} to be tested on, "
        f"one row of {COLUMNS} pixels per time step, {ROWS} steps.\n"
    )
    online = make_learner(config, D_RTRL)
    console.print(str(online.report), markup=False, highlight=False)
    console.print()
    runs = (
        _train_with_bar(console, "online D-RTRL", online, digits, config),
        _train_with_bar(console, "BPTT", make_learner(config, BPTT), digits, config),
    )
    console.print(_table(*runs))
    draw(config.out, digits, *runs)
    console.print(f"Picture: {config.out}", highlight=False)
    return runs


def _train_with_bar(console: "Console", name: str, learner: Any, digits: Digits, config: DemoConfig) -> Run:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
        TimeElapsedColumn(),
    )
    total = config.epochs * (len(digits.train_labels) // config.batch_size)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, loss=float("nan"), accuracy=float("nan"))
        smooth = _Smooth()

        def on_update(loss: float, accuracy: float) -> None:
            smooth_loss, smooth_accuracy = smooth(loss, accuracy)
            bar.update(task, advance=1, loss=smooth_loss, accuracy=smooth_accuracy)

        return train(name, learner, digits, config, on_update)


class _Smooth:
    """Running means over about the last twenty updates."""

    def __init__(self) -> None:
        self.means: np.ndarray | None = None

    def __call__(self, *values: float) -> np.ndarray:
        new = np.array(values)
        self.means = new if self.means is None else self.means + 0.05 * (new - self.means)
        return self.means


def _table(*runs: Run) -> "Table":
    from rich.table import Table

    table = Table(
        title="Same network, seed, data and number of updates",
        caption="Accuracy on the test digits; loss over the last 20 updates. The first update compiles.",
    )
    table.add_column("gradient", no_wrap=True)
    for heading in ("accuracy", "final loss", "1st update", "all others", "per update"):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(
            run.name,
            f"{run.accuracy:.1%}",
            f"{run.losses[-20:].mean():.3f}",
            f"{run.first_update:.2f} s",
            f"{run.other_updates:.2f} s",
            f"{run.milliseconds_per_update:.2f} ms",
        )
    return table
