"""A learner inside of transformations that cannot follow its states: refused in words, with the states as they were."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import ETraceVmap, LearnerError, MultiStepData, compile

ALGORITHMS = [("d_rtrl", {}), ("pp_prop", {"decay_or_rank": 0.9}), ("rtrl", {}), ("bptt", {}), ("uoro", {})]


def leaves(learner):
    return [np.asarray(leaf) for s in learner.states().values() for leaf in jax.tree.leaves(s.value)]


def under_scan(function):
    return lambda x: jax.lax.scan(lambda c, _: (c, function(x)), 0.0, None, 2)


def under_grad(function):
    return jax.grad(lambda x: jax.tree.leaves(function(x))[0].sum())


@pytest.mark.parametrize(("algorithm", "options"), ALGORITHMS)
@pytest.mark.parametrize("transform", [under_grad, jax.jit, under_scan])
def test_transformations_of_jax_are_refused_and_change_no_state(transform, algorithm, options, model, data, loss):
    xs, ys = data[0][:2], data[1][:2]
    learner = compile(model, algorithm, xs[0], batch_size=xs.shape[1], **options)
    learner(xs[0])
    before = leaves(learner)
    for function, inputs in (
        (learner, xs[0]),
        (lambda xs: learner(MultiStepData(xs)), xs),
        (lambda xs: learner.etrace_evolve(xs, return_outputs=True), xs),
        (lambda xs: learner.etrace_evolve(xs, step_fn=learner, return_outputs=True), xs),
        (lambda xs: learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y)), xs),
    ):
        with pytest.raises(LearnerError, match=r"(?s)brainstate\.transform\.grad.*learner\.functional\(\)"):
            transform(function)(inputs)
        for then, now in zip(before, leaves(learner), strict=True):
            np.testing.assert_array_equal(then, now)
    learner(xs[0])


def test_what_the_refusal_names_differentiates_by_an_input(model, data):
    x = data[0][0]
    learner = compile(model, "d_rtrl", x, batch_size=len(x))
    face = learner.functional()
    params, state = face.init()
    expected = jax.grad(lambda x: face.step(params, state, x)[0].sum())(x)
    found = brainstate.transform.grad(lambda x: learner(x).sum())(x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert float(jnp.abs(found).min()) > 0


@pytest.mark.parametrize(("algorithm", "options"), ALGORITHMS)
@pytest.mark.parametrize("vmap", [jax.vmap, brainstate.transform.vmap, brainstate.transform.vmap2])
def test_a_mapped_call_is_told_of_mapped_learners(vmap, algorithm, options, model, data, loss):
    """By `brainstate.transform.vmap2` the states got a batch axis on the way."""
    xs, ys = data
    learner = compile(model, algorithm, xs[0, 0], **options)
    before = leaves(learner)
    for function in (learner, lambda x: learner(x).sum()):
        with pytest.raises(LearnerError, match="ETraceVmap"):
            vmap(function)(xs[0])
    with pytest.raises(LearnerError, match="ETraceVmap"):
        vmap(lambda xs, ys: learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y)))(
            jnp.swapaxes(xs, 0, 1), jnp.swapaxes(ys, 0, 1)
        )
    for then, now in zip(before, leaves(learner), strict=True):
        np.testing.assert_array_equal(then, now)
    assert ETraceVmap(learner, xs.shape[1])(xs[0]).shape == ys[0].shape


def test_states_that_are_mapped_too_are_left_to_who_maps_them(model, data):
    x = data[0][0]
    learner = compile(model, "d_rtrl", x[0])
    expected = ETraceVmap(compile(type(model)(), "d_rtrl", x[0]), len(x))(x)
    moving = [*learner.hidden_states.values(), learner.etraces]
    for state in moving:
        state.value = jax.tree.map(lambda v: jnp.broadcast_to(v, (len(x), *v.shape)), state.value)
    mapped = brainstate.transform.vmap(learner, in_states={0: moving}, out_states={0: moving})
    np.testing.assert_allclose(mapped(x), expected, rtol=1e-6)
