"""Strict online gradients of neurons, layers and weight chains, against backpropagation through rewritten models."""

import functools

import jax.numpy as jnp
import pytest
from online import assert_close, learn, precision, sequence_gradient, stepwise_gradient
from oracle_cases import CASES, HIDDEN_LOSS, LAYERS, NEURONS, I
from oracles import Data, gradient, make_data, relative_error, strict_gradient

pytestmark = [
    pytest.mark.filterwarnings("ignore:PLAIN_PARAMETER_TEMPORAL"),
    pytest.mark.filterwarnings("ignore:TIME_VARYING_WEIGHT"),
]

T, B = 6, 3
DYNAMICS = [case.name for case in (*NEURONS, *LAYERS, *HIDDEN_LOSS)]


@functools.cache
def data_and_oracle(name: str, dtype: str, batch: tuple[int, ...]) -> tuple[Data, dict]:
    """Data and strict gradient of a case; to be called under its precision."""
    data = make_data(CASES[name], I, T, batch, jnp.dtype(dtype))
    return data, strict_gradient(CASES[name], data)


@pytest.mark.parametrize("name", CASES)
def test_batched(name):
    with precision("float64"):
        data, expected = data_and_oracle(name, "float64", (B,))
        assert_close(sequence_gradient(CASES[name], learn(CASES[name], data), data), expected)


@pytest.mark.parametrize("name", DYNAMICS)
def test_batched_in_single_precision(name):
    with precision("float32"):
        data, expected = data_and_oracle(name, "float32", (B,))
        assert_close(sequence_gradient(CASES[name], learn(CASES[name], data), data), expected)


@pytest.mark.parametrize("name", DYNAMICS)
def test_single_sample(name):
    with precision("float64"):
        data, expected = data_and_oracle(name, "float64", ())
        assert_close(sequence_gradient(CASES[name], learn(CASES[name], data), data), expected)


@pytest.mark.parametrize("name", [*DYNAMICS, "transposed", "product", "shared by layers"])
def test_mapped_over_the_batch(name):
    with precision("float64"):
        data, expected = data_and_oracle(name, "float64", (B,))
        assert_close(sequence_gradient(CASES[name], learn(CASES[name], data, vmap=True), data), expected)


STEPWISE = ["three chained states", "two recurrent layers", "product", "penalty, three chained states"]


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("name", STEPWISE)
def test_one_gradient_per_step(name, vmap):
    with precision("float64"):
        data, expected = data_and_oracle(name, "float64", (B,))
        assert_close(stepwise_gradient(CASES[name], learn(CASES[name], data, vmap=vmap), data), expected)


@pytest.mark.parametrize("name", CASES)
def test_what_the_rewriting_changes(name):
    """Where nothing is cut the oracle is backpropagation through time; elsewhere it is far from it."""
    case = CASES[name]
    with precision("float64"):
        data, strict = data_and_oracle(name, "float64", (B,))
        full = gradient(case, data, None)
        differences = {k: relative_error(strict[k], full[k]) for k in strict}
    if case.exact:
        assert max(differences.values()) < 1e-12
    else:
        assert max(differences.values()) > 0.03, differences
