import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, LearnerError, LearnerTypeError, compile


def test_gradients_of_single_calls_add_up_to_bptt_where_the_rule_is_exact(model, data, loss, bptt, distance):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    gradient = brainstate.transform.jit(
        brainstate.transform.grad(lambda x, y: loss(learner(x), y), learner.param_states)
    )
    total = jax.tree.map(jnp.zeros_like, bptt(model, xs, ys))
    for x, y in zip(xs, ys, strict=True):
        total = jax.tree.map(jnp.add, total, gradient(x, y))
    assert distance(total, bptt(model, xs, ys)) < 1e-5


def test_the_strict_rule_leaves_recurrent_mixing_out(recurrent_model, data, loss, bptt, distance):
    xs, ys = data
    learner = compile(recurrent_model, D_RTRL, xs[0], batch_size=xs.shape[1])
    grads = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    assert distance(grads, bptt(recurrent_model, xs, ys)) > 0.05
    assert not all(c.exact for c in learner.graph.certificates())


def test_a_gradient_writes_no_state_of_its_own(model, data, loss):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    learner.etrace_evolve(xs)
    model_states = [s.value for s in learner.hidden_states.values()]
    traces = learner.etraces.value
    gradient = brainstate.transform.grad(lambda x, y: loss(learner(x), y), learner.param_states)
    first = gradient(xs[0], ys[0])
    for state, value in zip(learner.hidden_states.values(), model_states, strict=True):
        state.value = value
    learner.etraces.value = traces
    second = gradient(xs[0], ys[0])
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_running_index_counts_time_steps_and_reset_clears_everything(model, data):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    before = [s.value for s in learner.hidden_states.values()]
    learner(xs[0])
    learner.etrace_evolve(xs)
    assert int(learner.running_index.value) == 1 + len(xs)
    assert any(float(jnp.abs(t).max()) > 0 for t in jax.tree.leaves(learner.etraces.value))
    learner.reset_state()
    assert int(learner.running_index.value) == 0
    assert all(float(jnp.abs(t).max()) == 0 for t in jax.tree.leaves(learner.etraces.value))
    for state, value in zip(learner.hidden_states.values(), before, strict=True):
        np.testing.assert_array_equal(state.value, value)


def test_a_nan_does_not_survive_a_reset(model, data, loss):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    clean = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y))
    learner.reset_state()
    poisoned = learner.etrace_grad(xs.at[2].set(jnp.nan), ys, step_fn=lambda x, y: loss(learner(x), y))
    assert all(bool(jnp.isnan(g).any()) for g in jax.tree.leaves(poisoned))
    learner.reset_state()
    again = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y))
    jax.tree.map(np.testing.assert_array_equal, clean, again)


def test_traces_are_found_by_weight_and_by_path(model, data):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    by_path = learner.get_etrace_of(("gain",))
    by_state = learner.get_etrace_of(model.gain)
    assert list(by_path) == list(by_state) == ["gain#1->g"]
    assert by_path["gain#1->g"]["weight"].shape == (2, *model.g.value.shape)
    with pytest.raises(LearnerError, match="No eligibility trace"):
        learner.get_etrace_of(("out",))


def test_two_learners_of_one_model_share_its_states(model, data):
    xs, _ = data
    first = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    weight = model.w.value
    second = compile(model, "bptt", xs[0], batch_size=xs.shape[1])
    first(xs[0])
    assert model.w.value is weight
    assert list(first.hidden_states.values()) == list(second.hidden_states.values()) == [model.g, model.v]


def test_a_jitted_learner_is_traced_once(model, data, loss):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    traced = []

    def step(x, y):
        traced.append(None)
        return loss(learner(x), y)

    @brainstate.transform.jit
    def sequence(xs, ys):
        learner.reset_state()
        return learner.etrace_grad(xs, ys, step_fn=step)

    first = sequence(xs, ys)
    count = len(traced)
    second = sequence(xs, ys)
    assert len(traced) == count
    jax.tree.map(np.testing.assert_array_equal, first, second)

    single = brainstate.transform.jit(brainstate.transform.grad(step, learner.param_states))
    single(xs[0], ys[0])
    count = len(traced)
    single(xs[1], ys[1])
    assert len(traced) == count


def test_sequences_outside_of_jit_are_compiled_once_for_each_step_function(model, data, loss):
    xs, ys = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    traced = []

    def step(x, y):
        traced.append(None)
        return loss(learner(x), y)

    learner.etrace_grad(xs, ys, step_fn=step)
    count = len(traced)
    learner.etrace_grad(xs, ys, step_fn=step)
    assert len(traced) == count
    learner.etrace_grad(xs[:4], ys[:4], step_fn=step)
    assert len(traced) > count


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x: x[..., :-1], LearnerError, "another shape"),
        (lambda x: x[:-1], LearnerError, "batch size"),
        (lambda x: x[None], LearnerError, "one time step"),
        (lambda x: x.astype(jnp.int32), LearnerTypeError, "astype"),
        (lambda x: {"x": x}, LearnerTypeError, "structure"),
    ],
)
def test_unfit_inputs_are_refused_before_anything_changes(model, data, change, error, words):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    learner(xs[0])
    states = [s.value for s in learner.states().values()]
    with pytest.raises(error, match=words):
        learner(change(xs[0]))
    for now, before in zip(learner.states().values(), states, strict=True):
        jax.tree.map(np.testing.assert_array_equal, now.value, before)


def test_another_batch_size_is_refused_at_reset(model, data):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    learner.reset_state(batch_size=xs.shape[1])
    with pytest.raises(LearnerError, match="batch size of a learner is fixed"):
        learner.reset_state(batch_size=xs.shape[1] + 1)


def test_states_of_another_shape_are_named(model, data):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    compile(model, D_RTRL, xs[0, 0])
    with pytest.raises(LearnerError, match="state g"):
        learner(xs[0])
