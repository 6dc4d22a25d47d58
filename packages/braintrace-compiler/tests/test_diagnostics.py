"""Every kind of record is emitted, and says where."""

import inspect
import re
import warnings

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u
from compiler_models import H, I, Model, array, gated, graph, kinds, leaky, recurrent, two_layers

from braintrace_compiler import (
    CompilationError,
    CompilationRecord,
    CompilationWarning,
    ControlFlowPolicy,
    DiagnosticKind,
    DiagnosticLevel,
    compile_etrace_graph,
)
from braintrace_compiler._diagnostics import emit_warnings
from braintrace_primitives import matmul


def quiet(model, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        return graph(model, *args, **options)


def cell(step, params=None, **states):
    return Model(step, params or {"w": array(I, H)}, states or {"v": array(H)})


def time_varying():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value * x.sum())
        return m.v.value

    return cell(step)


def no_parameter():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, jnp.ones((I, H))) + matmul(x, m.w.value)
        return m.v.value

    return cell(step)


def mixing_transition():
    def step(m, x):
        m.v.value = jax.nn.softmax(m.v.value) + matmul(x, m.w.value)
        return m.v.value

    return cell(step)


def mixing_feed():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + jax.nn.softmax(matmul(x, m.w.value))
        return m.v.value

    return cell(step)


def plain_parameter():
    def step(m, x):
        m.v.value = m.tau.value * m.v.value + matmul(x, m.w.value)
        return m.v.value

    return cell(step, {"w": array(I, H), "tau": array(H)})


def untouched():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value)
        return m.v.value

    return cell(step, v=array(H), idle=array(H))


def delayed(cut=lambda v: v):
    def step(m, x):
        before, m.late.value = m.late.value, cut(jnp.tanh(m.v.value))
        m.v.value = 0.9 * m.v.value + before + matmul(x, m.w.value)
        return m.v.value

    model = cell(step)
    model.late = brainstate.ShortTermState(array(H))
    return model


def partial_path():
    def step(m, x):
        y = matmul(x, m.w.value)
        m.v.value = 0.9 * m.v.value + y + matmul(jnp.tanh(y), m.u.value)
        return m.v.value

    return cell(step, {"w": array(I, H), "u": array(H, H)})


def moved_residual():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = 0.7 * m.b.value + jnp.roll(m.a.value, 1)
        return m.b.value

    return cell(step, a=array(H), b=array(H))


def pooled(size):
    def step(m, x):
        m.v.value = 0.9 * m.v.value + jax.nn.softmax(matmul(x, m.w.value))[:H]
        return m.v.value

    return cell(step, {"w": array(I, size)})


def unused_parameter():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value)
        return m.v.value

    return cell(step, {"w": array(I, H), "idle": array(H)})


def branching():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + jax.lax.cond(x[0] > 0, lambda: matmul(x, m.w.value), lambda: jnp.zeros(H))
        return m.v.value

    return cell(step)


def looping():
    def step(m, x):
        m.v.value = jax.lax.fori_loop(0, 3, lambda k, v: 0.9 * v + matmul(x, m.w.value), m.v.value)
        return m.v.value

    return cell(step)


UNROLL, DESCEND = {}, {"control_flow": ControlFlowPolicy(unroll_limit=1)}
CLOSE = {"control_flow": ControlFlowPolicy(unroll_limit=1, long_scan="close", closed="exclude")}

IN_LOOPS = {
    "COND_IF_CONVERTED": (branching, UNROLL, "INFO"),
    "SCAN_UNROLLED": (looping, UNROLL, "INFO"),
    "SCAN_DESCENT_APPLIED": (looping, DESCEND, "INFO"),
    "PRIMITIVE_INSIDE_CONTROL_FLOW": (looping, DESCEND, "INFO"),
    "WEIGHT_IN_CONTROL_FLOW": (looping, CLOSE, "WARNING"),
}

EMITTED = {
    "RELATION_INCLUDED": (leaky, ("w",), ("v",)),
    "RELATION_EXCLUDED_NON_TEMPORAL": (leaky, ("out",), None),
    "RELATION_EXCLUDED_WEIGHT_TO_WEIGHT": (gated, ("wr",), ("h",)),
    "RELATION_EXCLUDED_NO_PARAMSTATE": (no_parameter, None, None),
    "RELATION_EXCLUDED_SHAPE_MISMATCH": (lambda: pooled(H + 1), ("w",), ("v",)),
    "RELATION_PARTIAL_PATH": (partial_path, ("w",), ("v",)),
    "TRANSITION_TAIL_BOUNDED": (moved_residual, ("w",), ("b",)),
    "TIME_VARYING_WEIGHT": (time_varying, ("w",), None),
    "POSITION_MIXING": (mixing_feed, ("w",), ("v",)),
    "PLAIN_PARAMETER_TEMPORAL": (plain_parameter, ("tau",), ("v",)),
    "CROSS_GROUP_MEMORY": (two_layers, None, ("a",)),
    "HIDDEN_GROUP_MERGED": (recurrent, None, ("g",)),
    "PARAMETER_UNUSED": (unused_parameter, ("idle",), None),
    "MEMORY_NOT_HIDDEN": (lambda: delayed(), None, ("late",)),
    "STATE_MISMATCH": (untouched, None, ("idle",)),
}


@pytest.mark.parametrize("kind", EMITTED)
def test_emitted(kind):
    make, weight_path, hidden_path = EMITTED[kind]
    records = [r for r in quiet(make()).diagnostics if r.kind.name == kind]
    assert len(records) == 1
    assert records[0].weight_path == weight_path
    assert (records[0].hidden_paths or (None,))[0] == hidden_path
    if kind not in ("STATE_MISMATCH", "PARAMETER_UNUSED"):  # what is not there has no line
        assert re.search(r"(test_diagnostics|compiler_models)\.py:\d+", records[0].context["source"])


