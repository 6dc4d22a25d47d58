"""The graph library over jaxprs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_compiler._jaxpr import (
    add_equation,
    build_jaxpr,
    build_producer_map,
    eval_jaxpr,
    fresh_var,
    inline,
    name_literal_outputs,
    needed,
    slice_program,
    splice,
)
from braintrace_primitives._jax_compat import Literal, jit_p, make_jaxpr_without_consts


def program(function, *args):
    return make_jaxpr_without_consts(jax.make_jaxpr(function)(*args))


def names(eqns):
    return [eqn.primitive.name for eqn in eqns]


def open_jit(eqn):
    return (
        (lambda opening, eqn, operands: opening.call(eqn.params["jaxpr"], operands)) if eqn.primitive is jit_p else None
    )


def chain(x, y):
    a = jnp.sin(x)
    b = jnp.cos(y)
    return jnp.exp(a) * b, jnp.log(b)


def test_producers_are_the_computed_variables():
    jaxpr, _ = program(chain, 1.0, 1.0)
    producers = build_producer_map(jaxpr)
    assert [producers[v].primitive.name for v in jaxpr.outvars] == ["mul", "log"]
    assert not set(jaxpr.invars) & set(producers)


def test_needed_stops_at_what_is_given():
    jaxpr, _ = program(chain, 1.0, 1.0)
    assert names(needed(jaxpr.eqns, [jaxpr.outvars[1]])) == ["cos", "log"]
    cosine = jaxpr.eqns[1].outvars[0]
    assert names(needed(jaxpr.eqns, [jaxpr.outvars[1]], {cosine})) == ["log"]


def test_needed_keeps_side_effects():
    jaxpr, _ = program(lambda x: (jax.debug.print("{}", x), x * 2.0)[1], 1.0)
    assert len(needed(jaxpr.eqns, [])) == 1


def test_a_slice_names_what_it_needs_and_computes_the_same():
    jaxpr, _ = program(chain, 1.0, 1.0)
    x, out = jaxpr.invars[0], jaxpr.outvars[0]
    part, outside = slice_program(jaxpr, [jaxpr.eqns[i] for i in (0, 2, 3)], [x], [out])
    assert outside == (jaxpr.eqns[1].outvars[0],)
    (value,) = eval_jaxpr(part, 0.3, jnp.cos(0.7))
    np.testing.assert_allclose(value, chain(0.3, 0.7)[0], rtol=1e-6)


def test_inlining_opens_nested_calls_and_lifts_their_constants():
    table = jnp.arange(3.0)

    @jax.jit
    def inner(x):
        return jnp.sin(x) * table

    @jax.jit
    def outer(x):
        return inner(x) + inner(2.0 * x)

    closed, consts = program(outer, jnp.ones(3))
    opened, values = inline(closed, consts, open_jit)
    assert "jit" not in {name.replace("pjit", "jit") for name in names(opened.eqns)}
    np.testing.assert_allclose(eval_jaxpr(opened, *values, jnp.ones(3))[0], outer(jnp.ones(3)), rtol=1e-6)


def test_inlining_drops_what_nobody_needs():
    closed, consts = program(jax.jit(lambda x: (jnp.sin(x), jnp.cos(x))[0]), 1.0)
    opened, _ = inline(closed, consts, open_jit)
    assert names(opened.eqns) == ["sin"]


def test_literal_outputs_become_constants():
    jaxpr, consts = program(lambda x: (x, 2.0), 1.0)
    assert isinstance(jaxpr.outvars[1], Literal)
    named, values = name_literal_outputs(jaxpr, consts)
    assert not isinstance(named.outvars[1], Literal)
    assert [float(v) for v in eval_jaxpr(named, *values, 5.0)] == [5.0, 2.0]
    assert name_literal_outputs(named, values) == (named, values)


def test_splicing_plain_functions():
    jaxpr, _ = program(lambda a, b: a, jnp.ones(3), 2.0)
    eqns, (total, low) = splice(lambda a, b: (jnp.sin(a) + b, a.min()), *jaxpr.invars)
    whole = build_jaxpr(jaxpr.invars, [total, low], eqns, like=jaxpr)
    np.testing.assert_allclose(eval_jaxpr(whole, jnp.ones(3), 2.0)[0], jnp.sin(jnp.ones(3)) + 2.0, rtol=1e-6)
    table = jnp.arange(3.0)
    with pytest.raises(ValueError, match="arguments"):
        splice(lambda a: a + table, jaxpr.invars[0])


def test_an_added_equation_adds():
    jaxpr, _ = program(lambda a, b: a, jnp.ones(3), jnp.ones(3))
    out = fresh_var(jaxpr.invars[0].aval)
    total = build_jaxpr(jaxpr.invars, [out], [add_equation(*jaxpr.invars, out)], like=jaxpr)
    assert eval_jaxpr(total, jnp.ones(3), 2 * jnp.ones(3))[0].tolist() == [3, 3, 3]
