import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, LearnerError, LearnerTypeError, compile


@pytest.fixture
def learner(recurrent_model, data):
    return compile(recurrent_model, D_RTRL, data[0][0], batch_size=data[0].shape[1])


def test_steps_under_scan_and_grad_are_the_learner_s(learner, data, loss, distance):
    face = learner.functional()
    params, state = face.init()

    def step(carry, xy):
        state, total = carry
        x, y = xy

        def objective(params):
            out, new = face.step(params, state, x)
            return loss(out, y), new

        grads, new = jax.grad(objective, has_aux=True)(params)
        return (new, jax.tree.map(jnp.add, total, grads)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    (state, grads), _ = jax.jit(lambda state: jax.lax.scan(step, (state, zeros), data))(state)
    untouched = [s.value for s in learner.hidden_states.values()]
    expected = learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    assert distance(grads, expected) < 1e-5
    assert distance(state["learner.etraces"], learner.etraces.value) < 1e-5
    np.testing.assert_allclose(state["model.v"], learner.model.v.value, rtol=1e-5)
    assert int(state["learner.running_index"]) == len(data[0])
    assert all(float(jnp.abs(value).max()) == 0 for value in untouched)


def test_the_fold_is_etrace_grad(learner, data, loss, distance):
    face = learner.functional()
    params, state = face.init()
    mask = jnp.arange(len(data[0])) != 2
    grads, losses, state = jax.jit(lambda *args: face.fold(*args, loss=loss, mask=mask, fold=3))(params, state, *data)
    expected, values = learner.etrace_grad(
        *data, step_fn=lambda x, y: loss(learner(x), y), mask=mask, return_value=True
    )
    assert distance(grads, expected) < 1e-5
    np.testing.assert_allclose(losses, values, rtol=1e-5)
    assert distance(state["learner.etraces"], learner.etraces.value) < 1e-5
    with pytest.raises(LearnerError, match="reduction"):
        face.fold(params, state, *data, loss=loss, reduction="max")
    with pytest.raises(LearnerError, match=r"nothing for .*learner\.etraces"):
        face.step(params, {}, data[0][0])


def test_samples_are_mapped_by_plain_vmap(recurrent_model, data, loss, distance):
    xs, ys = data
    batched = compile(recurrent_model, D_RTRL, xs[0], batch_size=xs.shape[1])
    expected = batched.etrace_grad(xs, ys, step_fn=lambda x, y: loss(batched(x), y), reduction="sum")
    face = compile(recurrent_model, D_RTRL, xs[0, 0]).functional()
    params, state = face.init()

    def one(x, y):
        return face.fold(params, state, x, y, loss=loss, reduction="sum")[0]

    grads = jax.vmap(one, in_axes=1)(xs, ys)
    assert distance(jax.tree.map(lambda g: g.mean(0), grads), expected) < 1e-5


def test_random_keys_are_part_of_the_state(data):
    class Noisy(brainstate.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def init_state(self, batch_size=None):
            pass

        def update(self, x):
            return self.model(x) + brainstate.random.normal(size=(2,))

    from braintrace_primitives import matmul

    class Leaky(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((4, 2)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros(2))

        def update(self, x):
            self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
            return self.h.value

    face = compile(Noisy(Leaky()), D_RTRL, data[0][0, 0]).functional()
    params, state = face.init()
    before = brainstate.random.DEFAULT.value
    first, after = face.step(params, state, data[0][0, 0])
    again, _ = face.step(params, state, data[0][0, 0])
    np.testing.assert_array_equal(first, again)
    assert not bool(jnp.all(jax.random.key_data(after["random"]) == jax.random.key_data(state["random"])))
    assert bool(jnp.all(jax.random.key_data(before) == jax.random.key_data(brainstate.random.DEFAULT.value)))


def test_what_a_face_starts_from_may_be_donated(learner, data):
    """It was the learner's own, which then had no values."""
    face = learner.functional()
    step = jax.jit(lambda params, state, x: (params, *face.step(params, state, x)), donate_argnums=(0, 1))
    _, first, _ = step(*face.init(), data[0][0])
    _, again, _ = step(*face.init(), data[0][0])
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(learner(data[0][0]), first, rtol=1e-6)


def test_a_loss_that_does_not_fit_is_told(learner, data):
    face = learner.functional()
    with pytest.raises(LearnerTypeError, match=r"(?s)2 inputs.*loss\(output, target\)"):
        face.fold(*face.init(), *data, loss=lambda out: out.sum())
    with pytest.raises(LearnerTypeError, match="str"):
        face.fold(*face.init(), *data, loss="mse")
    face.fold(*face.init(), data[0], loss=lambda out: out.sum())
