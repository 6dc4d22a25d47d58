"""The benchmarks run, and measure what they say they do."""

import csv
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import compile_time, particulars, per_step, recorded, roofline, sides
from benchmarks.models import data
from benchmarks.regimes import Regime
from benchmarks.report import curves, figures

ROOT = pathlib.Path(__file__).parents[1]


def test_smallest_profile(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks", "--profile", "smoke", "--out", str(tmp_path / "report.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    (result,) = report["results"]
    sides = result["sides"]
    assert not [side for side in sides.values() if "error" in side]
    assert all(name in done.stdout for name in sides)
    # T = 8 fits into one window, whose gradient is that of BPTT; the strict one leaves recurrent mixing out
    assert sides["multi-step 64"]["difference"] < 1e-5
    assert sides["strict D-RTRL"]["difference"] > 1e-2
    assert report["machine"]["bytes_per_s"] > 0
    assert report["heap"] == "kept"


def test_a_fixed_weight_is_fixed_on_all_sides():
    regime = Regime("gru-wr", 2, 3, 4, 8)
    expected, found = (
        jax.jit(function)(*arguments, *data(regime))[0]
        for function, arguments in (sides.bptt(regime), sides.windows(regime, window=8))
    )
    assert expected.keys() == {("rnn", "Wz", "weight"), ("rnn", "Wh", "weight"), ("out", "weight")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), dict(found), expected)


def test_a_folder_is_there_before_anything_is_measured(tmp_path):
    folder, seen = tmp_path / "new" / "folder", []
    recorded.main("name", None, lambda out: seen.append(out.is_dir()), seen.append, ["--out", str(folder)])
    assert seen == [True, folder]


def test_scaling_curves_gather_what_differs_in_one_size(tmp_path):
    def result(ratio, **sizes):
        regime = {"cell": "gru", "B": 2, "I": 3, "H": 4, "T": 5} | sizes
        sides = {"BPTT": {"ratio": 1.0}, "strict D-RTRL": {"ratio": ratio, "ratio_quartiles": [ratio, ratio]}}
        return {"regime": regime, "sides": sides}

    report = {"results": [result(0.5, T=20), result(0.4), result(0.6, T=80), result(1.5, cell="lif3")]}
    found = curves(report)
    assert found["T", "gru B2 I3 H4"]["strict D-RTRL"] == [(5, 0.4), (20, 0.5), (80, 0.6)]
    assert found["S", "lif B2 I3 H4 T5"]["strict D-RTRL"] == [(3, 1.5)]
    drawn = figures(report, tmp_path)
    assert [path.name for path in drawn] == ["time.png", "scaling.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_operations(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.operations", "--profile", "smoke", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert all(line["same_program"] and line["ratio"] > 0 for line in report["overhead"])
    traces = {line["operation"]: line["trace_bytes"] for line in report["families"]}
    assert all(name in done.stdout for name in traces)
    states_and_batch = 4 * 2 * 2
    assert traces["sparse 20 x 20, nnz 20"] == states_and_batch * 20
    assert traces["LoRA 20 x 2 x 20, carry_b=True"] == traces["dense 20 x 20"] == states_and_batch * 20 * 20
    assert traces["LoRA 20 x 2 x 20, carry_b=False"] == states_and_batch * 2 * 20
    assert traces["conv 3 x 3, 5 x 5 x 2"] == states_and_batch * 5 * 5 * 2 * 3 * 3 * 2
    assert traces["embedding 10 x 2"] == states_and_batch * 10 * 2


def test_the_compiler_s_time_by_equations(tmp_path):
    compile_time.main(["--out", str(tmp_path), "--layers", "2", "4"])
    header, *rows = (tmp_path / "compile_time.csv").read_text().splitlines()
    assert header.split(",")[:2] == ["layers", "equations"]
    assert [row.split(",")[:2] for row in rows] == [["2", "28"], ["4", "56"]]
    assert (tmp_path / "compile_time.png").read_bytes().startswith(b"\x89PNG")


def test_learning_at_every_step(tmp_path):
    per_step.main(["--profile", "smoke", "--out", str(tmp_path)])
    with (tmp_path / "per_step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["way"] for row in rows} == {way.name for way in per_step.WAYS if way.worker == "ours"}
    assert all(float(row["ms"]) > 0 and float(row["share"]) > 0 for row in rows)
    assert (tmp_path / "per_step.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_roofline_and_the_fold(tmp_path, monkeypatch):
    monkeypatch.setattr(roofline, "STEPS", (1, 2))
    monkeypatch.setattr(roofline, "TRACE", {"B": 1, "I": 2, "O": 3})
    monkeypatch.setattr(roofline, "PROBLEMS", (Regime("lif1", 1, 2, 3, 4),))
    monkeypatch.setattr(roofline, "ROUNDS", 2)
    monkeypatch.setattr(roofline, "rates", lambda: {"flops_per_s": 1e9, "bytes_per_s": 1e9})
    roofline.main(["--out", str(tmp_path)])
    with (tmp_path / "roofline.csv").open(newline="") as file:
        assert [float(row["roof_gflops"]) for row in csv.DictReader(file)] == [0.25, 0.5]
    with (tmp_path / "fold.csv").open(newline="") as file:
        assert [row["fold"] for row in csv.DictReader(file)] == ["1", "2"]
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_particulars(monkeypatch):
    monkeypatch.setattr(particulars, "DENSITIES", (0.5,))
    assert [row[0].split(":")[0] for row in particulars.shell(1)] == ["step"] * 3 + ["no step"] + ["sequence"] * 3
    sparse, dense = particulars.connections(1, units=8)
    assert sparse[1] < dense[1] == 64
    monkeypatch.setattr(particulars, "WINDOWS", (1, 2))
    small = Regime("lif1", 1, 2, 3, 4)
    assert [row[0] for row in particulars.windows(1, small)] == ["BPTT", "strict", "windows of 1", "windows of 2"]
    assert [row[2] for row in particulars.precision(1, small)] == ["0e+00"] * 3
