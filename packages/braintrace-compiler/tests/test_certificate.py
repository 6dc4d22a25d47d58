"""What a strict gradient is said to leave out."""

import pathlib
import warnings

import jax
import jax.numpy as jnp
from compiler_models import H, I, Model, array, gains, gated, graph, leaky, recurrent, two_layers

from braintrace_compiler import Omission
from braintrace_primitives import conv, lora_matmul, matmul


def omissions(model, *args):
    certificates = graph(model, *args).certificates()
    assert all(c.exact is (not c.omissions) for c in certificates)
    return {c.operation.weight_path[0]: [o.name for o in c.omissions] for c in certificates}


def test_a_layer_without_recurrent_mixing_is_exact():
    assert omissions(leaky()) == {"w": [], "out": []}
    assert omissions(gains(), jnp.ones(H)) == {"tau": [], "gain": []}


def test_recurrent_mixing():
    assert omissions(recurrent()) == {"w": ["RECURRENT_MIXING"], "out": []}


def test_downstream_memory():
    assert omissions(two_layers()) == {"w1": ["RECURRENT_MIXING", "DOWNSTREAM_MEMORY"], "w2": ["RECURRENT_MIXING"]}


def test_a_layer_without_memory_takes_nothing_from_the_one_below():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = matmul(jnp.tanh(m.a.value), m.u.value)
        return m.b.value

    model = Model(step, {"w": array(I, H), "u": array(H, H)}, {"a": array(H), "b": array(H)})
    assert omissions(model) == {"w": [], "u": []}


def test_a_weight_that_is_told_to_go_without_a_trace():
    for carry_b in (True, False):

        def step(m, x, carry_b=carry_b):
            m.v.value = 0.9 * m.v.value + lora_matmul(x, m.b.value, m.a.value, carry_b=carry_b)
            return m.v.value

        model = Model(step, {"b": array(I, 1), "a": array(1, H)}, {"v": array(H)})
        assert omissions(model) == {"b": [] if carry_b else ["NOT_CARRIED"]}
        (line,) = (line for line in str(graph(model).report()).splitlines() if line.startswith("etp_lora_mv (b, a):"))
        assert ("effective weight" in line) == carry_b


def test_a_trace_that_a_learner_cuts_short():
    def step(m, x):
        m.v.value = jnp.tanh(m.v.value) + matmul(x, m.w.value)
        return m.v.value

    found = graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    (relation,) = found.hidden_param_op_relations
    truncated = {(relation.y_var, 0): 3}
    (certificate,) = found.certificates(truncated=truncated)
    assert [o.name for o in certificate.omissions] == ["OLDER_STEPS"]
    (row,) = found.report(truncated=truncated).operations
    assert (row["strict"], row["kept_as"]) == ("omits older steps", "the last 3 steps")
    assert row["trace_bytes"] == 3 * 4 * (I + H)


def test_through_another_op():
    assert omissions(gated()) == {"wr": ["THROUGH_ANOTHER_OP"], "wh": ["RECURRENT_MIXING"]}


def test_position_mixing_in_the_transition():
    def step(m, x):
        m.v.value = jax.nn.softmax(m.v.value) + matmul(x, m.w.value)
        return m.v.value

    model = Model(step, {"w": array(I, H)}, {"v": array(H)})
    assert omissions_of_mixing(model) == {"w": ["POSITION_MIXING"]}


def test_position_mixing_on_the_way_in():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + jax.nn.softmax(matmul(x, m.w.value))
        return m.v.value

    model = Model(step, {"w": array(I, H)}, {"v": array(H)})
    assert omissions_of_mixing(model) == {"w": ["POSITION_MIXING"]}


def test_time_varying_weights():
    """A readout has no memory to miss, and a bias beside such a weight does not vary with it."""

    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value * x.sum(), m.b.value)
        return matmul(m.v.value, m.out.value * x.sum())

    model = Model(step, {"w": array(I, H), "b": array(H), "out": array(H, 2)}, {"v": array(H)})
    assert omissions_of_mixing(model) == {"w": ["TIME_VARYING_WEIGHT"], "b": [], "out": []}


def test_a_bias_beside_a_time_varying_kernel_is_named():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + conv(x[None], m.k.value * x.sum(), m.b.value)[0]
        return m.v.value

    model = Model(step, {"k": array(1, 1, 1), "b": array(1)}, {"v": array(I)})
    assert omissions_of_mixing(model) == {"k": ["TIME_VARYING_WEIGHT"]}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        graph(model)
    assert any("its bias ('b',)" in str(w.message) for w in seen)


def test_a_parameter_that_is_also_used_unmarked():
    """Where that feeds memory its credit ends with the step; a readout has none to miss."""

    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value) + jnp.sin(x @ m.w.value) + matmul(x, m.u.value)
        return m.v.value @ m.u.value.T

    model = Model(step, {"w": array(I, H), "u": array(I, H)}, {"v": array(H)})
    assert omissions_of_mixing(model) == {"w": ["UNTRACED_USE"], "u": []}


def omissions_of_mixing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return omissions(model)


def test_every_omission_has_a_test():
    named = set(pathlib.Path(__file__).read_text().split('"'))
    assert {o.name for o in Omission} <= named