@pytest.mark.parametrize("kind", IN_LOOPS)
def test_emitted_by_control_flow(kind):
    make, options, level = IN_LOOPS[kind]
    records = [r for r in quiet(make(), **options).diagnostics if r.kind.name == kind]
    assert [r.level.name for r in records] == [level]
    assert "test_diagnostics.py" in records[0].context["source"]


def test_no_kind_is_without_a_test():
    assert {*EMITTED, *IN_LOOPS} == {kind.name for kind in DiagnosticKind}
    assert not EMITTED.keys() & IN_LOOPS.keys()


def test_a_mixing_transition_is_told_once_for_its_group():
    (record,) = [r for r in quiet(mixing_transition()).diagnostics if r.kind is DiagnosticKind.POSITION_MIXING]
    assert (record.weight_path, record.hidden_paths) == (None, (("v",),))


def test_memory_that_takes_no_credit_on_purpose_is_not_told():
    kinds = {r.kind for r in quiet(delayed(jax.lax.stop_gradient)).diagnostics}
    assert DiagnosticKind.MEMORY_NOT_HIDDEN not in kinds


def test_each_kind_says_when_it_is_emitted():
    source = inspect.getsource(DiagnosticKind)
    for kind in DiagnosticKind:
        assert kind.value == kind.name.lower()
        assert f'{kind.name} = "{kind.value}"\n    """' in source


def test_warnings_are_of_one_category_and_name_the_line():
    with pytest.warns(CompilationWarning, match=r"TIME_VARYING_WEIGHT.*test_diagnostics\.py:\d+"):
        graph(time_varying())


def test_a_parameter_that_is_traced_elsewhere_is_not_said_to_lose_its_trace():
    """Fast weights: what w writes into a matrix is traced, and read in the same step by another operation."""

    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)[:, None]
        m.v.value = 0.5 * m.v.value + matmul(jnp.ones(H), m.a.value)
        return m.v.value

    records = quiet(cell(step, a=array(H, H), v=array(H))).diagnostics
    (message,) = [r.message for r in records if r.kind is DiagnosticKind.TIME_VARYING_WEIGHT]
    assert ("w",) in [r.weight_path for r in records if r.kind is DiagnosticKind.RELATION_INCLUDED]
    assert "No trace follows it; through this operation the strict gradient" in message


def test_warnings_point_at_the_caller():
    with pytest.warns(CompilationWarning) as caught:
        compile_etrace_graph(time_varying(), jnp.ones(I))
    assert caught[0].filename == __file__


def test_the_category_can_be_silenced():
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", category=CompilationWarning)
        graph(time_varying())


def test_readouts_are_quiet():
    graph(leaky())  # warnings are errors


def test_errors_and_infos_are_no_warnings():
    record = CompilationRecord(DiagnosticKind.TIME_VARYING_WEIGHT, DiagnosticLevel.INFO, "so be it")
    emit_warnings([record])


def test_the_arithmetic_of_quantities_is_no_line_of_the_user():
    def step(m, x):
        old = m.v.value
        m.v.value = 0.9 * old + matmul(x, m.w.value) * u.mV
        m.g.value = 0.8 * m.g.value + matmul(jnp.tanh(old / u.mV), m.back.value) * u.mV
        return m.v.value / u.mV

    weights, zero = {"w": array(I, H), "back": array(H, H)}, jnp.zeros(H) * u.mV
    sources = [
        r.context["source"]
        for r in quiet(Model(step, weights, {"v": zero, "g": zero})).diagnostics
        if "source" in r.context
    ]
    assert sources
    assert all("test_diagnostics.py" in source for source in sources)


def test_records_name_the_line_of_the_user():
    records = quiet(leaky()).diagnostics
    assert all("compiler_models.py" in r.context["source"] for r in records if r.primitive is not None)


def test_explain_filters_prints_and_returns(capsys):
    compiled = quiet(two_layers())
    everything = compiled.explain()
    assert everything == compiled.diagnostics
    assert "RELATION_INCLUDED (2)" in capsys.readouterr().out
    assert [r.weight_path for r in compiled.explain(weight_path=("w1",))] == [("w1",)]
    assert {r.kind.name for r in compiled.explain(hidden_path=("b",))} == {"RELATION_INCLUDED", "CROSS_GROUP_MEMORY"}
    assert len(compiled.explain(kind=DiagnosticKind.RELATION_INCLUDED)) == 2
    assert len(compiled.explain(kind="relation_included")) == 2
    assert compiled.explain(weight_path="w1", hidden_path="a") == compiled.explain(weight_path=("w1",)) != ()
    with pytest.raises(CompilationError, match=r"(?s)'relation'.*relation_included"):
        compiled.explain(kind="relation")
    capsys.readouterr()
    assert compiled.explain(weight_path=("nobody",)) == ()
    assert capsys.readouterr().out == "no such diagnostics\n"


def test_order_is_that_of_the_program():
    assert kinds(quiet(gated())) == ["RELATION_EXCLUDED_WEIGHT_TO_WEIGHT", "RELATION_INCLUDED"]


def test_lines_are_the_users_own():
    """Not a line of brainstate that the call went through."""

    def step(m, x):
        def body(v):
            return 0.9 * v + matmul(x, m.w.value)

        m.v.value = brainstate.transform.for_loop(lambda k: body(m.v.value), jnp.arange(2))[-1]
        return m.v.value

    sources = [r.context["source"] for r in quiet(cell(step)).diagnostics if "source" in r.context]
    assert len(sources) == 2  # one for the loop, one for the operation in it
    assert all("test_diagnostics.py" in source for source in sources)
