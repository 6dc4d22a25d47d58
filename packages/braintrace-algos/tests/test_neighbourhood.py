"""SnAp-n against its recursion in NumPy, C <- P_n ∘ (I + D C), with the pattern from powers of the wiring."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import LearnerError, compile
from braintrace_primitives import SparsityPattern, conv, element_wise, matmul, sparse_matmul

I, H, T, A = 2, 8, 9, 0.6
RNG = np.random.default_rng(3)
RECURRENT = RNG.random((H, H)) < 0.2
INPUT = RNG.random((I, H)) < 0.7
MASK = np.concatenate([INPUT, RECURRENT])
W = RNG.normal(size=MASK.shape) / 1.5


class Sparse(brainstate.nn.Module):
    """h = A h + relu([x, h] W): half of the units are silent at any time. W is masked, or stored sparse."""

    def __init__(self, stored):
        super().__init__()
        self.pattern = SparsityPattern.from_dense(MASK) if stored else None
        self.W = brainstate.ParamState(jnp.asarray(W[MASK] if stored else W, jnp.float32))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((H,) if batch_size is None else (batch_size, H)))

    def update(self, x):
        u = jnp.concatenate([x, self.h.value], -1)
        if self.pattern is None:
            y = matmul(u, self.W.value * MASK)
        else:
            y = sparse_matmul(u, self.W.value, sparse_mat=self.pattern)
        self.h.value = A * self.h.value + jax.nn.relu(y)
        return self.h.value


def pattern(n):
    """Which units the weights into each unit reach within n steps."""
    onwards = np.eye(H, dtype=int) + RECURRENT.astype(int)
    return np.linalg.matrix_power(onwards, n - 1) > 0


def in_numpy(n, xs, ys):
    """Gradient of sum (h - y)^2, and how many influences are kept of one sample."""
    kept = pattern(n).T[:, None, :] & MASK[None]  # unit, weight
    total, (samples, *_) = np.zeros_like(W), xs.shape[1:]
    for b in range(samples):
        h, C = np.zeros(H), np.zeros((H, *W.shape))
        for x, y in zip(xs[:, b], ys[:, b], strict=True):
            u = np.concatenate([x, h])
            v = u @ (W * MASK)
            F = (v > 0).astype(float)
            D = A * np.eye(H) + F[:, None] * (W * MASK)[I:].T
            h = A * h + np.maximum(v, 0)
            direct = F[:, None, None] * np.eye(H)[:, None, :] * u[None, :, None]
            signal = 2 * (h - y)
            total += np.tensordot(signal, np.tensordot(D, C, 1) + direct, 1) * MASK
            C = kept * (np.tensordot(D, C, 1) + direct)
    return total, kept.sum()


def gradient(algorithm, model, xs, ys, **options):
    learner = compile(model, algorithm, jnp.asarray(xs[0]), **options)
    grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: ((learner(x) - y) ** 2).sum(), reduction="sum")
    return learner, {path[0]: np.asarray(g) for path, g in grads.items()}


@pytest.mark.parametrize(("stored", "options"), [(False, {"vmap": True, "batch_size": 2}), (True, {"batch_size": 2})])
def test_the_masked_recursion(stored, options):
    """In models that take their batch themselves too, where samples do not reach each other."""
    xs, ys = RNG.normal(size=(T, 2, I)), RNG.normal(size=(T, 2, H))
    exact = gradient("bptt", Sparse(stored), xs, ys, **options)[1]["W"]
    errors = []
    for n in (1, 2, H):
        learner, grads = gradient("snap", Sparse(stored), xs, ys, n=n, **options)
        expected, kept = in_numpy(n, xs, ys)
        expected = expected[MASK] if stored else expected
        np.testing.assert_allclose(grads["W"], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
        errors.append(np.linalg.norm(grads["W"] - exact) / np.linalg.norm(exact))

        carried = sum(leaf.size for leaf in jax.tree.leaves(learner.etraces.value))
        assert 2 * kept <= carried <= 2 * 1.6 * kept
        assert sum(learner.memory_report().traces.values()) == 4 * carried
        copies = 1 if "vmap" in options else 2
        assert f"{copies * kept:,} of {copies * H * grads['W'].size:,}" in learner.report.notes
    assert errors[0] > 2 * errors[1] > 0.01
    assert errors[2] < 1e-5


class Wide(brainstate.nn.Module):
    """A dense network of two states a unit, kept in one array."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.asarray(np.random.default_rng(0).normal(size=(I + 3, 3)), jnp.float32))

    def init_state(self):
        self.h = brainstate.HiddenGroupState(jnp.zeros((3, 2)))

    def update(self, x):
        a, b = self.h.value[:, 0], self.h.value[:, 1]
        a = 0.5 * a + jnp.tanh(matmul(jnp.concatenate([x, b]), self.w.value))
        b = 0.8 * b + 0.3 * jnp.tanh(a)
        self.h.value = jnp.stack([a, b], -1)
        return b


def test_states_of_one_array_belong_to_their_units():
    xs, ys = RNG.normal(size=(T, I)), RNG.normal(size=(T, 3))
    expected = gradient("bptt", Wide(), xs, ys)[1]["w"]
    for algorithm, options in (("rtrl", {}), ("rtrl", {"window": 2}), ("snap", {"n": 2})):
        found = gradient(algorithm, Wide(), xs, ys, **options)[1]["w"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    learner, first = gradient("snap", Wide(), xs, ys, n=1)
    assert np.abs(first["w"] - expected).max() > 0.05 * np.abs(expected).max()
    assert {C.shape for C in learner.etraces.value["w"]} == {(3, 2, I + 3)}


def test_neighbours_on_a_line_spread_one_kernel_width_a_step():
    class Line(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = brainstate.ParamState(jnp.asarray([0.9, -0.5, 1.1]).reshape(3, 1, 1))
            self.bias = brainstate.ParamState(jnp.zeros((6, 1)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros((6, 1)))

        def update(self, x):
            y = conv(self.h.value, self.k.value, strides=1, padding="SAME", dimension_numbers=("NWC", "WIO", "NWC"))
            self.h.value = jnp.tanh(y + x + element_wise(self.bias.value))
            return self.h.value

    xs, ys = RNG.normal(size=(T, 6, 1)), RNG.normal(size=(T, 6, 1))
    learner, _ = gradient("snap", Line(), xs, ys, n=2)
    # Every position uses the kernel; the bias of a position reaches it and its two neighbours.
    assert learner.plan.carry.layout.kept == 6 * 3 + (6 + 2 * 5)
    expected = gradient("bptt", Line(), xs, ys)[1]["bias"]
    found = gradient("snap", Line(), xs, ys, n=6)[1]["bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_told_with_the_numbers():
    with pytest.raises(LearnerError, match=r"20 of 160 influences"):
        compile(Sparse(True), "snap", jnp.zeros(I), n=1, limit=10)
