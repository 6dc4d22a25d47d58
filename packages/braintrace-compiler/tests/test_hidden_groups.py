"""Stage 2: which hidden states share a group."""

import jax.numpy as jnp
import numpy as np
from compiler_models import H, I, Model, array, info, recurrent, two_layers

from braintrace_compiler import find_hidden_groups_from_minfo
from braintrace_compiler._jaxpr import build_jaxpr, eval_jaxpr
from braintrace_primitives import matmul


def paths(model, *args):
    groups, by_path = find_hidden_groups_from_minfo(info(model, *args))
    assert [g.index for g in groups] == list(range(len(groups)))
    assert {p: by_path[p] for g in groups for p in g.hidden_paths} == by_path
    return [tuple(p[0] for p in g.hidden_paths) for g in groups]


def states(step, **values):
    return Model(step, {"w": array(I, H)}, values or {"a": array(H, seed=1), "b": array(H, seed=2)})


def test_a_synapse_and_its_membrane_share_a_group():
    assert paths(recurrent()) == [("g", "v")]


def test_layers_that_talk_through_operations_are_separate():
    assert paths(two_layers()) == [("a",), ("b",)]


def test_a_residual_joins_layers():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = 0.7 * m.b.value + m.a.value
        return m.b.value

    assert paths(states(step)) == [("a", "b")]


def test_grouping_is_transitive_in_either_direction():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + m.c.value
        m.b.value = 0.7 * m.b.value + m.c.value
        m.c.value = 0.5 * m.c.value + matmul(x, m.w.value)
        return m.b.value

    model = states(step, a=array(H), b=array(H), c=array(H))
    assert paths(model) == [("a", "c", "b")]


def test_moved_positions_do_not_join():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = 0.7 * m.b.value + jnp.roll(m.a.value, 1)
        return m.b.value

    assert paths(states(step)) == [("a",), ("b",)]


def test_a_permutation_by_a_constant_index_is_no_identity_and_back_is():
    order = np.array([2, 0, 1])

    def moved(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = 0.7 * m.b.value + m.a.value[order]
        return m.b.value

    def returned(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = 0.7 * m.b.value + m.a.value[order][np.argsort(order)]
        return m.b.value

    assert paths(states(moved)) == [("a",), ("b",)]
    assert paths(states(returned)) == [("a", "b")]


def test_different_shapes_do_not_join():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        m.b.value = 0.7 * m.b.value + m.a.value[:2]
        return m.b.value

    assert paths(states(step, a=array(H), b=array(2))) == [("a",), ("b",)]


def test_a_state_that_nothing_reaches_is_a_group_of_its_own():
    def step(m, x):
        m.a.value = matmul(x, m.w.value)
        return m.a.value * m.b.value

    assert paths(states(step)) == [("a",), ("b",)]


def test_states_written_by_one_equation():
    def step(m, x):
        both = jnp.concatenate([m.a.value, m.b.value]) * 0.9 + jnp.tile(matmul(x, m.w.value), 2)
        m.a.value, m.b.value = jnp.split(both, 2)
        return m.a.value

    assert paths(states(step)) == [("a",), ("b",)]


def test_a_swap_is_an_exchange():
    def step(m, x):
        m.a.value, m.b.value = m.b.value * 0.9, m.a.value + matmul(x, m.w.value)
        return m.a.value

    assert paths(states(step)) == [("b", "a")]


def test_the_batch_axis_is_a_position_axis():
    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(x, m.w.value)
        return m.a.value

    groups, _ = find_hidden_groups_from_minfo(info(states(step, a=array(4, H)), jnp.ones((4, I))))
    assert (groups[0].varshape, groups[0].num_state) == ((4, H), 1)


def test_the_transition_computes_the_new_states():
    model = recurrent()
    minfo = info(model)
    (group,), _ = find_hidden_groups_from_minfo(minfo)
    x = jnp.array([0.3, -0.2])
    whole = build_jaxpr(minfo.jaxpr.invars, group.transition_jaxpr_constvars, minfo.jaxpr.eqns, like=minfo.jaxpr)
    values = eval_jaxpr(whole, *minfo.consts, x, *(s.state.value for s in minfo.states))
    new = eval_jaxpr(group.transition_jaxpr, *(s.value for s in group.hidden_states), *values)
    model(x)
    for state, value in zip(group.hidden_states, new, strict=True):
        np.testing.assert_allclose(value, state.value, rtol=1e-6)
