"""The formula itself, in NumPy loops over explicit Jacobians, and central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from online import assert_close, learn, precision, sequence_gradient
from oracle_cases import CASES, CELL, H, I, V, weight
from oracles import Case, Data, View, cast, gradient, make_data, relative_error, sequence_loss, strict_gradient

T = 5


def flat(hidden):
    return jnp.stack([hidden[name] for name in hidden])


def formula(case, data, window=None):
    """Σ ∂l/∂θ + q·ε with ε^t = D^t ε^{t-1} + F^t ∂y/∂w, one sample, one loop per index.

    `window` None cuts recurrent mixing from q (strict). Otherwise windows of that many steps are differentiated as a
    whole, and ε enters at their beginning.
    """
    params = cast(case.params, data.xs.dtype)
    hidden = case.initial((), data.xs.dtype)
    names, (S, N) = list(hidden), flat(hidden).shape
    traced = [k for k, groups in case.groups.items() if groups == CELL]

    def unflat(h):
        return {name: h[s] for s, name in enumerate(names)}

    @jax.jit
    def local(h, params, x):
        """New states along paths that cross no second operation."""

        def step(h, p):
            return flat(case.step(View("cell", True), p, unflat(h), x)[0])

        return jax.jacobian(step, argnums=(0, 1))(h, params)

    def forward(h, params, xs, ys, view):
        loss = 0.0
        for x, y in zip(xs, ys, strict=True):
            seen, out = case.step(view, params, unflat(h), x)
            loss, h = loss + case.loss(out, seen, y), flat(seen)
        return loss

    view = View("cell") if window is None else View()
    differentiate = jax.jit(
        lambda h, p, xs, ys: jax.grad(lambda h, p: forward(h, p, xs, ys, view), argnums=(0, 1))(h, p)
    )
    advance = jax.jit(lambda h, p, x: flat(case.step(View(), p, unflat(h), x)[0]))
    h = flat(hidden)
    total = {k: np.zeros(v.shape) for k, v in params.items()}
    eps = {k: np.zeros((S, N, *params[k].shape)) for k in traced}
    for begin in range(0, T, window or 1):
        steps = slice(begin, min(begin + (window or 1), T))
        q, direct = differentiate(h, params, data.xs[steps], data.ys[steps])
        for k in total:
            total[k] += np.asarray(direct[k])
        for k in traced:
            for s in range(S):
                for i in range(N):
                    total[k] += float(q[s, i]) * eps[k][s, i]
        for x in data.xs[steps]:
            D, J = jax.tree.map(np.asarray, local(h, params, x))
            old = eps
            eps = {k: np.zeros_like(v) for k, v in old.items()}
            for k in traced:
                for s in range(S):
                    for i in range(N):
                        eps[k][s, i] = own_position(J[k][s, i], i, case)
                        for r in range(S):
                            eps[k][s, i] += D[s, i, r, i] * old[k][r, i]
            h = advance(h, params, x)
    return total


def own_position(row, i, case):
    """∂h_i/∂w, of which only column i is kept where positions are mixed on the way."""
    return row * (np.arange(H) == i) if case.name in MIXING else row


def layer_norm(a):
    return (a - a.mean(-1, keepdims=True)) / jnp.sqrt(a.var(-1, keepdims=True) + 0.1)


def normalised(o, p, h, x):
    v = layer_norm(0.8 * o.memory(h["v"], "cell") + o.matmul(x, p["w"]))
    return {"v": v}, v**2


def softmax_input(o, p, h, x):
    v = 0.8 * o.memory(h["v"], "cell") + jax.nn.softmax(o.matmul(x, p["w"]), -1)
    return {"v": v}, v**2


def pooled_input(o, p, h, x):
    y = o.matmul(x, p["w"])
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(0.6 * y + 0.4 * jnp.roll(y, 1, -1))
    return {"v": v}, v**2


DENSE = jnp.asarray(0.4 * np.random.default_rng(3).normal(size=(H, H)))


def dense_input(o, p, h, x):
    v = 0.8 * o.memory(h["v"], "cell") + jnp.tanh(o.matmul(x, p["w"]) @ DENSE.astype(x.dtype))
    return {"v": v}, v**2


def dense_memory(o, p, h, x):
    v = jnp.tanh(o.memory(h["v"], "cell") @ DENSE.astype(x.dtype)) + o.matmul(x, p["w"])
    return {"v": v}, v**2


MIXING = {
    "pooling": Case("pooling", {"w": weight(I, H)}, V, pooled_input, {"w": CELL}),
    "plain dense": Case("plain dense", {"w": weight(I, H)}, V, dense_input, {"w": CELL}),
    "plain dense in memory": Case("plain dense in memory", {"w": weight(I, H)}, V, dense_memory, {"w": CELL}),
    "LayerNorm": Case("LayerNorm", {"w": weight(I, H)}, V, normalised, {"w": CELL}),
    "softmax": Case("softmax", {"w": weight(I, H)}, V, softmax_input, {"w": CELL}),
}


@pytest.mark.parametrize("name", ["three chained states", "recurrent, read before the reset"])
def test_strict(name):
    case = CASES[name]
    with precision("float64"):
        data = make_data(case, I, T, (), "float64")
        expected = formula(case, data)
        assert_close(sequence_gradient(case, learn(case, data), data), expected)
        assert_close(strict_gradient(case, data), expected)


@pytest.mark.parametrize(
    ("name", "window"),
    [("three chained states", 1), ("recurrent, read before the reset", 2), ("recurrent, read before the reset", 3)],
)
def test_windows(name, window):
    case = CASES[name]
    with precision("float64"):
        data = make_data(case, I, T, (), "float64")
        learner = learn(case, data, vjp_method="multi-step", window=window)
        found, expected = sequence_gradient(case, learner, data), formula(case, data, window)
        assert_close(found, expected)
        full = gradient(case, data, None)
        assert max(relative_error(found[k], full[k]) for k in found) > 1e-3


@pytest.mark.parametrize("name", MIXING)
def test_mixed_positions_follow_the_true_diagonal(name):
    case = MIXING[name]
    with precision("float64"):
        data = make_data(case, I, T, (), "float64")
        with pytest.warns(UserWarning, match="POSITION_MIXING"):
            learner = learn(case, data)
        expected = formula(case, data)
        assert_close(sequence_gradient(case, learner, data), expected)
        assert relative_error(expected["w"], gradient(case, data, None)["w"]) > 0.03


@pytest.mark.parametrize("name", ["softmax", "plain dense in memory"])
@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
def test_mixing_is_exact_for_an_algorithm_that_keeps_everything(name):
    case = MIXING[name]
    with precision("float64"):
        data = make_data(case, I, T, (), "float64")
        learner = learn(case, data, "rtrl", on_mixing="exact")
        assert_close(sequence_gradient(case, learner, data), gradient(case, data, None))


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
def test_mixed_positions_do_not_mix_samples(vmap):
    case = MIXING["LayerNorm"]
    with precision("float64"):
        data = make_data(case, I, T, (2,), "float64")
        samples = [formula(case, Data(data.xs[:, b], data.ys[:, b], ())) for b in range(2)]
        expected = {"w": (samples[0]["w"] + samples[1]["w"]) / 2}
        assert_close(sequence_gradient(case, learn(case, data, vmap=vmap), data), expected)


@pytest.mark.parametrize("name", ["hard reset", "marked decay and gain"])
def test_central_differences(name):
    """Models that nothing is cut from: numbers without any automatic differentiation."""
    case, step = CASES[name], 1e-5
    with precision("float64"):
        data = make_data(case, I, T, (2,), "float64")
        loss = jax.jit(lambda params: sequence_loss(case, View(), params, data))
        expected = {}
        for name, value in case.params.items():
            expected[name] = np.zeros_like(value)
            for index in np.ndindex(value.shape):
                up, down = value.copy(), value.copy()
                up[index] += step
                down[index] -= step
                difference = loss({**case.params, name: up}) - loss({**case.params, name: down})
                expected[name][index] = difference / (2 * step)
        found = sequence_gradient(case, learn(case, data), data)
        assert max(relative_error(found[k], expected[k]) for k in expected) < 1e-8
