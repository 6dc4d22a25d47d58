"""Pictures of a graph."""

import sys

import pytest
from compiler_models import graph, two_layers

from braintrace_compiler import NotSupportedError


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_written(tmp_path, suffix, magic):
    pytest.importorskip("matplotlib")
    path = graph(two_layers()).draw(tmp_path / f"graph.{suffix}")
    content = path.read_bytes()
    assert content.startswith(magic)
    assert len(content) > 2000


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NotSupportedError, match=r"braintrace-compiler\[draw\]"):
        graph(two_layers()).draw(tmp_path / "graph.svg")


def test_mermaid_of_the_graph():
    compiled = graph(two_layers())
    assert compiled.to_mermaid() == compiled.report().to_mermaid()
