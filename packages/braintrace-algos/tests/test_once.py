"""Second derivatives through a learner's gradients: refused, for they would leave out what these hold fixed."""

import brainstate
import jax
import jax.numpy as jnp
import pytest

from braintrace_algos import BPTT, D_RTRL, LearnerError, MultiStepData, compile


def sequence(learner, xs, ys, loss):
    return learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y))


def chunks(learner, xs, ys, loss):
    def losses(x, y):
        return jax.vmap(loss)(learner(MultiStepData(x)), y)

    return learner.etrace_grad(xs, ys, step_fn=losses, chunk_size=2)


def window(learner, xs, ys, loss):
    return brainstate.transform.grad(lambda: loss(learner(MultiStepData(xs)), ys), learner.param_states)()


def one_step(learner, xs, ys, loss):
    return brainstate.transform.grad(lambda: loss(learner(xs[0]), ys[0]), learner.param_states)()


def norm(gradients):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("way", [sequence, chunks, window, one_step])
@pytest.mark.parametrize(("algorithm", "options"), [(D_RTRL, {}), (D_RTRL, {"vjp_method": "multi-step"}), (BPTT, {})])
def test_gradients_are_not_differentiated_again(model, data, loss, way, algorithm, options):
    learner = compile(model, algorithm, data[0][0], batch_size=data[0].shape[1], **options)

    def energy():
        return norm(way(learner, *data, loss))

    with pytest.raises(LearnerError, match="cannot be differentiated again"):
        brainstate.transform.grad(energy, learner.param_states)()


def test_pure_functions_refuse_it_too(model, data, loss):
    face = compile(model, D_RTRL, data[0][0], batch_size=data[0].shape[1]).functional()
    params, state = face.init()

    def folded(params):
        return norm(face.fold(params, state, *data, loss=loss)[0])

    def stepped(params):
        return norm(jax.grad(lambda params: loss(face.step(params, state, data[0][0])[0], data[1][0]))(params))

    for energy in (folded, stepped):
        with pytest.raises(LearnerError, match="cannot be differentiated again"):
            jax.grad(energy)(params)
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(energy, (params,), (params,))


@pytest.mark.parametrize("way", [sequence, window, one_step])
def test_gradients_may_be_looked_at_inside_of_another_derivative(model, data, loss, way):
    learner = compile(model, D_RTRL, data[0][0], batch_size=data[0].shape[1])
    scale = brainstate.ParamState(jnp.ones(()))

    def total():
        seen = way(learner, *data, loss)
        return scale.value**2, norm(seen)

    states = {**learner.param_states, ("scale",): scale}
    gradients, seen = brainstate.transform.grad(total, states, has_aux=True)()
    assert float(gradients["scale",]) == 2.0
    assert float(seen) > 0
    stopped = brainstate.transform.grad(lambda: scale.value * jax.lax.stop_gradient(total()[1]), states)()
    assert float(stopped["scale",]) > 0
