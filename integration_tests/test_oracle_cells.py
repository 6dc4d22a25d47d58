"""Strict online gradients of the cells of `braintrace.nn`, against backpropagation through rewritten models."""

import functools

import jax
import numpy as np
import pytest
from online import assert_close, learn, precision, sequence_gradient
from oracle_cells import CELLS, build, inputs_of
from oracles import gradient, make_data, relative_error, strict_gradient

T, B = 6, 3
STACKS = [("vanilla", "GRU"), ("LSTM", "LRU"), ("LRU", "LRU")]


@functools.cache
def oracle(kinds, dtype, batch):
    """Case, data and strict gradient of a stack; to be called under its precision."""
    case, _ = build(*kinds)
    data = make_data(case, inputs_of(kinds[0]), T, batch, dtype)
    return case, data, strict_gradient(case, data)


def check(kinds, dtype, batch, **options):
    """Compare a stack of cells with its oracle; give the case, its data and the gradient for more."""
    case, data, expected = oracle(kinds, dtype, batch)
    found = sequence_gradient(case, learn(case, data, model=build(*kinds)[1], **options), data)
    assert_close(found, expected)
    return case, data, found


@pytest.mark.parametrize("kind", CELLS)
def test_batched(kind):
    with precision("float64"):
        check((kind,), "float64", (B,))


@pytest.mark.parametrize("kind", CELLS)
def test_batched_in_single_precision(kind):
    with precision("float32"):
        check((kind,), "float32", (B,))


@pytest.mark.parametrize("kind", ["vanilla", "GRU", "LSTM", "minimal", "LRU"])
def test_single_sample(kind):
    with precision("float64"):
        check((kind,), "float64", ())


@pytest.mark.parametrize("kind", ["vanilla", "GRU", "LSTM", "minimal", "LRU"])
def test_mapped_over_the_batch(kind):
    with precision("float64"):
        check((kind,), "float64", (B,), vmap=True)


@pytest.mark.parametrize("kinds", STACKS, ids=" under ".join)
def test_each_layer_of_a_stack(kinds):
    with precision("float64"):
        case, data, found = check(kinds, "float64", (B,))
        full = gradient(case, data, None)
        first, second = (
            max(relative_error(found[k], full[k]) for k, groups in case.groups.items() if groups == (layer,))
            for layer in ("one", "two")
        )
        assert first > 0.01
        assert (second < 1e-10) == (kinds[1] == "LRU")


@pytest.mark.parametrize("kind", [kind for kind in CELLS if kind != "LRU"])
def test_strict_is_not_bptt_where_units_talk(kind):
    with precision("float64"):
        case, data, strict = oracle((kind,), "float64", (B,))
        full = gradient(case, data, None)
        assert max(relative_error(strict[k], full[k]) for k in strict) > 0.05


def test_lru_is_bptt():
    with precision("float64"):
        case, data, found = check(("LRU",), "float64", (B,))
        assert_close(found, gradient(case, data, None))


def test_reset_gate_of_a_gru_learns_within_the_step():
    with precision("float64"):
        case, data, found = check(("GRU",), "float64", (B,))
        within = gradient(case, data, "step")["one.Wr.weight"]
        assert relative_error(found["one.Wr.weight"], within) < 1e-10
        assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(within))
