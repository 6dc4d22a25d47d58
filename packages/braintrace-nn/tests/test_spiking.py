"""Spiking layers against NumPy transcriptions of their equations, and what they share."""

import functools

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn

I, O, T = 4, 3, 12
MS = 1.0 * u.ms


def k(tau):
    return np.exp(-1 / tau)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(layer, xs, dt=MS):
    with brainstate.environ.context(dt=dt):
        return np.asarray(brainstate.transform.for_loop(layer, jnp.asarray(xs)))


def expon(W, y, m):
    m["I"] = k(5) * m["I"] + y
    return m["I"]


def alpha(W, y, m):
    m["I"], m["h"] = k(5) * (m["I"] + np.e / 5 * m["h"]), k(5) * m["h"] + y
    return m["I"]


def dual(W, y, m):
    m["d"], m["r"] = k(5) * m["d"] + y, k(1) * m["r"] + y
    times = np.linspace(0, 20, 20001)
    return (m["d"] - m["r"]) / (np.exp(-times / 5) - np.exp(-times)).max()


def delta(W, y, m):
    return y


def lif(synapse):
    def step(W, x, m):
        s = m["V"] > 1
        current = synapse(W, np.concatenate([x, s], -1) @ W, m)
        m["V"] = k(10) * (m["V"] - s) + current
        return m["V"] > 1

    return step


def feedforward_hard(W, x, m):
    m["V"] = k(10) * np.where(m["V"] > 1, 0, m["V"]) + expon(W, x @ W, m)
    return m["V"] > 1


def alif(W, x, m):
    s = m["V"] > 1 + m["a"]
    current = expon(W, np.concatenate([x, s], -1) @ W, m)
    m["V"] = k(10) * (m["V"] - s) + current
    m["a"] = k(20) * m["a"] + 0.3 * s
    return m["V"] > 1 + m["a"]


def gif(W, x, m):
    s = m["V"] > 1
    current = expon(W, np.concatenate([x, s], -1) @ W, m)
    m["A1"], m["A2"] = k(10) * m["A1"] - 0.2 * s, k(200) * m["A2"] - 0.05 * s
    m["V"] = k(10) * (m["V"] - s) + current + m["A1"] + m["A2"]
    return m["V"] > 1


