"""Look-up tables."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_nn as nn
from braintrace_primitives import is_etp_primitive

TABLE = np.arange(1.0, 13.0, dtype="float32").reshape(4, 3)


def gradient(layer, indices):
    states = layer.states(brainstate.ParamState)
    return brainstate.transform.grad(lambda: (layer(indices) ** 2).sum(), states)()[("weight",)]


def marks(layer, x):
    eqns = brainstate.transform.make_jaxpr(layer)(x)[0].jaxpr.eqns
    return sum(is_etp_primitive(eqn.primitive) for eqn in eqns)


@pytest.mark.parametrize("indices", [2, [1, 3, 1], [[0, 1], [2, 3]]])
def test_rows(indices):
    layer = nn.Embedding(4, 3, embedding_init=TABLE)
    indices = np.asarray(indices)
    np.testing.assert_array_equal(layer(indices), TABLE[indices])
    assert marks(layer, jnp.asarray(indices)) == 1


def test_vectors_of_any_shape():
    layer = nn.Embedding(4, (2, 3), embedding_init=np.arange(24.0).reshape(4, 2, 3))
    assert layer.weight.value.shape == (4, 2, 3)
    np.testing.assert_array_equal(layer(jnp.array([3, 0])), np.arange(24.0).reshape(4, 2, 3)[[3, 0]])


def test_gradient_of_the_rows_looked_up():
    grad = gradient(nn.Embedding(4, 3, embedding_init=TABLE), jnp.array([1, 3, 1]))
    np.testing.assert_allclose(grad, 2 * TABLE * np.array([[0], [2], [0], [1]]))


def test_the_padding_row_is_zero_and_not_learnt():
    layer = nn.Embedding(4, 3, padding_idx=1)
    np.testing.assert_array_equal(layer(jnp.array(1)), np.zeros(3))
    given = nn.Embedding(4, 3, embedding_init=TABLE, padding_idx=1)
    np.testing.assert_array_equal(given(jnp.array(1)), TABLE[1])
    grad = gradient(given, jnp.array([1, 3]))
    np.testing.assert_allclose(grad, 2 * TABLE * np.array([[0], [0], [0], [1]]))
    assert marks(given, jnp.array([1])) == 1


@pytest.mark.parametrize("norm_type", [1.0, 2.0])
def test_norms_are_bounded_and_the_gradient_passes_straight_through(norm_type):
    layer = nn.Embedding(4, 3, embedding_init=TABLE, max_norm=4.0, norm_type=norm_type)
    rows = np.asarray(layer(jnp.array([0, 2])))
    norms = np.linalg.norm(TABLE[[0, 2]], norm_type, axis=1)
    np.testing.assert_allclose(rows, TABLE[[0, 2]] * np.minimum(1, 4.0 / norms)[:, None], rtol=1e-6)
    np.testing.assert_array_equal(layer.weight.value, TABLE)
    grad = gradient(layer, jnp.array([2]))
    np.testing.assert_allclose(grad[2], 2 * rows[1], rtol=1e-6)


def test_short_vectors_keep_their_norm():
    layer = nn.Embedding(4, 3, embedding_init=TABLE / 100, max_norm=4.0)
    np.testing.assert_allclose(layer(jnp.arange(4)), TABLE / 100, rtol=1e-6)


def test_a_frozen_table_is_no_parameter():
    layer = nn.Embedding(4, 3, embedding_init=TABLE, freeze=True)
    np.testing.assert_array_equal(layer(jnp.array([2, 0])), TABLE[[2, 0]])
    assert marks(layer, jnp.array([2])) == 0
    assert not layer.states(brainstate.ParamState)
    assert np.isnan(layer(jnp.array(7))).all()


def test_pretrained():
    frozen, learnt = nn.Embedding.from_pretrained(TABLE), nn.Embedding.from_pretrained(TABLE, freeze=False)
    for layer in (frozen, learnt):
        np.testing.assert_array_equal(layer(jnp.arange(4)), TABLE)
    assert isinstance(learnt.weight, brainstate.ParamState)
    assert not isinstance(frozen.weight, brainstate.ParamState)


def test_lecun_uniform_by_default():
    table = nn.Embedding(500, 40).weight.value
    np.testing.assert_allclose(table.std(), np.sqrt(1 / 500), rtol=0.03)
    assert jnp.abs(table).max() <= np.sqrt(3 / 500)


@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 4},
        {"padding_idx": -1},
        {"max_norm": 0.0},
        {"scale_grad_by_freq": True},
        {"embedding_init": TABLE.T},
    ],
)
def test_impossible_options(options):
    with pytest.raises(nn.ConfigurationError):
        nn.Embedding(4, 3, **options)


def test_indices_are_integers():
    with pytest.raises(nn.InputTypeError, match="float32"):
        nn.Embedding(4, 3)(jnp.ones(2))
    with pytest.raises(nn.ConfigurationError, match="num_embeddings"):
        nn.Embedding(0, 3)


def test_maps_over_samples():
    layer = nn.Embedding(4, 3, embedding_init=TABLE)
    np.testing.assert_array_equal(jax.vmap(layer)(jnp.array([1, 2])), TABLE[[1, 2]])


def test_repr_tells_sizes():
    assert "num_embeddings=4" in repr(nn.Embedding(4, 3))
    assert "(3,)" in repr(nn.Embedding(4, 3))
