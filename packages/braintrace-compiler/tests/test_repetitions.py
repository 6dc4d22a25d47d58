"""Programs without what they repeat: the same values and derivatives, from fewer equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braintrace_compiler._repetitions import without_repetitions
from braintrace_primitives._jax_compat import eval_jaxpr, make_jaxpr_without_consts

stop = jax.lax.stop_gradient


def shortened(function, *args, pure=lambda eqn: True):
    program, _ = make_jaxpr_without_consts(jax.make_jaxpr(function)(*args))
    return without_repetitions(program, pure)


def names(program):
    return [eqn.primitive.name for eqn in program.eqns]


STEPS = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: jnp.sin(a),
    lambda a, b: stop(a),
    lambda a, b: a + jnp.zeros(a.shape),
    lambda a, b: jnp.where(a > b, a, 0.5),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 99)] * 3), min_size=1, max_size=14))
def test_values_and_derivatives_stay(choices):
    def function(a, b):
        values = [a, b]
        for step, i, j in choices:  # few values and steps: many repetitions, behind a stop_gradient or not
            values.append(STEPS[step % len(STEPS)](values[i % len(values)], values[j % len(values)]))
        return sum((0.3 * k + 1) * v for k, v in enumerate(values))

    with jax.enable_x64(), jax.disable_jit():
        point = jnp.array([0.3, -1.2]), jnp.array([0.7, 0.3])
        program = shortened(function, *point)

        def again(*args):
            return eval_jaxpr(program, *args)[0]

        expected, pull = jax.vjp(function, *point)
        value, pull_again = jax.vjp(again, *point)
        np.testing.assert_allclose(value, expected, rtol=1e-14)
        for d, e in zip(pull_again(jnp.ones(2)), pull(jnp.ones(2)), strict=True):
            np.testing.assert_allclose(d, e, rtol=1e-12, atol=1e-14)


def test_each_value_is_made_once():
    def function(a):
        return jnp.tanh(a) * jnp.tanh(stop(a + jnp.zeros(3))) + jnp.cos(jnp.tanh(a) + jnp.zeros(3))

    program = shortened(function, jnp.ones(3))
    assert sorted(names(program)) == ["add", "cos", "mul", "stop_gradient", "tanh"]


def test_one_stop_of_two_is_another_derivative():
    def function(a, b):
        return a * b + stop(a) * b

    program = shortened(function, jnp.ones(2), jnp.ones(2))
    assert names(program).count("mul") == 2
    of_a = jax.grad(lambda a: eval_jaxpr(program, a, 3 * jnp.ones(2))[0].sum())(jnp.ones(2))
    assert of_a.tolist() == [3, 3]


def test_a_stopped_value_does_not_stand_for_one_that_is_not():
    def function(a):
        return jnp.sin(stop(a)) + jnp.sin(a)

    program = shortened(function, jnp.ones(2))
    of_a = jax.grad(lambda a: eval_jaxpr(program, a)[0].sum())(jnp.zeros(2))
    assert of_a.tolist() == [1, 1]


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (1.0, 2.0)])
def test_literals_are_told_apart_by_their_bits(one, other):
    def function(a):
        return jax.lax.atan2(one, a), jax.lax.atan2(other, a)

    program = shortened(function, -1.0)
    np.testing.assert_array_equal(eval_jaxpr(program, -1.0), function(-1.0))


def test_what_is_not_pure_stays():
    program = shortened(lambda a: (jnp.sin(a), jnp.sin(a)), jnp.ones(2), pure=lambda eqn: False)
    assert names(program) == ["sin", "sin"]


def test_integers_need_no_stop():
    def function(n):
        return n * 2 + stop(n) * 2

    program = shortened(function, jnp.arange(3))
    assert names(program) == ["mul", "add"]
    assert eval_jaxpr(program, jnp.arange(3))[0].tolist() == [0, 4, 8]
