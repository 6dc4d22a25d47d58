"""Long loops that hold marked operations, followed as a whole; integration tests see to their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, graph, kinds
from test_perturbation import Perturbed

from braintrace_compiler import CompilationWarning, ControlFlowPolicy, DiagnosticKind, NotSupportedError
from braintrace_primitives import matmul

DESCEND = ControlFlowPolicy(unroll_limit=0)
N = 4


def looping(body, length=N, **states):
    """A state that a loop carries: ``body(m, v, k, x) -> v``."""

    def step(m, x):
        m.v.value, _ = jax.lax.scan(lambda v, k: (body(m, v, k, x), None), m.v.value, jnp.arange(1.0, length + 1))
        return m.v.value

    return Model(step, {"w": array(I, H), "u": array(H, H)}, states or {"v": array(H, seed=1)})


def driven(m, v, k, x):
    return 0.9 * v + jnp.tanh(matmul(k * x, m.w.value))


def recurrent(m, v, k, x):
    return 0.9 * v + jnp.tanh(matmul(k * x, m.w.value) + matmul(v, m.u.value))


@pytest.mark.parametrize("body", [driven, recurrent])
def test_the_program_computes_the_same(body):
    m, x = looping(body), jnp.array([0.3, -0.2])
    perturbed = Perturbed(m, x, control_flow=DESCEND)
    np.testing.assert_allclose(perturbed.run(*perturbed.zeros())[0], m(x), rtol=1e-6)


def test_an_operation_of_the_body_is_one_relation_on_all_iterations():
    compiled = graph(looping(driven), control_flow=DESCEND)
    (relation,) = compiled.hidden_param_op_relations
    assert (relation.primitive.name, relation.y_var.aval.shape) == ("etp_mv_repeated", (N, H))
    assert relation.feeds[0].index.tolist() == [[0, 1, 2]] * N
    assert compiled.report().operations[0]["trace_bytes"] == 4 * I * H
    assert all(c.exact for c in compiled.certificates())


def test_records_say_what_became_of_it():
    compiled = graph(looping(recurrent), control_flow=DESCEND)
    assert kinds(compiled).count("SCAN_DESCENT_APPLIED") == 1
    records = compiled.explain(kind=DiagnosticKind.PRIMITIVE_INSIDE_CONTROL_FLOW)
    assert [r.primitive.name for r in records] == ["etp_mv", "etp_mv"]
    assert all("(recurrent)" in r.context["source"] and f"{N} iterations" in r.message for r in records)
    assert all("(recurrent)" in c.operation.source for c in compiled.certificates())
    assert "PLAIN_PARAMETER_TEMPORAL" not in kinds(compiled)


def test_what_does_not_change_is_computed_before_the_loop():
    compiled = graph(looping(lambda m, v, k, x: 0.9 * v + k * matmul(x, m.w.value * 2)), control_flow=DESCEND)
    (relation,) = compiled.hidden_param_op_relations
    assert (relation.primitive.name, relation.feeds[0].kind.value) == ("etp_mv", "same")
    (record,) = compiled.explain(kind=DiagnosticKind.PRIMITIVE_INSIDE_CONTROL_FLOW)
    assert "before it" in record.message


def test_the_program_does_not_grow_with_the_loop():
    sizes = [len(graph(looping(recurrent, n)).module_info.jaxpr.eqns) for n in (50, 500)]
    assert sizes[0] == sizes[1]


def rolling(m, v, k, x):
    return 0.9 * jnp.roll(v, 1) + matmul(k * x, m.w.value)


def changing_weight(m, v, k, x):
    return 0.9 * v + matmul(x, k * m.w.value)


def delayed():
    """The output of the last iteration no longer reaches the state."""

    def step(m, x):
        def body(carry, k):
            v, y = carry
            v = 0.9 * v + y
            return (v, matmul(v, m.u.value)), None

        (m.v.value, y), _ = jax.lax.scan(body, (m.v.value, jnp.tile(x, 2)[:H]), jnp.arange(N))
        return y

    return Model(step, {"u": array(H, H)}, {"v": array(H, seed=1)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: looping(rolling), "iterations of a loop feed different positions"),
        (lambda: looping(changing_weight), "the weight of `etp_mv`.*changes from iteration to iteration"),
        (delayed, "no longer leads to the states"),
    ],
)
@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
def test_what_is_not_followed_names_the_line_and_the_way_out(model, message):
    with pytest.raises(NotSupportedError, match=rf"(?s){message}.*unroll_limit={N}") as error:
        graph(model(), control_flow=DESCEND)
    assert "test_descent.py" in str(error.value)
    graph(model(), control_flow=ControlFlowPolicy(unroll_limit=N))


def test_what_is_not_followed_may_be_left_to_the_same_step():
    policy = ControlFlowPolicy(unroll_limit=0, closed="exclude")
    with pytest.warns(CompilationWarning) as told:
        compiled = graph(looping(changing_weight), control_flow=policy)
    assert any("because the weight of `etp_mv`" in str(w.message) for w in told)
    assert compiled.hidden_param_op_relations == ()


def test_states_of_one_loop_stay_apart():
    """A loop that updates two states connects them only where one enters the other."""

    def step(m, x):
        def body(k, carry):
            a, b = carry
            return 0.9 * a + jnp.tanh(y), 0.8 * b * jnp.cos(b) + 0.1

        y = matmul(x, m.w.value)
        m.v.value, m.g.value = jax.lax.fori_loop(0, N, body, (m.v.value, m.g.value))
        return m.v.value + m.g.value

    compiled = graph(Model(step, {"w": array(I, H)}, {"v": array(H, seed=1), "g": array(H, seed=2)}))
    assert [g.hidden_paths for g in compiled.hidden_groups] == [(("v",),), (("g",),)]
    (relation,) = compiled.hidden_param_op_relations
    assert relation.connected_hidden_paths == (("v",),)
    assert all(c.exact for c in compiled.certificates())
