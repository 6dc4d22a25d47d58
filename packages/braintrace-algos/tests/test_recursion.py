"""The recursion by entries against products of matrices, for every structure of D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braintrace_algos.carries._recursion import Recursion
from braintrace_compiler._entries import Known

K, P = 3, 2


@st.composite
def structures(draw):
    """A matrix of "zero", "number", "array"."""
    S = draw(st.integers(1, 3))
    kinds = st.sampled_from(["zero", "number", "array"])
    return [[draw(kinds) for _ in range(S)] for _ in range(S)]


def entry(kind, rng):
    """An entry, and what it is at each step and position."""
    if kind == "array":
        value = rng.normal(size=(K, P))
        return jnp.asarray(value, jnp.float32), value
    number = 0.0 if kind == "zero" else rng.normal()
    return Known(number), np.full((K, P), number)


@given(structures(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_entries_are_those_of_the_product(kinds, asks):
    S, rng = len(kinds), np.random.default_rng(0)
    entries = [[entry(kind, rng) for kind in row] for row in kinds]
    D = np.array([[dense for _, dense in row] for row in entries])
    q, l = rng.normal(size=(K, S, P)), rng.normal(size=(S, P))
    signals = (jnp.asarray(q, jnp.float32), jnp.asarray(l, jnp.float32)) if asks else None
    rows = tuple(tuple(e for e, _ in row) for row in entries)
    recursion = Recursion(rows, (rows, jnp.zeros(K)), lambda step: step, signals, K, S, (P,), jnp.float32)
    with jax.disable_jit():
        found, first = recursion.run(lambda row, _: row)

    M = np.concatenate([l[None] if asks else np.zeros((1, S, P)), np.eye(S)[:, :, None] * np.ones(P)])
    for t in reversed(range(K)):
        compare(found, M, t)
        M = np.einsum("isp,sjp->ijp", M, D[:, :, t])
        M[0] += q[t] if asks else 0
    compare(first, M, None)


def compare(rows, dense, t):
    for row, expected in zip(rows, dense, strict=True):
        for e, value in zip(row, expected, strict=True):
            at = e.value if isinstance(e, Known) else e if t is None else e[t]
            np.testing.assert_allclose(np.broadcast_to(at, (P,)), value, rtol=1e-4, atol=1e-5)


def test_only_arrays_are_carried():
    """A current that leaks by a number, and a membrane that it drives: no array for the current by itself."""
    D = ((Known(0.8), Known(0)), (Known(0.8), jnp.ones((K, P))))
    recursion = Recursion(D, (D, None), lambda step: step, None, K, 2, (P,), jnp.float32)
    assert (recursion.arrays(), recursion.rows_of_arrays()) == (2, 1)
    _, M0 = recursion.run(lambda row, _: row)
    assert M0[1] == (Known(pytest.approx(0.8**K)), Known(0))


def test_rows_that_are_alike_are_carried_as_one_array():
    """A membrane and its adaptation, behind a current that leaks by a number: one loop state for each column."""
    array, zero = jnp.ones((K, P)), Known(0)
    D = ((Known(0.8), zero, zero), (array, array, array), (zero, array, array))
    signals = jnp.ones((K, 3, P)), jnp.ones((3, P))

    def carried(signals):
        recursion = Recursion(D, (D, None), lambda step: step, signals, K, 3, (P,), jnp.float32)
        (scan,) = (
            e for e in jax.make_jaxpr(lambda: recursion.run(lambda row, _: row))().eqns if str(e.primitive) == "scan"
        )
        count = scan.params["num_consts"], scan.params["num_carry"]
        return [v.aval.shape for v in scan.invars[count[0] : sum(count)]]

    assert carried(signals) == [(3, P)] * 3
    assert carried(None) == [(2, P)] * 3