CELLS = {
    "exponential": (lambda w: nn.LIFCell(I, O, w_init=w), lif(expon)),
    "alpha": (lambda w: nn.LIFCell(I, O, w_init=w, synapse=nn.Alpha()), lif(alpha)),
    "dual": (lambda w: nn.LIFCell(I, O, w_init=w, synapse=nn.DualExpon()), lif(dual)),
    "delta": (lambda w: nn.LIFCell(I, O, w_init=w, synapse=nn.Delta()), lif(delta)),
    "hard": (lambda w: nn.LIFCell(I, O, w_init=w[:I], recurrent=False, spk_reset="hard"), feedforward_hard),
    "ALIF": (lambda w: nn.ALIFCell(I, O, w_init=w, tau_a=20.0 * u.ms, beta=0.3), alif),
    "GIF": (lambda w: nn.GIFCell(I, O, w_init=w), gif),
}


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("name", CELLS)
def test_cells(name, batch):
    make, step = CELLS[name]
    layer = make(normal(I + O, O, seed=1))
    layer.init_state(*batch)
    xs, weight = normal(T, *batch, I), np.asarray(layer.W.weight.value["weight"])
    states = layer.states(brainstate.HiddenState)
    memory = {path[-1]: np.zeros((*batch, O)) for path in states}
    ys = run(layer, xs)
    for x, y in zip(xs, ys, strict=True):
        np.testing.assert_array_equal(y, step(weight, x, memory))
    assert 0 < ys.mean() < 1
    for path, state in states.items():
        np.testing.assert_allclose(state.value, memory[path[-1]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_conductances(batch):
    layer = nn.COBACell(I, 3, 2)
    layer.init_state(*batch)
    W_E, W_I = abs(np.asarray(layer.W_E.weight.value)), abs(np.asarray(layer.W_I.weight.value))
    xs = abs(normal(T, *batch, I))
    g_E, g_I, V = np.zeros((*batch, 5)), np.zeros((*batch, 5)), np.full((*batch, 5), -60.0)
    ys = run(layer, xs)
    for x, y in zip(xs, ys, strict=True):
        s = V > -50
        g_E = k(5) * g_E + np.concatenate([x, s[..., :3]], -1) @ W_E
        g_I = k(10) * g_I + s[..., 3:] @ W_I
        V, before = np.where(s, -60, V), V
        limit = (-60 - 80 * g_I) / (1 + g_E + g_I)
        V = limit + (V - limit) * np.exp(-(1 + g_E + g_I) / 20)
        assert before.max() < 0
        np.testing.assert_array_equal(y, V > -50)
    np.testing.assert_allclose(layer.V.value, V, rtol=1e-3)
    assert 0 < ys.mean() < 1
    assert g_I.max() > 0


def test_inhibition_inhibits():
    rates = []
    for gain in (0.0, 5.0):
        layer = nn.COBACell(1, 2, 2, w_init=0.5, w_inh_init=gain)
        layer.init_state()
        rates.append(run(layer, np.ones((40, 1), "float32")).mean())
    assert rates[0] > 1.3 * rates[1] > 0


def test_short_term_plasticity():
    layer = nn.ShortTermPlasticity(2, U_init=np.array([0.2, 0.6]), tau_f=30.0 * u.ms, tau_d=80.0 * u.ms)
    layer.init_state(3)
    spikes = (normal(T, 3, 2) > 0).astype("float32")
    release, left, U = np.zeros((3, 2)), np.ones((3, 2)), np.array([0.2, 0.6])
    for s, y in zip(spikes, run(layer, spikes), strict=True):
        release, left = release * k(30), 1 - (1 - left) * k(80)
        release = np.where(s, release + U * (1 - release), release)
        np.testing.assert_allclose(y, release * left * s, rtol=1e-4, atol=1e-6)
        left = left - release * left * s
    np.testing.assert_allclose(layer.x.value, left, rtol=1e-4)


def test_time_courses_after_one_spike():
    impulse = np.zeros((30, 1), "float32")
    impulse[0] = 1
    times = np.arange(30.0)[:, None]
    expected = {
        nn.Expon(): np.exp(-times / 5),
        nn.Alpha(): times / 5 * np.exp(1 - times / 5),
        nn.DualExpon(2.0 * u.ms, 8.0 * u.ms): (np.exp(-times / 8) - np.exp(-times / 2)) / 0.472470,
        nn.Delta(): impulse,
    }
    for kinetics, response in expected.items():
        layer = nn.Synapse(1, 1, kinetics, w_init=1.0)
        layer.init_state()
        np.testing.assert_allclose(run(layer, impulse), response, rtol=1e-4, atol=1e-6)


def test_units():
    mV = u.mV
    options = {"V_th": 10.0 * mV, "w_init": 4.0 * mV, "V_init": brainstate.nn.init.ZeroInit(unit=mV)}
    plain = {"V_th": 10.0, "w_init": 4.0}
    more = {
        nn.LIFCell: ({}, {}),
        nn.ALIFCell: ({"beta": 1.0 * mV}, {"beta": 1.0}),
        nn.GIFCell: ({"delta_A": (-2.0 * mV, 1.0 * mV)}, {"delta_A": (-2.0, 1.0)}),
    }
    for kind, (with_unit, without) in more.items():
        first, second = kind(2, 1, **options, **with_unit), kind(2, 1, **plain, **without)
        for layer, dt in ((first, 0.001 * u.second), (second, MS)):
            layer.init_state()
            assert run(layer, np.ones((9, 2), "float32"), dt).mean() > 0.1
        np.testing.assert_allclose(first.V.value.to_decimal(mV), second.V.value, rtol=1e-4)
    network = nn.COBACell(
        2, 2, 1, E_L=-60.0 * mV, E_E=0.0 * mV, E_I=-80.0 * mV, V_th=-50.0 * mV, V_reset=-0.06 * u.volt, w_init=0.5
    )
    network.init_state()
    assert run(network, np.ones((9, 2), "float32")).mean() > 0.1
    assert network.V.value.unit == mV


def test_plain_times():
    layer = nn.LIFCell(2, 1, tau=10.0, synapse=nn.Alpha(5.0), w_init=0.3)
    other = nn.LIFCell(2, 1, synapse=nn.Alpha(), w_init=0.3)
    for cell in (layer, other):
        cell.init_state()
    xs = np.ones((9, 2), "float32")
    np.testing.assert_array_equal(run(layer, xs, 1.0), run(other, xs))
    np.testing.assert_allclose(layer.V.value, other.V.value, rtol=1e-6)


@pytest.mark.parametrize("kind", [nn.LIFCell, nn.ALIFCell, nn.GIFCell])
def test_half_precision_and_reset(kind):
    with brainstate.environ.context(precision="bf16", dt=MS):
        layer = kind(2, 3, V_init=0.5)
        layer.init_state(2)
        assert layer(jnp.ones((2, 2))).dtype == jnp.bfloat16
        assert {s.value.dtype for s in layer.states(brainstate.HiddenState).values()} == {jnp.dtype("bfloat16")}
        layer.reset_state(5)
    np.testing.assert_array_equal(layer.V.value, np.full((5, 3), 0.5))
    np.testing.assert_array_equal(layer.I.value, np.zeros((5, 3)))


def test_what_cannot_be_built():
    with pytest.raises(nn.ConfigurationError, match="reset"):
        nn.LIFCell(2, 3, spk_reset="gentle")
    with pytest.raises(nn.ConfigurationError, match="difference"):
        nn.DualExpon(5.0 * u.ms, 5.0 * u.ms)
    layer = nn.LIFCell(2, 3)
    layer.init_state()
    with brainstate.environ.context(dt=1.0), pytest.raises(nn.ConfigurationError, match="time step"):
        layer(jnp.ones(2))


SURROGATES = {
    nn.sigmoid_spike: lambda v, a=4.0: a * np.exp(-a * v) / (1 + np.exp(-a * v)) ** 2,
    nn.arctan_spike: lambda v, a=2.0: a / 2 / (1 + (np.pi / 2 * a * v) ** 2),
    nn.box_spike: lambda v, a=1.0: (abs(v) < a / 2) / a,
}


@pytest.mark.parametrize("spike", SURROGATES)
def test_surrogate_gradients(spike):
    v = jnp.array([-2.0, -0.5, -0.2, 0.0, 0.25, 1.0])
    np.testing.assert_array_equal(spike(v), [0, 0, 0, 0, 1, 1])
    for options in ((), (0.7,)):
        derivative = jax.vmap(jax.grad(lambda v, options=options: spike(v, *options)))(v)
        np.testing.assert_allclose(derivative, SURROGATES[spike](np.asarray(v), *options), rtol=1e-5)
    steep = nn.LIFCell(1, 1, spk_fun=functools.partial(spike, **{"width" if spike is nn.box_spike else "alpha": 0.7}))
    steep.init_state()
    with brainstate.environ.context(dt=MS):
        assert steep(jnp.ones(1)).shape == (1,)
