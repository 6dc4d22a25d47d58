"""Proofs that D and F are numbers."""

import jax
import jax.numpy as jnp
import pytest
from compiler_models import H, I, Model, array, gated, graph, leaky, recurrent, two_layers

from braintrace_compiler import ConstantFactors
from braintrace_compiler._constant_factors import constant_outputs, factored_states, is_affine_in_input
from braintrace_primitives import embedding, matmul


def proofs(model, *args):
    return [t.constants for t in graph(model, *args).hidden_perturb.transitions]


def one(advance, out=H):
    """A state advanced by ``advance(v, y)``."""

    def step(m, x):
        m.v.value = advance(m.v.value, matmul(x, m.w.value))
        return m.v.value

    (found,) = proofs(Model(step, {"w": array(I, out)}, {"v": array(H)}))
    return found


def test_leaky_integration():
    (found,) = proofs(leaky())
    assert found.D[0][0] == pytest.approx(0.9)
    assert found.F == ((1.0,),)


def test_states_in_a_row():
    """g = 0.8 g + y and v = 0.9 v + g of the same step."""
    (found,) = proofs(recurrent())
    assert [list(row) for row in found.D] == [pytest.approx([0.8, 0.0]), pytest.approx([0.8, 0.9])]
    assert found.F == ((1.0, 1.0),)


VARYING = {
    "data": (lambda v, y: v * jax.nn.sigmoid(y) + y, None, None),
    "state": (lambda v, y: jnp.tanh(v) + y, None, 1.0),
    "position": (lambda v, y: jnp.linspace(0.1, 0.9, H) * v + y, None, 1.0),
    "drive": (lambda v, y: 0.5 * v + jnp.tanh(y), 0.5, None),
    "order": (lambda v, y: 0.5 * v + 2.0 * y[::-1], 0.5, 2.0),
    "mixing": (lambda v, y: 0.5 * (v - v.mean()) + y, None, None),
    "loop of unknown length": (
        lambda v, y: jax.lax.while_loop(lambda v: v.sum() < 1, lambda v: v + 0.1, 0.5 * v) + y,
        None,
        1.0,
    ),
}


@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
@pytest.mark.parametrize("name", VARYING)
def test_what_varies_is_not_proven(name):
    advance, D, F = VARYING[name]
    assert one(advance) == ConstantFactors(((D,),), ((F,),))


def test_every_entry_is_proven_on_its_own():
    """A state that remembers nothing spoils no other."""

    def step(m, x):
        m.v.value = 0.5 * m.v.value + matmul(x, m.w.value)
        m.s.value = jnp.tanh(m.v.value)
        return m.s.value

    compiled = graph(Model(step, {"w": array(I, H)}, {"v": array(H), "s": array(H)}))
    (transition,), (relation,) = compiled.hidden_perturb.transitions, compiled.hidden_param_op_relations
    assert transition.constants == ConstantFactors(((0.5, 0.0), (None, 0.0)), ((1.0, None),))
    slots = [0], relation.feeds[0], relation.operation
    assert factored_states(transition, *slots, [0]) == (0,)
    assert factored_states(transition, *slots, [0, 1]) == (0,)
    assert factored_states(transition, *slots, [1]) == ()


@pytest.mark.parametrize("make", [gated, two_layers])
def test_proofs_are_numbers_or_nothing(make):
    for found in proofs(make()):
        assert all(isinstance(v, float | None) for row in (*found.D, *found.F) for v in row)


def test_operations_affine_in_their_input():
    def step(m, i):
        m.v.value = 0.5 * m.v.value + embedding(i, m.w.value)
        return m.v.value

    (dense,) = graph(leaky()).hidden_param_op_relations
    (table,) = graph(Model(step, {"w": array(I, H)}, {"v": array(H)}), jnp.int32(0)).hidden_param_op_relations
    assert is_affine_in_input(dense.operation)
    assert not is_affine_in_input(table.operation)


def test_outputs_that_read_no_input_are_known_by_value():
    aval = jax.ShapeDtypeStruct((2,), jnp.float32)
    two, none = constant_outputs(lambda x: [2.0 * jnp.ones_like(x), x * 0.0], [aval])
    assert two.tolist() == [2.0, 2.0]
    assert none is None
