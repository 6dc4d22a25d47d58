"""What influences what."""

import jax
import jax.numpy as jnp

from braintrace_compiler._flow import between, dependence, influence, join_bits, numbers, seeds_of
from braintrace_primitives._jax_compat import make_jaxpr_without_consts


def program(function, *args):
    return make_jaxpr_without_consts(jax.make_jaxpr(function)(*args))[0]


def names(eqns):
    return [eqn.primitive.name for eqn in eqns]


def chain(x, y):
    a = jnp.sin(x)
    b = jnp.cos(y)
    return jnp.exp(a) * b, jnp.log(b)


def ends():
    """Influence of both inputs, dependence on both outputs: bit 0 and bit 1."""
    jaxpr = program(chain, 1.0, 1.0)
    ahead = influence(jaxpr.eqns, seeds_of([v] for v in jaxpr.invars))
    behind = dependence(jaxpr.eqns, seeds_of([v] for v in jaxpr.outvars))
    return jaxpr, ahead, behind


def test_every_source_has_a_bit():
    jaxpr, ahead, behind = ends()
    assert [ahead[v] for v in jaxpr.outvars] == [0b11, 0b10]
    assert [behind[v] for v in jaxpr.invars] == [0b01, 0b11]


def test_between_leaves_out_what_only_one_end_touches():
    jaxpr, ahead, behind = ends()
    paths = between(jaxpr.eqns, influence(jaxpr.eqns, {jaxpr.invars[0]: -1}), behind)
    assert names(paths[0]) == ["sin", "exp", "mul"]
    assert 1 not in paths
    assert names(between(jaxpr.eqns, ahead, behind)[1]) == ["cos", "log"]


def test_barriers_and_closed_variables_end_a_path():
    jaxpr = program(chain, 1.0, 1.0)
    (x, _), sine = jaxpr.invars, jaxpr.eqns[0]
    out = jaxpr.outvars[0]
    assert out not in influence(jaxpr.eqns, {x: 1}, barrier=lambda eqn: eqn is sine)
    assert x not in dependence(jaxpr.eqns, {out: 1}, barrier=lambda eqn: eqn is sine)
    closed = {sine.outvars[0]: 0b01}
    assert influence(jaxpr.eqns, {x: 0b11}, closed=closed)[out] == 0b10
    found = dependence(jaxpr.eqns, {out: 0b11}, closed=closed)
    assert (found[x], found[sine.outvars[0]]) == (0b10, 0b11)


def test_integers_and_stop_gradient_carry_no_derivative():
    jaxpr = program(lambda x: (x.astype(int).astype(float), jax.lax.stop_gradient(x) * 2.0), 1.0)
    sources = dict.fromkeys(jaxpr.invars, 1)
    assert not join_bits(influence(jaxpr.eqns, sources), jaxpr.outvars)
    assert all(v in influence(jaxpr.eqns, sources, derivative=False) for v in jaxpr.outvars)
    assert not join_bits(dependence(jaxpr.eqns, dict.fromkeys(jaxpr.outvars, 1)), jaxpr.invars)


def test_bits():
    assert list(numbers(0b10110)) == [1, 2, 4]
    assert seeds_of(["ab", "b"]) == {"a": 0b01, "b": 0b11}
    assert join_bits({"a": 1, "b": 4}, "abc") == 5
