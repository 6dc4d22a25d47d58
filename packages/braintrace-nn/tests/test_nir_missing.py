"""Without the package nir, export says what to install."""

import sys

import pytest

import braintrace_nn as nn


def test_nir_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(nn.ConfigurationError, match=r"braintrace-nn\[nir\]"):
        nn.to_nir(nn.Linear(2, 3))
