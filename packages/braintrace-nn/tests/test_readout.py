"""Leaky readouts against their equations, loop by loop."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn
from braintrace_primitives import etp_mm_p, etp_mv_p

DT, K = 1.0 * u.ms, np.exp(-1 / 5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def run(layer, xs):
    with brainstate.environ.context(dt=DT):
        return np.asarray(brainstate.transform.for_loop(layer, jnp.asarray(xs)))


@pytest.mark.parametrize("batch", [None, 2])
def test_rates_leak(batch):
    layer = nn.LeakyRateReadout(4, 3, r_init=0.5)
    layer.init_state(batch)
    lead = () if batch is None else (batch,)
    xs, weight = normal(6, *lead, 4), np.asarray(layer.W.value)
    r = np.full((*lead, 3), 0.5)
    for x, y in zip(xs, run(layer, xs), strict=True):
        r = K * r + x @ weight
        np.testing.assert_allclose(y, r, rtol=1e-5, atol=1e-6)
    assert layer.states().keys() == {("W",), ("r",)}


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_spikes_reset(batch, reset):
    layer = nn.LeakySpikeReadout(4, 3, w_init=normal(4, 3), spk_reset=reset, V_th=0.8)
    layer.init_state(batch)
    lead = () if batch is None else (batch,)
    xs, V = normal(12, *lead, 4, seed=1), np.zeros((*lead, 3))
    ys = run(layer, xs)
    for x, y in zip(xs, ys, strict=True):
        s = V > 0.8
        V = K * np.where(s, V - 0.8 if reset == "soft" else 0.0, V) + x @ normal(4, 3)
        np.testing.assert_array_equal(y, V > 0.8)
    np.testing.assert_allclose(layer.V.value, V, rtol=1e-4, atol=1e-5)
    assert 0 < ys.mean() < 1


def test_soft_and_hard_resets_differ():
    voltages = []
    for reset in ("soft", "hard"):
        layer = nn.LeakySpikeReadout(1, 1, w_init=1.5, spk_reset=reset)
        layer.init_state()
        run(layer, np.ones((3, 1), "float32"))
        voltages.append(float(layer.V.value[0]))
    assert voltages[0] > voltages[1] + 0.1


@pytest.mark.parametrize("kind", [nn.LeakyRateReadout, nn.LeakySpikeReadout])
def test_one_marked_product_per_step(kind):
    for batch, mark in ((None, etp_mv_p), (2, etp_mm_p)):
        layer = kind(4, 3)
        layer.init_state(batch)
        x = jnp.ones(4) if batch is None else jnp.ones((2, 4))
        with brainstate.environ.context(dt=DT):
            eqns = brainstate.transform.make_jaxpr(layer)(x)[0].jaxpr.eqns
        assert [eqn.primitive for eqn in eqns].count(mark) == 1


def test_physical_units():
    init = brainstate.nn.init
    layer = nn.LeakySpikeReadout(
        2, 1, V_th=1.0 * u.mV, w_init=0.4 * u.mV, V_init=init.ZeroInit(unit=u.mV), tau=10.0 * u.ms
    )
    layer.init_state()
    with brainstate.environ.context(dt=0.001 * u.second):
        spikes = [float(layer(jnp.ones(2))[0]) for _ in range(3)]
    assert spikes == [0.0, 1.0, 1.0]
    V = 0.8 * (np.exp(-0.2) + np.exp(-0.1) + 1) - np.exp(-0.1)
    np.testing.assert_allclose(layer.V.value.to_decimal(u.mV), [V], rtol=1e-5)


def test_plain_time_constants():
    layer = nn.LeakyRateReadout(2, 1, tau=2.0, w_init=1.0)
    layer.init_state()
    with brainstate.environ.context(dt=1.0):
        layer(jnp.ones(2))
        np.testing.assert_allclose(layer(jnp.zeros(2)), [2 * np.exp(-0.5)], rtol=1e-6)


def test_time_constants_per_output():
    layer = nn.LeakyRateReadout(2, 2, tau=np.array([1.0, 4.0]) * u.ms, w_init=1.0)
    layer.init_state()
    with brainstate.environ.context(dt=DT):
        layer(jnp.ones(2))
        np.testing.assert_allclose(layer(jnp.zeros(2)), 2 * np.exp(-1 / np.array([1.0, 4.0])), rtol=1e-6)


@pytest.mark.parametrize("kind", [nn.LeakyRateReadout, nn.LeakySpikeReadout])
def test_half_precision_is_kept(kind):
    with brainstate.environ.context(precision="bf16", dt=DT):
        layer = kind(4, 3)
        layer.init_state(2)
        assert layer(jnp.ones((2, 4))).dtype == jnp.bfloat16
        (state,) = layer.states(brainstate.HiddenState).values()
        assert state.value.dtype == jnp.bfloat16


@pytest.mark.parametrize("dt", [None, 1.0, 1.0 * u.mV])
@pytest.mark.parametrize("kind", [nn.LeakyRateReadout, nn.LeakySpikeReadout])
def test_time_steps_that_do_not_fit(kind, dt):
    layer = kind(4, 3)
    layer.init_state()
    settings = {} if dt is None else {"dt": dt}
    with brainstate.environ.context(**settings), pytest.raises(nn.ConfigurationError, match="time step"):
        layer(jnp.ones(4))


def test_errors_leave_the_state_alone():
    layer = nn.LeakyRateReadout(4, 3, r_init=0.5)
    with pytest.raises(nn.MissingStateError):
        layer(jnp.ones(4))
    layer.init_state(2)
    for x in (jnp.ones((2, 5)), jnp.ones((3, 4)), jnp.ones(4)):
        with pytest.raises(nn.InputShapeError):
            layer(x)
    with pytest.raises(nn.InputTypeError):
        layer(jnp.ones((2, 4), "int32"))
    np.testing.assert_array_equal(layer.r.value, np.full((2, 3), 0.5))
    with pytest.raises(nn.ConfigurationError, match="reset"):
        nn.LeakySpikeReadout(4, 3, spk_reset="gentle")


def test_reset():
    layer = nn.LeakyRateReadout(4, 3)
    layer.init_state(2)
    run(layer, normal(2, 2, 4))
    layer.reset_state(5)
    np.testing.assert_array_equal(layer.r.value, np.zeros((5, 3)))


def test_surrogate_gradient():
    v = jnp.array([-2.0, -0.5, 0.0, 0.25, 1.0])
    np.testing.assert_array_equal(nn.triangular_spike(v), [0, 0, 0, 1, 1])
    want = [0, 0.15, 0.3, 0.225, 0]
    np.testing.assert_allclose(jax.vmap(jax.grad(nn.triangular_spike))(v), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(nn.triangular_spike, (v,), (jnp.ones(5),))[1], want, rtol=1e-6)


@pytest.mark.parametrize(("tau", "step"), [(20.0, r"dt=1\.0\)"), (20.0 * u.ms, r"dt=1\.0 \* saiunit\.ms\)")])
def test_a_missing_time_step_is_told_in_the_dimension_of_the_time_constant(tau, step):
    layer = nn.LeakyRateReadout(3, 2, tau=tau)
    brainstate.nn.init_all_states(layer)
    with pytest.raises(nn.ConfigurationError, match=step):
        layer(jnp.ones(3))
