"""The command line: ``python -m braintrace demo|inspect|doctor``."""

import argparse
import ast
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from braintrace_primitives import BraintraceError

from ._demo import run_demo
from ._demo_training import CELLS, DemoConfig
from ._doctor import examine
from ._inspect import FORMS, inspect_model
from ._version import __version__


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run``, from the parsed options to an exit status."""
    top = argparse.ArgumentParser(
        prog="python -m braintrace", description="Online learning of recurrent networks in JAX."
    )
    top.add_argument("--version", action="version", version=f"braintrace {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _add(
        commands,
        "demo",
        _demo,
        "train online on handwritten digits, beside BPTT",
        "Train a recurrent network online (strict D-RTRL) on scikit-learn's handwritten digits, one row of "
        "pixels per time step, then the same network by backpropagation through time; compare them in a "
        "table and a picture.",
    )
    usual = DemoConfig()
    demo.add_argument("--epochs", type=_count, default=usual.epochs, help="over the digits (%(default)s)")
    demo.add_argument("--hidden", type=_count, default=usual.hidden, help="units of the cell (%(default)s)")
    demo.add_argument("--cell", choices=CELLS, default=usual.cell, help="recurrent cell (%(default)s)")
    demo.add_argument("--batch-size", type=_count, default=usual.batch_size, help="digits per update (%(default)s)")
    demo.add_argument("--seed", type=int, default=usual.seed, help="of weights and data (%(default)s)")
    demo.add_argument("--out", type=pathlib.Path, default=usual.out, help="picture to write (%(default)s)")

    inspect = _add(
        commands,
        "inspect",
        _inspect,
        "print what the compiler finds in a model",
        "Compile one time step of a model and print what the compiler found: hidden groups, weights and the "
        "states they drive, what an online gradient leaves out, and what each weight's trace costs.",
    )
    inspect.add_argument(
        "target",
        metavar="MODULE:FACTORY",
        help="a function without arguments, or a class, that gives a brainstate.nn.Module",
    )
    inspect.add_argument(
        "--input-shape",
        type=_count,
        nargs="*",
        required=True,
        metavar="N",
        help="shape of one input without its batch axis",
    )
    inspect.add_argument("--input-dtype", default="float32", metavar="DTYPE", help="(%(default)s)")
    inspect.add_argument("--batch-size", type=_count, metavar="B", help="batch axis of the input (none)")
    inspect.add_argument("--algorithm", default="d_rtrl", help="name of the algorithm (%(default)s)")
    inspect.add_argument(
        "--option",
        type=_option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the algorithm, such as decay_or_rank=0.9; once for each",
    )
    inspect.add_argument("--format", choices=FORMS, default="text", help="of the report (%(default)s)")

    _add(
        commands,
        "doctor",
        _doctor,
        "print versions and devices, check one gradient",
        "Print versions and devices, and check a small online gradient against backpropagation through time.",
    )
    return top


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    brief: str,
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=brief, description=text)
    command.set_defaults(run=run)
    return command


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        several = "; write several with spaces between them" if "," in text or "x" in text else ""
        raise argparse.ArgumentTypeError(f"{text} is not a positive number{several}")
    return int(text)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text} is not of the form NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word


def _demo(options: argparse.Namespace) -> int:
    run_demo(
        DemoConfig(
            epochs=options.epochs,
            hidden=options.hidden,
            cell=options.cell,
            batch_size=options.batch_size,
            seed=options.seed,
            out=options.out,
        )
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    batch = () if options.batch_size is None else (options.batch_size,)
    print(
        inspect_model(
            options.target,
            (*batch, *options.input_shape),
            dtype=options.input_dtype,
            batch_size=options.batch_size,
            algorithm=options.algorithm,
            options=dict(options.option),
            form=options.format,
        )
    )
    return 0


def _doctor(options: argparse.Namespace) -> int:
    report, healthy = examine()
    print(report)
    return 0 if healthy else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 when all went well, 1 when ``doctor`` finds a fault, 2 for an error that its message
        explains.

    Examples
    --------
    >>> main(["inspect", "nowhere:make", "--input-shape", "3"])
    2
    """
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except BraintraceError as error:
        print(error, file=sys.stderr)
        return 2
