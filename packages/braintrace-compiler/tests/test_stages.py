"""Stages are watched, named in errors, and print what they did."""

import jax
import jax.numpy as jnp
import pytest
from compiler_models import H, I, Model, array, graph, recurrent

import braintrace_compiler as compiler
from braintrace_compiler._stages import Stages
from braintrace_primitives import matmul


def test_a_callback_sees_every_stage():
    seen = {}
    compiled = graph(recurrent(), callback=seen.__setitem__)
    assert list(seen) == ["extract_module_info", "find_hidden_groups_from_minfo", "find_relations", "perturb"]
    assert seen["extract_module_info"] is compiled.module_info
    assert seen["perturb"] is compiled.hidden_perturb


def test_an_error_names_its_stage():
    def step(m, x):
        raise ZeroDivisionError("in the user's code")

    with pytest.raises(ZeroDivisionError) as caught:
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    assert caught.value.__notes__[-1] == "braintrace: in stage extract_module_info"


def test_an_error_says_what_came_before():
    stages = Stages()
    stages.run(len, "abc")
    with pytest.raises(TypeError) as caught:
        stages.run(abs, "abc")
    assert caught.value.__notes__ == ["braintrace: in stage abs, after len"]


def test_debugging_prints_the_program_with_diagnostics_inline(monkeypatch, capsys):
    monkeypatch.setenv("BRAINTRACE_DEBUG", "1")
    graph(recurrent())
    lines = capsys.readouterr().out.splitlines()
    (at,) = [k for k, line in enumerate(lines) if "** " in line and "w:f32[5,3]" in line]
    assert "RELATION_INCLUDED" in lines[at + 1]
    assert any("(new v)" in line for line in lines)
    assert any("HIDDEN_GROUP_MERGED" in line for line in lines)
    monkeypatch.setenv("BRAINTRACE_DEBUG", "0")
    graph(recurrent())
    assert capsys.readouterr().out == ""


def test_each_stage_straight_from_a_model():
    model, x = recurrent(), jnp.ones(I)
    groups, _ = compiler.find_hidden_groups_from_module(model, x)
    (relation,) = compiler.find_hidden_param_op_relations_from_module(model, x)
    perturbation = compiler.add_hidden_perturbation_from_module(model, x)
    assert [g.hidden_paths for g in groups] == [(("g",), ("v",))]
    assert relation.weight_path == ("w",)
    assert perturbation.perturb_hidden_paths == (("g",), ("v",))


def test_options_reach_the_first_stage():
    def step(m, x):
        m.v.value = jax.lax.fori_loop(0, 4, lambda k, v: 0.9 * v + matmul(x, m.w.value), m.v.value)
        return m.v.value

    policy = compiler.ControlFlowPolicy(unroll_limit=2, long_scan="close")
    with pytest.raises(compiler.NotSupportedError):
        compiler.find_hidden_groups_from_module(
            Model(step, {"w": array(I, H)}, {"v": array(H)}), jnp.ones(I), control_flow=policy
        )
