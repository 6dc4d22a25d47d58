"""Stages are watched, named in errors, and print what they did."""

import functools

import jax
import jax.numpy as jnp
import pytest
from compiler_models import H, I, Model, array, graph, recurrent

import braintrace_compiler as compiler
from braintrace_compiler import _graph
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
    stages, final = capsys.readouterr().out.split("--- braintrace: compiled\n")
    names = [line.split()[2].rstrip(":") for line in stages.splitlines() if line.startswith("---")]
    assert names == ["extract_module_info", "find_hidden_groups_from_minfo", "find_relations", "perturb"]
    assert "step of " in stages
    assert "group 0: [('g',), ('v',)]" in stages
    assert "RELATION_INCLUDED (1)" in stages
    lines = final.splitlines()
    (at,) = [k for k, line in enumerate(lines) if "** " in line and "w:f32[5,3]" in line]
    assert "RELATION_INCLUDED" in lines[at + 1]
    assert any("(new v)" in line for line in lines)
    assert any("HIDDEN_GROUP_MERGED" in line for line in lines)
    monkeypatch.setenv("BRAINTRACE_DEBUG", "0")
    graph(recurrent())
    assert capsys.readouterr().out == ""


def test_what_was_understood_so_far_is_printed_when_a_stage_fails(monkeypatch, capsys):
    def step(m, x):
        m.v.value = jax.nn.softmax(m.v.value) + matmul(x, m.w.value)
        return m.v.value

    monkeypatch.setenv("BRAINTRACE_DEBUG", "1")
    with pytest.raises(compiler.CompilationError, match="Positions are mixed") as caught:
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}), on_mixing="error")
    told = "in stage require_positions, after extract_module_info, find_hidden_groups_from_minfo, find_relations"
    assert told in caught.value.__notes__[-1]
    assert "step of " in capsys.readouterr().out


def test_a_stage_refuses_the_groups_of_another_program():
    model, other = recurrent(), recurrent()
    minfo = compiler.extract_module_info(model, jnp.ones(I))
    _, by_path = compiler.find_hidden_groups_from_module(other, jnp.ones(I))
    with pytest.raises(compiler.CompilationError, match="not those of this program"):
        compiler.find_hidden_param_op_relations_from_minfo(minfo, by_path)
    with pytest.raises(compiler.CompilationError, match="not those of this program"):
        compiler.find_hidden_param_op_relations_from_minfo(minfo, {})


def break_program(minfo):
    return minfo._replace(jaxpr=minfo.jaxpr.replace(eqns=minfo.jaxpr.eqns[1:]))


def break_names(minfo):
    return minfo._replace(states=minfo.states[::-1])


def break_transition(found):
    (transition,) = found.transitions
    program = transition.program.replace(eqns=transition.program.eqns[1:])
    return found._replace(transitions=(transition._replace(program=program),))


def break_order(found):
    return found._replace(transitions=())


def break_step(perturbation):
    step = perturbation.strict._replace(jaxpr=perturbation.strict.jaxpr.replace(eqns=[]))
    return perturbation._replace(strict=step)


@pytest.mark.parametrize(
    ("stage", "change", "told"),
    [
        ("extract_module_info", break_program, "computed before"),
        ("extract_module_info", break_names, "all named"),
        ("find_relations", break_transition, "transition of group 0"),
        ("find_relations", break_order, "one transition for each group"),
        ("perturb", break_step, "strict step"),
    ],
)
def test_a_stage_that_breaks_its_contract_is_stopped(monkeypatch, stage, change, told):
    whole = getattr(_graph, stage)

    @functools.wraps(whole)
    def broken(*args, **options):
        return change(whole(*args, **options))

    monkeypatch.setattr(_graph, stage, broken)
    with pytest.raises(compiler.CompilationError, match=f"(?s)defect of braintrace.*{told}") as caught:
        graph(recurrent())
    assert f"after {stage}" in caught.value.__notes__[-1] or f", {stage}" in caught.value.__notes__[-1]


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
