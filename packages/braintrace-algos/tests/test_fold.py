"""The fold against the trace written out step by step in NumPy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, compile
from braintrace_algos._feeds import collect, spread
from braintrace_algos._fold import fold
from braintrace_algos._fold_types import Window
from braintrace_algos._step import Tape
from braintrace_compiler import Feed, FeedKind
from braintrace_compiler._entries import Known
from braintrace_primitives import _rows


class AsGiven(NamedTuple):
    """In place of `LocalDerivatives`: a tape that holds the entries of D and F themselves."""

    pattern: Any

    def blocks(self, kept):
        return kept


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_window_equals_its_steps(model, data, by_rows, monkeypatch):
    """Random D, F, q, b; a hard reset (D = 0) among them."""
    if by_rows:
        monkeypatch.setattr(_rows, "_LEAST", 1)
        monkeypatch.setattr(_rows, "MOST_STEPS", 5)
    xs, _ = data
    K, B, I, H, S = 5, xs.shape[1], 4, 5, 2
    plan = compile(model, D_RTRL, xs[0], batch_size=B).plan
    plain = [c._replace(rule=getattr(c.rule, "rule", c.rule)) for c in plan.couplings]
    plan = plan._replace(couplings=tuple(plain))  # in random D and F nothing is constant
    rng = np.random.default_rng(0)
    D, F, q = rng.normal(size=(K, S, S, B, H)), rng.normal(size=(K, S, B, H)), rng.normal(size=(K, S, B, H))
    D[2] = 0.0
    b, x = rng.normal(size=(K, B, H)), rng.normal(size=(K, B, I))
    e = rng.normal(size=(S, B, I, H))
    weights = plan.weights([leaf for s in plan.parameters.values() for leaf in jax.tree.leaves(s.value)])
    keys = {plan.operations[c.operation].weight_path: c.key for c in plan.couplings}

    rows = tuple(tuple(D[:, s, r] for r in range(S)) for s in range(S))
    factors = {keys["w",]: tuple(F[:, s] for s in range(S)), keys["gain",]: (Known(0),) * S}
    plan = plan._replace(local={0: AsGiven((rows, factors))})
    x_of = {("w",): x, ("gain",): None, ("out",): jnp.zeros((K, B, H))}
    b_of = {("w",): b, ("gain",): jnp.zeros((K, H)), ("out",): jnp.zeros((K, B, 2))}
    paths = [op.weight_path for op in plan.operations]
    tape = Tape({0: (rows, factors)}, tuple(x_of[p] for p in paths))
    window = jax.tree.map(
        lambda v: jnp.asarray(v, jnp.float32), Window(tape, [b_of[p] for p in paths], {0: q}, np.ones(K))
    )
    traces = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), plan.carry.init(plan))
    traces[keys["w",]] = {"weight": jnp.asarray(e, jnp.float32), "bias": jnp.zeros((S, B, H))}

    dw = np.zeros((I, H))
    for t in range(K):
        dw += np.einsum("bi,bo->io", x[t], b[t]) + np.einsum("sbo,sbio->io", q[t], e)
        e = np.einsum("srbo,rbio->sbio", D[t], e) + np.einsum("sbo,bi->sbio", F[t], x[t])

    grads, _, new = fold(plan, window, traces, weights, [])
    np.testing.assert_allclose(grads[paths.index(("w",))]["weight"], dw, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new[keys["w",]]["weight"], e, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("feed", "y_shape", "positions"),
    [
        (Feed(FeedKind.SAME), (3,), (3,)),
        (Feed(FeedKind.GATHER, np.array([1, 0, -1, 2, 1])), (5,), (3,)),
        (Feed(FeedKind.BROADCAST, np.array([[0, 1], [0, 1], [-1, 1]])), (2,), (3, 2)),
    ],
)
def test_elements_and_positions(feed, y_shape, positions):
    """`spread` takes positions to the elements that carry a trace; `collect` sums elements onto y."""
    rng = np.random.default_rng(0)
    at_positions = rng.normal(size=(4, *positions)).astype(np.float32)
    elements = np.asarray(spread(feed, jnp.asarray(at_positions), 1))
    onto_y = np.asarray(collect(feed, jnp.asarray(elements), y_shape))
    assert onto_y.shape == (4, *y_shape)
    if feed.kind is FeedKind.SAME:
        np.testing.assert_array_equal(onto_y, at_positions)
    elif feed.kind is FeedKind.GATHER:
        np.testing.assert_array_equal(elements[:, [0, 1, 3, 4]], at_positions[:, [1, 0, 2, 1]])
    else:
        np.testing.assert_allclose(onto_y[:, 0], at_positions[:, :2, 0].sum(1), rtol=1e-6)
        np.testing.assert_allclose(onto_y[:, 1], at_positions[:, :, 1].sum(1), rtol=1e-6)
