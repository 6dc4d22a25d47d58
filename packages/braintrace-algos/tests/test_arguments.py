"""Learners of models that take pytrees, keywords and static values."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, LearnerTypeError, MultiStepData, compile
from braintrace_primitives import matmul

B, I, H, T = 2, 3, 4, 5


class Choosing(brainstate.nn.Module):
    """A leaky layer; `training` and `how` decide what is computed, `mask` is data."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(0.3 * jnp.ones((I, H)) * jnp.arange(1.0, 1 + H))

    def init_state(self, batch_size=None):
        self.v = brainstate.HiddenState(jnp.zeros((H,) if batch_size is None else (batch_size, H)))

    def update(self, inputs, how="plain", *, training, mask=None):
        y = matmul(inputs["x"], self.w.value)
        y = y if mask is None else y * mask
        self.v.value = 0.8 * self.v.value + (jnp.tanh(y) if how == "tanh" else y)
        return {"v": self.v.value, "none": None} if training else self.v.value


def data(*lead):
    rng = np.random.default_rng(0)
    return {"x": jnp.asarray(rng.normal(size=(*lead, I)), jnp.float32)}, jnp.asarray(
        rng.integers(0, 2, size=(*lead, H)), jnp.float32
    )


def learner_of(algorithm=D_RTRL, how="tanh", training=True, **options):
    xs, masks = data(B)
    kwargs = {"training": training, "mask": masks}
    return compile(Choosing(), algorithm, xs, how, batch_size=B, kwargs=kwargs, **options)


@pytest.mark.parametrize("options", [{}, {"vmap": True}, {"vjp_method": "multi-step", "window": 2}])
def test_gradients_through_keywords_and_static_values(options, distance):
    xs, masks = data(T, B)

    def loss(learner):
        return lambda x, m: (learner(x, "tanh", training=True, mask=m)["v"] ** 2).sum()

    found, expected = (
        learner.etrace_grad(xs, masks, step_fn=loss(learner)) for learner in (learner_of(**options), learner_of("bptt"))
    )
    assert distance(found, expected) < 1e-5


def test_windows_take_static_values_as_they_are(distance):
    xs, masks = data(T, B)
    learner = learner_of()
    one_by_one = [learner({"x": x}, "tanh", training=True, mask=m) for x, m in zip(xs["x"], masks, strict=True)]
    learner.reset_state()
    window = learner(MultiStepData(xs), "tanh", training=True, mask=MultiStepData(masks))
    assert distance(window["v"], jnp.stack([out["v"] for out in one_by_one])) < 1e-6
    with pytest.raises(LearnerTypeError, match="Either all arguments"):
        learner(MultiStepData(xs), "tanh", training=True, mask=masks)


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        (("tanh",), {"training": False}, r"(?s)static argument.*keyword training.*found: +False.*expected: +True"),
        (("plain",), {"training": True}, r"(?s)argument 1.*'plain'.*'tanh'.*compile the model again"),
        ((jnp.ones(()),), {"training": True}, r"(?s)argument 1.*an array or a number.*jnp\.asarray"),
        ((), {"training": True}, "structure"),
    ],
)
def test_other_static_values_are_refused(args, kwargs, told):
    x, mask = data(B)
    learner = learner_of()
    with pytest.raises(LearnerTypeError, match=told):
        learner(x, *args, mask=mask, **kwargs)


def test_a_second_learner_of_the_model_has_other_static_values_and_the_same_parameters():
    x, mask = data(B)
    model = Choosing()
    training, testing = (
        compile(model, D_RTRL, x, batch_size=B, kwargs={"training": flag, "mask": mask}) for flag in (True, False)
    )
    training.param_states["w",].value = jnp.zeros((I, H))
    assert not np.any(testing(x, training=False, mask=mask))
    assert training(x, training=True, mask=mask)["none"] is None


def test_the_functional_face(distance):
    xs, masks = data(T, B)
    face = learner_of().functional()
    params, state = face.init()
    one, after = jax.tree.map(lambda v: v[0], (xs, masks))
    out, _ = face.step(params, state, one, "tanh", training=True, mask=after)
    assert out["v"].shape == (B, H)
    grads, losses, _ = face.fold(params, state, xs, masks, loss=lambda out: (out["v"] ** 2).sum())
    learner = learner_of("bptt")
    step = lambda x, m: (learner(x, "tanh", training=True, mask=m)["v"] ** 2).sum()  # noqa: E731
    assert distance(grads, learner.etrace_grad(xs, masks, step_fn=step)) < 1e-5
    assert losses.shape == (T,)
