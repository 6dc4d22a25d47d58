import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

from braintrace_algos import FixedRandomFeedback, GradExpon, KappaFilter, LearnerError, LearnerTypeError


def test_a_leaky_sum_of_gradients_and_its_reset():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(4, 3)).astype(np.float32)
    smooth = GradExpon({"w": jnp.zeros(3)}, 0.8)
    expected = np.zeros(3)
    for g in steps:
        expected = 0.8 * expected + g
        out = brainstate.transform.jit(smooth)({"w": jnp.asarray(g)})
    np.testing.assert_allclose(out["w"], expected, rtol=1e-5)
    smooth.reset_state()
    assert smooth.gradients.value["w"].tolist() == [0, 0, 0]


def test_a_time_constant_is_taken_at_the_time_step():
    with brainstate.environ.context(dt=0.5 * u.ms):
        assert GradExpon(jnp.zeros(1), 10 * u.ms).decay == pytest.approx(np.exp(-0.05))
        with pytest.raises(LearnerError, match="positive"):
            GradExpon(jnp.zeros(1), -1 * u.ms)
        with pytest.raises(LearnerTypeError, match="unit"):
            GradExpon(jnp.zeros(1), 1 * u.mV)


def test_a_kappa_filter_has_unit_gain():
    constant = KappaFilter(jnp.zeros(2), 0.6)
    for _ in range(60):
        out = constant.update(jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(out, [1.0, -2.0], rtol=1e-5)
    assert KappaFilter(jnp.zeros(1), 0.0).update(jnp.array([5.0])).tolist() == [5.0]
    constant.reset_state()
    assert constant.value.tolist() == [0, 0]


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_decays_outside_of_the_unit_interval_are_refused(value):
    with pytest.raises(LearnerError, match="kappa"):
        KappaFilter(jnp.zeros(1), value)
    with pytest.raises(LearnerError, match="decay"):
        GradExpon(jnp.zeros(1), value)


def test_a_decay_is_a_number():
    with pytest.raises(LearnerError, match="kappa"):
        KappaFilter(jnp.zeros(1), "0.9")


def test_feedback_is_fixed_and_linear():
    feedback = FixedRandomFeedback(3, 50, jax.random.key(1), init_scale=2.0)
    y = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(feedback.project(y), np.asarray(y) @ np.asarray(feedback.B), rtol=1e-5)
    assert 1.5 < float(feedback.B.std()) < 2.5
    with pytest.raises(LearnerError, match="readout units"):
        feedback.project(jnp.ones((2, 4)))
