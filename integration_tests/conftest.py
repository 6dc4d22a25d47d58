"""Lets the tests of this folder share `oracles` and `oracle_cases`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
