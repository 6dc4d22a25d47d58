"""All stages together: fields, determinism, errors."""

import os
import subprocess
import sys

import brainstate
import jax
import jax.numpy as jnp
import pytest
from compiler_models import H, I, Model, array, gated, graph, recurrent, two_layers

import braintrace_compiler as compiler
from braintrace_primitives import BraintraceError, matmul


def fingerprint(compiled):
    """All that should be the same when one compiles again."""
    perturb = compiled.hidden_perturb
    return "\n".join(
        [
            *(
                str([compiled.module_info.jaxpr, perturb.strict.jaxpr, perturb.full.jaxpr, perturb.weight_program])[
                    1:-1
                ],
            ),
            *(str((g.index, g.hidden_paths, g.transition_jaxpr)) for g in compiled.hidden_groups),
            *(
                str((r.primitive.name, r.weight_path, r.connected_hidden_paths, r.eqn_params, r.feeds))
                for r in compiled.hidden_param_op_relations
            ),
            *(str(t.program) for t in perturb.transitions),
            *(str((r.kind, r.level, r.message, r.weight_path, r.hidden_paths)) for r in compiled.diagnostics),
        ]
    )


def test_exactly_the_fields_of_the_graph():
    assert list(graph(recurrent())._asdict()) == [
        "module_info",
        "hidden_groups",
        "hid_path_to_group",
        "hidden_param_op_relations",
        "hidden_perturb",
        "diagnostics",
    ]


@pytest.mark.parametrize("make", [recurrent, two_layers, gated])
def test_compiling_twice_gives_the_same_graph(make):
    model = make()
    first = fingerprint(graph(model))
    assert len(first) > 1000
    assert fingerprint(graph(model)) == first
    assert fingerprint(graph(make())) == first


def test_another_process_gives_the_same_graph():
    here = os.path.dirname(__file__)
    code = "import test_graph as t; print(t.fingerprint(t.graph(t.two_layers())))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip("\n") == fingerprint(graph(two_layers()))


def test_the_stages_one_by_one_give_what_the_graph_has():
    model = two_layers()
    minfo = compiler.extract_module_info(model, jnp.ones(I))
    groups, by_path = compiler.find_hidden_groups_from_minfo(minfo)
    relations = compiler.find_hidden_param_op_relations_from_minfo(minfo, by_path)
    perturbation = compiler.add_hidden_perturbation_from_minfo(minfo)
    compiled = graph(model)
    assert [g.hidden_paths for g in groups] == [g.hidden_paths for g in compiled.hidden_groups]
    assert [r.weight_path for r in relations] == [r.weight_path for r in compiled.hidden_param_op_relations]
    assert str(perturbation.strict.jaxpr) == str(compiled.hidden_perturb.strict.jaxpr)


def test_the_model_is_left_as_it_was():
    model = recurrent()
    before = {p: s.value for p, s in brainstate.graph.states(model).items()}
    graph(model)
    after = {p: s.value for p, s in brainstate.graph.states(model).items()}
    assert all(after[p] is value for p, value in before.items())


def test_errors_are_ours():
    def step(m, x):
        def body(carry):
            return carry[0] + 1, carry[1] + matmul(x, m.w.value)

        m.v.value = jax.lax.while_loop(lambda c: c[0] < 3, body, (0, m.v.value))[1]
        return m.v.value

    with pytest.raises(compiler.NotSupportedError, match=r"(?s)while.*BT202.*where: .*test_graph\.py") as caught:
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    assert isinstance(caught.value, BraintraceError)
    assert isinstance(caught.value, NotImplementedError)
