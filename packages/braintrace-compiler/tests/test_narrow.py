"""The narrowest cut of a program, against every cut of small ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from braintrace_compiler._narrow import _CHEAP, narrow_cut
from braintrace_primitives._jax_compat import Literal, eval_jaxpr, make_jaxpr_without_consts

OPERATIONS = {
    "scale": (1, lambda a: 0.5 * a),
    "negate": (1, jnp.negative),
    "mask": (1, lambda a: (a > 0).astype(a.dtype)),
    "tanh": (1, jnp.tanh),
    "once": (1, jax.jit(lambda a: 1.0 - jnp.abs(a))),
    "add": (2, jnp.add),
    "multiply": (2, jnp.multiply),
    "sum": (1, lambda a: jnp.broadcast_to(a.sum(), a.shape)),
}


@st.composite
def functions(draw):
    """A function of two arrays and a constant that gives one to three values."""
    steps, count = [], 3
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(sorted(OPERATIONS)))
        steps.append((name, [draw(st.integers(0, count - 1)) for _ in range(OPERATIONS[name][0])]))
        count += 1
    results = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))

    def function(a, b):
        values = [a, b, jnp.asarray(np.array([0.25, -1.0, 2.0, 0.5]), jnp.float32)]
        for name, of in steps:
            values.append(OPERATIONS[name][1](*(values[i] for i in of)))
        return [values[i] for i in results]

    return function


def size(variables):
    return sum(v.aval.size * v.aval.dtype.itemsize for v in variables)


def least(program, fixed):
    """Bytes of the smallest set of variables of which cheap operations make the outputs."""
    outputs = {v for v in program.outvars if not isinstance(v, Literal)}
    own = [v for eqn in program.eqns for v in eqn.outvars] + program.invars[fixed:]
    best = None
    for n in range(len(own) + 1):
        for chosen in itertools.combinations(own, n):
            known = {*chosen, *program.invars[:fixed]}
            for eqn in program.eqns:
                read = [v for v in eqn.invars if not isinstance(v, Literal)]
                of_constants = eqn.outvars[0] in constant_values(program, fixed)
                if known.issuperset(read) and (eqn.primitive in _CHEAP or of_constants):
                    known.update(eqn.outvars)
            if known.issuperset(outputs) and (best is None or size(chosen) < best):
                best = size(chosen)
    return best


def constant_values(program, fixed):
    known = set(program.invars[:fixed])
    for eqn in program.eqns:
        if all(isinstance(v, Literal) or v in known for v in eqn.invars):
            known.update(eqn.outvars)
    return known


@given(functions())
@settings(max_examples=150, deadline=None)
def test_two_parts_are_the_program_and_no_cut_is_narrower(function):
    a, b = jnp.array([1.0, -2.0, 0.5, 3.0]), jnp.array([0.5])
    program, consts = make_jaxpr_without_consts(jax.make_jaxpr(function)(a, b))
    cut = narrow_cut(program, consts)
    passing = eval_jaxpr(cut.first, *cut.consts, a, b)
    found = eval_jaxpr(cut.second, *cut.consts, *passing)
    for value, expected in zip(found, function(a, b), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)

    whole, lifted = make_jaxpr_without_consts(
        jax.make_jaxpr(lambda a, b: eval_jaxpr(cut.second, *cut.consts, *eval_jaxpr(cut.first, *cut.consts, a, b)))(
            a, b
        )
    )
    assert size(cut.first.outvars) == least(whole, len(lifted))


def test_one_surrogate_derivative_stands_for_all_that_spikes_bring():
    def derivatives(v, threshold):
        surrogate = jnp.exp(-jnp.abs(v - threshold))
        return 0.9 - surrogate, -0.1 * surrogate, surrogate, 0.97 + 0.1 * surrogate

    program, _ = make_jaxpr_without_consts(jax.make_jaxpr(derivatives)(jnp.ones(3), jnp.ones(3)))
    assert len(narrow_cut(program).first.outvars) == 1


def test_a_cut_is_no_earlier_than_it_has_to_be():
    """Three gates and the products of their derivatives are as many arrays: nothing is made again."""

    def derivatives(z, n, h):
        z, n = jax.nn.sigmoid(z), jnp.tanh(n)
        return 1 - z, (h - n) * z, z * n

    program, _ = make_jaxpr_without_consts(jax.make_jaxpr(derivatives)(*jnp.ones((3, 2))))
    assert not narrow_cut(program).second.eqns
