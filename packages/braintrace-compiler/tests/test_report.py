"""The report as text, HTML, JSON and Mermaid."""

import json
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import pytest
from compiler_models import H, I, Model, array, gains, graph, leaky, recurrent, two_layers

from braintrace_compiler._tables import readable_bytes
from braintrace_primitives import matmul


def test_text_names_groups_operations_and_what_is_left_out():
    text = str(graph(two_layers()).report())
    for part in ("Hidden groups", "Marked operations", "w1", "group 1", "omits recurrent mixing, downstream memory"):
        assert part in text, part
    lines = text.splitlines()
    header = lines[1]
    assert all(len(line) >= header.index("own memory") for line in lines[3:5])
    assert {"What a learner carries", "Notes"} & set(lines) == {"What a learner carries"}


def test_an_exact_relation_and_a_readout():
    (w, out) = graph(leaky()).report().operations
    assert (w["strict"], w["drives"]) == ("exact", "group 0")
    assert (out["strict"], out["drives"], out["trace_bytes"]) == ("exact", "no hidden state", 0)


def saturating():
    """A synapse that saturates and its membrane."""

    def step(m, x):
        m.g.value = 0.8 * jnp.tanh(m.g.value) + matmul(x, m.w.value)
        m.v.value = 0.9 * m.v.value + m.g.value
        return m.v.value

    return Model(step, {"w": array(I, H)}, {"v": array(H, seed=1), "g": array(H, seed=2)})


def test_bytes_of_traces():
    """(S, I, O) float32 for each relation; (S, *positions) for element-wise weights, the broadcast one included."""
    (w,) = graph(saturating()).report().operations
    assert (w["trace_bytes"], w["kept_as"]) == (2 * I * H * 4, "a full trace")
    (tau, gain) = graph(gains(), jnp.ones(H)).report().operations
    assert tau["trace_bytes"] == H * 4
    assert gain["trace_bytes"] == H * 4


def test_bytes_where_D_and_F_are_proven_constant():
    """(S, I): the filtered inputs. Of g and v, recurrence alone reads the past of neither."""
    report = graph(recurrent()).report()
    assert report.groups[0]["memory"] == "constant, D = [[0.8, 0], [0.8, 0.9]]"
    (w, _) = report.operations
    assert (w["trace_bytes"], w["kept_as"]) == (2 * (I + H) * 4, "filtered inputs")
    assert "40 B, filtered inputs" in str(report)


def test_bytes_of_all_carries():
    carries = {c["carry"]: c["bytes"] for c in graph(saturating()).report().carries}
    assert carries == {
        "nothing": 0,
        "trace": 2 * I * H * 4,
        "two factors": (I + 2 * H) * 4,
        "full influence": 2 * H * I * H * 4,
        "random rank one": (2 * H + I * H) * 4,
    }
    twice = {c["carry"]: c["bytes"] for c in graph(saturating()).report(copies=2).carries}
    assert twice == {name: 2 * size for name, size in carries.items()}


def untraced(model, *args):
    return {u["weight"]: (u["kind"], u["gradient"]) for u in graph(model, *args).report().untraced}


@pytest.mark.filterwarnings("ignore::braintrace_compiler.CompilationWarning")
def test_why_a_parameter_has_no_trace_and_what_its_gradient_covers():
    def step(m, x):
        r = jax.nn.sigmoid(matmul(x, m.gate.value))
        y = matmul(x * r, m.w.value * m.u.value) + matmul(x, m.moving.value * x.sum())
        m.v.value = m.tau.value * m.v.value + y
        return matmul(m.v.value, m.readout.value) * m.scale.value

    shapes = {"gate": (I, I), "w": (I, H), "u": (I, H), "moving": (I, H), "tau": (H,), "scale": (1,), "idle": (2,)}
    params = {name: array(*shape) for name, shape in shapes.items()} | {"readout": array(H, 2)}
    assert untraced(Model(step, params, {"v": array(H)})) == {
        "gate": ("relation_excluded_weight_to_weight", "the current step"),
        "moving": ("time_varying_weight", "the current step"),
        "tau": ("plain_parameter_temporal", "the current step"),
        "readout": ("relation_excluded_non_temporal", "everything"),
        "scale": (None, "everything"),
        "idle": ("parameter_unused", "nothing: it is zero"),
    }


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
    assert "<b>" not in compiled.to_mermaid()
    assert page.open == []
    assert {"Hidden groups", "etp_mv", "exact"} <= set(page.cells)


def test_units_of_bytes():
    found = [readable_bytes(n) for n in (0, 12, 1536, 5 * 2**19, 3 * 2**50)]
    assert found == ["0 B", "12 B", "1.5 KiB", "2.5 MiB", "3072.0 TiB"]
