"""The benchmarks run, and measure what they say they do."""

import json
import os
import pathlib
import subprocess
import sys

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
