"""Stage 3: marked operations, the parameters behind them and the groups they drive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, gains, gated, graph, info, leaky, recurrent, two_layers

from braintrace_compiler import (
    FeedKind,
    build_producer_map,
    find_hidden_groups_from_minfo,
    find_hidden_param_op_relations_from_minfo,
    trace_var_to_param,
)
from braintrace_compiler._jaxpr import eval_jaxpr
from braintrace_compiler._operations import find_marked_operations, make_weight_program
from braintrace_primitives import element_wise, matmul


def relations(model, *args):
    minfo = info(model, *args)
    return find_hidden_param_op_relations_from_minfo(minfo, find_hidden_groups_from_minfo(minfo)[1])


def drives(model, *args):
    return [(r.weight_path[0], [g.index for g in r.hidden_groups]) for r in relations(model, *args)]


def feeds(model, *args):
    return {r.weight_path[0]: r.feeds[0] for r in relations(model, *args)}


def test_who_drives_whom():
    assert drives(leaky()) == [("w", [0])]
    assert drives(two_layers()) == [("w1", [0]), ("w2", [1])]
    assert drives(gated()) == [("wh", [0])]
    assert drives(gains(), jnp.ones(H)) == [("tau", [0]), ("gain", [0])]


def test_a_relation_says_what_it_connects():
    (relation,) = relations(recurrent())
    assert relation.primitive.name == "etp_mv"
    assert relation.eqn_params == {"has_bias": False}
    assert relation.connected_hidden_paths == (("g",), ("v",))
    assert relation.x_var.aval.shape == (I + H,)
    assert relation.y_var.aval.shape == (H,)


def test_one_operation_may_drive_two_groups():
    def step(m, x):
        y = matmul(x, m.w.value)
        m.a.value = 0.9 * m.a.value + y
        m.b.value = 0.7 * m.b.value + y
        return m.a.value

    assert drives(Model(step, {"w": array(I, H)}, {"a": array(H), "b": array(H)})) == [("w", [0, 1])]


def feeding(between, out=H, state=(H,)):
    def step(m, x):
        m.v.value = 0.9 * m.v.value + between(matmul(x, m.w.value))
        return m.v.value

    return feeds(Model(step, {"w": array(I, out)}, {"v": array(*state)}))["w"]


order = np.array([2, 0, 1])


@pytest.mark.parametrize(
    ("between", "out", "index"),
    [
        (lambda y: y[order], H, [1, 2, 0]),
        (lambda y: jnp.roll(y, 1), H, [1, 2, 0]),
        (lambda y: y[::-1], H, [2, 1, 0]),
        (lambda y: y[1:4] * y[4:7], 7, [-1, 0, 1, 2, 0, 1, 2]),
        (lambda y: y.reshape(3, 2).sum(1), 6, [0, 0, 1, 1, 2, 2]),
        (lambda y: jnp.pad(y, (0, 1)), 2, [0, 1]),
        (lambda y: jnp.concatenate([y[1:], y[:1]]), H, [2, 0, 1]),
    ],
)
def test_moved_positions(between, out, index):
    feed = feeding(between, out)
    assert feed.kind is FeedKind.GATHER
    assert feed.index.tolist() == index


def test_equal_positions():
    assert feeding(jnp.tanh).kind is FeedKind.SAME
    assert feeding(lambda y: y.reshape(1, H), state=(1, H)).kind is not FeedKind.DIAGONAL


def test_broadcast_positions():
    found = feeds(gains(), jnp.ones(H))
    assert found["tau"].kind is FeedKind.SAME
    assert found["gain"].kind is FeedKind.BROADCAST
    assert found["gain"].index.tolist() == [0, 0, 0]


def test_mixed_positions():
    assert feeding(jax.nn.softmax).kind is FeedKind.DIAGONAL


def uses(make, **params):
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, make(m))
        return m.v.value

    return Model(step, params, {"v": array(H)})


CHAINS = {
    "product of two": (lambda m: m.w.value * m.u.value, {"w": array(I, H), "u": array(I, H, seed=3)}),
    "transpose": (lambda m: m.w.value.T, {"w": array(H, I)}),
    "mask": (lambda m: jnp.where(np.eye(I, H) > 0, m.w.value, 0.0), {"w": array(I, H)}),
    "standardised": (lambda m: (m.w.value - m.w.value.mean(0)) / m.w.value.std(0), {"w": array(I, H)}),
    "part": (lambda m: m.w.value[:, :H], {"w": array(I, 2 * H)}),
    "leaf": (lambda m: m.w.value["weight"], {"w": {"weight": array(I, H)}}),
}


@pytest.mark.parametrize("name", CHAINS)
def test_weight_chains_are_programs_of_the_parameters(name):
    make, params = CHAINS[name]
    model = uses(make, **params)
    minfo = info(model)
    (operation,), records = find_marked_operations(minfo)
    assert operation.parameter_paths == tuple((p,) for p in params)
    assert records == ()
    leaves = jax.tree.leaves([s.state.value for s in minfo.parameters])
    (operand,) = eval_jaxpr(make_weight_program(minfo, [operation]), *minfo.consts, *leaves)
    np.testing.assert_allclose(operand, make(model), rtol=1e-6)


def test_a_weight_that_depends_on_data_is_left_to_differentiation():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value * x.sum()) + matmul(x, m.u.value * m.v.value)
        return m.v.value

    model = Model(step, {"w": array(I, H), "u": array(I, H)}, {"v": array(H)})
    operations, records = find_marked_operations(info(model))
    assert operations == ()
    assert [r.weight_path for r in records] == [("w",), ("u",)]


def test_an_operand_is_traced_back_to_its_parameter():
    minfo = info(uses(lambda m: jnp.exp(2.0 * m.w.value), w=array(I, H)))
    (operation,), _ = find_marked_operations(minfo)
    producers = build_producer_map(minfo.jaxpr)
    path, chain = trace_var_to_param(operation.weight_vars["weight"], producers, minfo.invar_to_weight_path)
    assert path == ("w",)
    assert [eqn.primitive.name for eqn in chain] == ["mul", "exp"]
    assert trace_var_to_param(operation.x_var, producers, minfo.invar_to_weight_path) is None


def test_bias_and_weight_of_one_parameter():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value["weight"], m.w.value["bias"])
        return m.v.value

    (relation,) = relations(Model(step, {"w": {"weight": array(I, H), "bias": array(H)}}, {"v": array(H)}))
    assert set(relation.operation.weight_vars) == {"weight", "bias"}


def test_the_local_transition_leaves_marked_operations_out():
    compiled = graph(recurrent())
    (transition,) = compiled.hidden_perturb.transitions
    assert transition.remembers
    assert not transition.mixes
    assert all(not eqn.primitive.name.startswith("etp") for eqn in transition.program.eqns)
    # d(g, v)/d(g, v) at equal positions: the membrane sees the synapse of the same step.
    S, Y = 2, len(transition.y_vars)
    inputs = [jnp.ones(v.aval.shape) for v in transition.program.invars]
    jacobian = jax.jacobian(lambda h: eval_jaxpr(transition.program, *h, *inputs[S:]))(inputs[:S])
    D = np.array([[np.diag(jacobian[s][r])[0] for r in range(S)] for s in range(S)])
    np.testing.assert_allclose(D, [[0.8, 0.0], [0.8, 0.9]], rtol=1e-6)
    assert Y == 1


def test_a_transition_without_own_memory():
    def step(m, x):
        m.v.value = jnp.tanh(matmul(jnp.concatenate([x, m.v.value]), m.w.value))
        return m.v.value

    (transition,) = graph(Model(step, {"w": array(I + H, H)}, {"v": array(H)})).hidden_perturb.transitions
    assert not transition.remembers


def test_element_wise_weights_need_no_input():
    def step(m, x):
        m.v.value = element_wise(m.w.value) * m.v.value
        return m.v.value

    (relation,) = relations(Model(step, {"w": array(H)}, {"v": array(H)}))
    assert relation.x_var is None
