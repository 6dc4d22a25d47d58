"""Lets the tests of this folder share `oracles` and `oracle_cases`, and use the benchmarks."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
