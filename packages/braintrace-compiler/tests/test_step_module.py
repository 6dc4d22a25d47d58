"""Pure functions over pytrees as models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, O, array, graph

from braintrace_compiler import CompilationError, StepModule, extract_module_info_from_step
from braintrace_primitives import matmul

PARAMS = {"cell": {"w": array(I + H, H), "scale": 0.5, "act": jnp.tanh}, "out": array(H, O)}
HIDDEN = (array(H, seed=1), {"v": array(H, seed=2)})


def step(params, hidden, x):
    g, rest = hidden
    cell = params["cell"]
    g = cell["scale"] * g + matmul(jnp.concatenate([x, cell["act"](rest["v"])]), cell["w"])
    v = 0.9 * rest["v"] + g
    return (g, {"v": v}), matmul(v, params["out"])


def test_the_graph_of_a_function():
    compiled = graph(StepModule(step, PARAMS, HIDDEN))
    assert [g.hidden_paths for g in compiled.hidden_groups] == [(("hidden", "0"), ("hidden", "1.v"))]
    assert [r.weight_path for r in compiled.hidden_param_op_relations] == [("params", "cell.w")]


def test_steps_are_those_of_the_function():
    model, hidden = StepModule(step, PARAMS, HIDDEN), HIDDEN
    for x in (jnp.array([0.1, 0.2]), jnp.array([-0.3, 0.4])):
        hidden, out = step(PARAMS, hidden, x)
        np.testing.assert_allclose(model(x), out, rtol=1e-6)
    np.testing.assert_allclose(model.hidden["1.v"].value, hidden[1]["v"], rtol=1e-6)
    model.init_state()
    np.testing.assert_allclose(model.hidden["1.v"].value, HIDDEN[1]["v"])


def test_static_leaves_are_no_parameters():
    minfo = extract_module_info_from_step(step, PARAMS, HIDDEN, jnp.ones(I))
    assert [s.path for s in minfo.parameters] == [("params", "cell.w"), ("params", "out")]


def test_a_single_array_and_a_batch():
    def integrate(w, h, x):
        h = 0.5 * h + matmul(x, w)
        return h, h

    model = StepModule(integrate, array(I, H), lambda batch_size: jnp.zeros((batch_size, H)))
    with pytest.raises(CompilationError, match="init_state"):
        model(jnp.ones((4, I)))
    model.init_state(batch_size=4)
    assert model(jnp.ones((4, I))).shape == (4, H)
    assert graph(model, jnp.ones((4, I))).hidden_groups[0].varshape == (4, H)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda p, h, x: h[0], "found: .*Tracer"),
        (lambda p, h, x: (h[0], x), "structure of the hidden states"),
    ],
)
def test_what_a_step_must_return(wrong, told):
    with pytest.raises(CompilationError, match=told):
        graph(StepModule(wrong, PARAMS, HIDDEN))


def test_a_model_may_be_jitted():
    jax.eval_shape(lambda x: StepModule(step, PARAMS, HIDDEN)(x), jnp.ones(I))
