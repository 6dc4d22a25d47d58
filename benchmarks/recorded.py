"""The command line of a benchmark that records what it measures and draws what it has recorded."""

import argparse
import pathlib
from collections.abc import Callable
from typing import Any


def main(
    name: str,
    description: str | None,
    measure: Callable[..., None],
    draw: Callable[[pathlib.Path], None],
    arguments: list[str] | None = None,
    **choices: dict[str, Any],
) -> None:
    """Measure into a folder unless told not to, and draw what is there.

    Parameters
    ----------
    name : str
        Of the module.
    description : str
    measure, draw : callable
        Of the folder.
    arguments : list of str, optional
        Those of the process by default.
    **choices : dict
        Further options, as `argparse` describes them; `measure` takes their values by name.
    """
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    options.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/recorded"))
    options.add_argument("--only-draw", action="store_true", help="draw what has been recorded")
    for choice, described in choices.items():
        options.add_argument(f"--{choice}", **described)
    chosen = options.parse_args(arguments)
    if not chosen.only_draw:
        chosen.out.mkdir(parents=True, exist_ok=True)
        measure(chosen.out, **{choice: getattr(chosen, choice) for choice in choices})
    draw(chosen.out)
