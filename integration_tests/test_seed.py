"""The founding notebook, unchanged, prints what it recorded."""

import pathlib
import subprocess
import sys

import pytest

CHECKER = pathlib.Path(__file__).with_name("seed") / "check_seed.py"


def test_the_founding_notebook_prints_what_it_recorded():
    done = subprocess.run([sys.executable, CHECKER], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr)
    assert done.stdout.splitlines()[-1].endswith(" 0 failures")
