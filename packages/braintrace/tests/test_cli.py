"""The command line, as a person types it."""

import importlib.metadata
import re
import subprocess
import sys

import pytest

import braintrace
from braintrace import _cli, _demo
from braintrace._cli import main


@pytest.mark.parametrize("command", [[], ["demo"], ["inspect"], ["doctor"]])
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([*command, "--help"])
    assert done.value.code == 0
    assert "usage: python -m braintrace" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"braintrace {braintrace.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trian"],
        ["demo", "--epochs", "0"],
        ["demo", "--cell", "gnu"],
        ["inspect", "m:f"],
        ["inspect", "m:f", "--input-shape", "3", "--option", "0.9"],
        ["doctor", "x"],
    ],
)
def test_a_mistyped_command_is_refused_with_the_usage(words, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_inspect_prints_a_report(capsys):
    assert main(["inspect", "braintrace._demo_training:default_model", "--input-shape", "8"]) == 0
    assert "cell.Wz.weight" in capsys.readouterr().out


def test_an_unknown_algorithm_lists_the_known_ones(capsys):
    words = ["inspect", "braintrace._demo_training:default_model", "--input-shape", "8"]
    assert main([*words, "--algorithm", "d_trrl"]) == 2
    assert "d_rtrl" in capsys.readouterr().err


def test_doctor_tells_a_wrong_gradient(monkeypatch, capsys):
    monkeypatch.setattr("braintrace._doctor.gradient_error", lambda: 0.3)
    monkeypatch.setattr("braintrace._doctor.sums_are_right", lambda: True)
    assert main(["doctor"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_doctor_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "braintrace", "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search("online gradient +right", done.stdout)
    faulty = importlib.metadata.version("jaxlib") in ("0.10.2", "0.11.0") and sys.platform == "linux"
    assert re.search(f"sums on CPU +{'WRONG.*XLA_FLAGS' if faulty else 'right'}", done.stdout)


def test_the_demo_gets_the_options(monkeypatch):
    seen = []
    monkeypatch.setattr(_cli, "run_demo", seen.append)
    words = ["demo", "--epochs=2", "--hidden=3", "--cell=lstm", "--batch-size=4", "--seed=5", "--out=a/b.png"]
    assert main(words) == 0
    (config,) = seen
    assert (config.epochs, config.hidden, config.cell, config.batch_size, config.seed) == (2, 3, "lstm", 4, 5)
    assert config.out.parts == ("a", "b.png")


def test_a_missing_extra_names_the_command_to_run(monkeypatch, capsys):
    find = _demo.importlib.util.find_spec
    monkeypatch.setattr(
        _demo.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "sklearn" else find(name, *rest),
    )
    assert main(["demo"]) == 2
    assert "python -m pip install" in (shown := capsys.readouterr().err)
    assert "scikit-learn" in shown


def test_inspect_takes_options_of_the_algorithm(capsys):
    command = ["inspect", "braintrace._demo_training:default_model", "--input-shape", "8", "--algorithm"]
    assert main([*command, "pp_prop", "--option", "decay_or_rank=(0.9, 0.5)"]) == 0
    assert main([*command, "d_rtrl", "--option", "vjp_method=multi-step", "--option", "window=4"]) == 0
    capsys.readouterr()
    assert main([*command, "pp_prop"]) != 0
    assert "decay_or_rank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "message"),
    [("4,3", "4,3 is not a positive number; write several with spaces between them"), ("-1", ""), ("a", "a is not a")],
)
def test_a_wrong_shape_is_explained(shape, message, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "m:f", "--input-shape", shape])
    told = capsys.readouterr().err
    assert message in told
    assert "_count" not in told
