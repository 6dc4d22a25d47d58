"""The report as text, HTML, JSON and Mermaid."""

import json
from html.parser import HTMLParser

import jax.numpy as jnp
from compiler_models import H, I, Model, array, gains, graph, leaky, recurrent, two_layers

from braintrace_compiler._report import _bytes
from braintrace_primitives import matmul


def test_text_names_groups_operations_and_what_is_left_out():
    text = str(graph(two_layers()).report())
    for part in ("Hidden groups", "Marked operations", "w1", "group 1", "omits recurrent mixing, downstream memory"):
        assert part in text, part
    lines = text.splitlines()
    header = lines[1]
    assert all(len(line) >= header.index("own memory") for line in lines[3:5])


def test_an_exact_relation_and_a_readout():
    (w, out) = graph(leaky()).report().operations
    assert (w["strict"], w["drives"]) == ("exact", "group 0")
    assert (out["strict"], out["drives"], out["trace_bytes"]) == ("exact", "no hidden state", 0)


def test_bytes_of_traces():
    """(S, I, O) float32 for each relation; (S, *positions) for element-wise weights, the broadcast one included."""
    (w, _) = graph(recurrent()).report().operations
    assert w["trace_bytes"] == 2 * (I + H) * H * 4
    (tau, gain) = graph(gains(), jnp.ones(H)).report().operations
    assert tau["trace_bytes"] == H * 4
    assert gain["trace_bytes"] == H * 4


def test_nothing_is_carried_where_no_past_is_recalled():
    def step(m, x):
        m.v.value = jnp.tanh(matmul(jnp.concatenate([x, m.v.value]), m.w.value))
        return m.v.value

    report = graph(Model(step, {"w": array(I + H, H)}, {"v": array(H)})).report()
    assert report.operations[0]["trace_bytes"] == 0
    assert report.groups[0]["memory"] == "none"


def test_json():
    document = json.loads(graph(two_layers()).report().to_json())
    assert [g["states"] for g in document["groups"]] == [["a"], ["b"]]
    assert [o["groups"] for o in document["operations"]] == [[0], [1]]
    assert all("compiler_models.py" in o["source"] for o in document["operations"])


def test_mermaid():
    lines = graph(two_layers()).report().to_mermaid().splitlines()
    assert lines[0] == "flowchart LR"
    assert "  w0 --> g0" in lines
    assert "  w1 --> g1" in lines


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data)


def test_html_is_well_formed_and_escaped():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value["<b>"])
        return m.v.value

    compiled = graph(Model(step, {"w": {"<b>": array(I, H)}}, {"v": array(H)}))
    page = Balanced()
    page.feed(compiled._repr_html_())
    assert page.open == []
    assert {"Hidden groups", "etp_mv", "exact"} <= set(page.cells)


def test_units_of_bytes():
    assert [_bytes(n) for n in (0, 12, 1500, 2_500_000, 3 * 10**12)] == [
        "none",
        "12 B",
        "1.5 KB",
        "2.5 MB",
        "3000.0 GB",
    ]
