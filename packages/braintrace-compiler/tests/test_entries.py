import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler._entries import Known


def test_arithmetic_of_known_numbers():
    array = jnp.array([1.0, jnp.inf])
    assert (Known(2) * Known(3), Known(2) + Known(3), array * Known(0)) == (Known(6), Known(5), Known(0))
    assert all(same is array for same in (Known(1) * array, array * Known(1), Known(0) + array))
    np.testing.assert_array_equal(array * Known(2.0), 2 * array)
    np.testing.assert_array_equal(np.ones(2) * Known(2.0), 2 * np.ones(2))
    assert sum([Known(0.5), Known(0.25)]) == Known(0.75)
    np.testing.assert_array_equal(sum([array, Known(1), array]), 2 * array + 1)
    assert sum([Known(0)]) == Known(0)


def test_known_numbers_pass_through_transformations():
    tree = (Known(0.5), jnp.ones(3))
    assert len(jax.tree.leaves(tree)) == 1
    out = jax.jit(jax.vmap(lambda t: (t[0] * t[1], t[0])))(tree)
    np.testing.assert_array_equal(out[0], 0.5 * np.ones(3))
    assert {out[1]} == {Known(0.5)}


def test_precision_is_that_of_the_array():
    assert (Known(0.5) * jnp.ones(2, jnp.bfloat16) + Known(1)).dtype == jnp.bfloat16
