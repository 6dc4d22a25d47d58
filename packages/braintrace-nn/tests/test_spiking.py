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


@pytest.mark.parametrize("batch", [(), (2,)])
def test_refractory_neurons_are_silent_but_integrate(batch):
    layer = nn.LIFCell(I, O, tau_ref=3.2 * u.ms, w_init=normal(I + O, O))
    layer.init_state(*batch)
    W, xs = normal(I + O, O), 2 * normal(20, *batch, I)
    I_, V, s, wait = (np.zeros((*batch, O)) for _ in range(4))
    ys = run(layer, xs)
    for x, y in zip(xs, ys, strict=True):
        I_ = k(5) * I_ + np.concatenate([x, s], -1) @ W
        V = k(10) * (V - s) + I_
        wait = np.where(s > 0, 3, np.maximum(wait - 1, 0))
        s = (V > 1) & (wait == 0)
        np.testing.assert_array_equal(y, s)
    intervals = [np.diff(np.flatnonzero(unit)) for unit in ys.reshape(len(ys), -1).T]
    assert min(found.min() for found in intervals if found.size) == 4
    layer.reset_state(*batch)
    np.testing.assert_array_equal(layer.silent.value, np.zeros((*batch, O)))
    np.testing.assert_array_equal(run(layer, xs), ys)


def test_refractory_networks_of_conductances_fire_less():
    rates = {}
    for tau_ref in (None, 0.0 * u.ms, 5.0 * u.ms):
        layer = nn.COBACell(1, 2, 1, w_init=2.0, w_inh_init=0.0, tau_ref=tau_ref)
        layer.init_state()
        rates[str(tau_ref)] = run(layer, np.ones((40, 1), "float32")).mean()
    none, zero, five = rates.values()
    assert none == zero > 2 * five > 0


def test_delay_lines():
    steps = np.array([0, 1, 4])
    line = nn.Delay(3, steps * u.ms)
    xs = normal(9, 2, 3)
    with brainstate.environ.context(dt=MS):
        line.init_state(2)
    ys = run(line, xs)
    for unit, n in enumerate(steps):
        np.testing.assert_array_equal(ys[n:, :, unit], xs[: 9 - n, :, unit])
        np.testing.assert_array_equal(ys[:n, :, unit], 0)
    assert len(line.states(brainstate.HiddenState)) == 4
    plain = nn.Delay(3, 0.0)
    with brainstate.environ.context(dt=1.0):
        plain.init_state()
    np.testing.assert_array_equal(run(plain, xs[:, 0], 1.0), xs[:, 0])


def test_own_spikes_come_back_after_the_delay():
    layer = nn.LIFCell(1, 1, synapse=nn.Delta(), tau=1e9 * u.ms, delay=3.0 * u.ms, w_init=np.array([[1.0], [0.75]]))
    first = np.zeros((8, 1), "float32")
    first[0] = 1.5
    with brainstate.environ.context(dt=MS):
        brainstate.nn.init_all_states(layer)
        V = [brainstate.transform.jit(lambda x: (layer(x), layer.V.value)[1])(x).item() for x in first]
    np.testing.assert_allclose(V, [1.5, 0.5, 0.5, 1.25, 0.25, 0.25, 1.0, 1.0], rtol=1e-5)


def test_delays_that_cannot_be():
    with pytest.raises(nn.ConfigurationError, match="no delay"):
        nn.LIFCell(2, 3, recurrent=False, delay=2.0 * u.ms)
    with pytest.raises(nn.ConfigurationError, match="broadcasts"):
        nn.Delay(3, np.ones(2) * u.ms)
    line = nn.Delay(3, 2.0 * u.ms)
    with pytest.raises(nn.ConfigurationError, match="time step"):
        line.init_state()
    with brainstate.environ.context(dt=MS):
        line.init_state()
        with pytest.raises(nn.ConfigurationError, match="before they can be known"):
            nn.LIFCell(2, 3, delay=0.0 * u.ms).init_state()
    with brainstate.environ.context(dt=0.5 * MS), pytest.raises(nn.ConfigurationError, match="2 steps where 4"):
        line(jnp.ones(3))


SPIKING = {
    nn.LIFCell: ("I", "V"),
    nn.ALIFCell: ("I", "V", "a"),
    nn.GIFCell: ("I", "V", "A1", "A2"),
    nn.COBACell: ("g_E", "g_I", "V"),
    nn.Synapse: ("I",),
    nn.ShortTermPlasticity: ("u", "x"),
    nn.Delay: ("d1", "d2"),
}


def test_no_spiking_layer_is_missing():
    """What follows runs over `SPIKING`: a public layer that is not there is tested by none."""
    layers = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.StatefulLayer)]
    ours = {kind for kind in layers if kind.__module__.startswith("braintrace_nn._spiking")}
    assert ours - {nn.SpikingCell} == set(SPIKING)


@pytest.mark.parametrize("kind", SPIKING)
@pytest.mark.parametrize("precision", ["bf16", 32, 64])
def test_shapes_types_reset_and_repr(kind, precision):
    arguments = {nn.COBACell: (4, 2, 1), nn.ShortTermPlasticity: (3,), nn.Delay: (3, 2.0 * u.ms)}.get(kind, (4, 3))
    with jax.enable_x64(precision == 64), brainstate.environ.context(precision=precision, dt=MS):
        dtype = jnp.dtype(brainstate.environ.dftype())
        layer = kind(*arguments, name="spiking")
        for lead in ((), (2,)):
            layer.init_state(*lead)
            states = layer.states(brainstate.HiddenState)
            start = {path: np.asarray(state.value) for path, state in states.items()}
            y = brainstate.transform.jit(layer)(jnp.ones((*lead, *layer.in_size)))
            assert (y.shape, y.dtype) == ((*lead, *layer.out_size), dtype)
            assert {path[-1] for path in states} == set(SPIKING[kind])
            assert {(state.value.shape, state.value.dtype) for state in states.values()} == {((*lead, 3), dtype)}
            assert any((state.value != start[path]).any() for path, state in states.items())
            layer.reset_state(*lead)
            for path, state in states.items():
                np.testing.assert_array_equal(state.value, start[path])
    text = repr(layer)
    assert str(layer.in_size) in text
    assert "spiking" in text


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
