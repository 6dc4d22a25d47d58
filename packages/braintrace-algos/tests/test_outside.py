"""What happens to the model's states, and to parameters, outside of the learner's call."""

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

from braintrace_algos import LearnerError, MultiStepData, compile
from braintrace_compiler import CompilationWarning
from braintrace_primitives import matmul

OPTIONS = {
    "single-step": {},
    "windows of 1": {"vjp_method": "multi-step"},
    "windows of 3": {"vjp_method": "multi-step", "window": 3},
}


def gradient(learner, xs, step_fn, **options):
    learner.reset_state()
    return learner.etrace_grad(xs, step_fn=step_fn, reduction="sum", **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_loss_of_previous_and_new_states_meets_the_traces(model, data, distance, options, mapped):
    """A penalty on how fast states move: what it reads before the step came from the weights, too."""
    xs, _ = data

    def learner_and_loss(algorithm, **options):
        learner = compile(model, algorithm, xs[0], batch_size=xs.shape[1], vmap=mapped, **options)

        def step(x):
            before = model.v.value * model.g.value
            out = learner(x)
            return ((model.v.value * model.g.value - before) ** 2).sum() + (out**2).sum()

        return learner, step

    learner, step = learner_and_loss("bptt")
    expected = gradient(learner, xs, step)
    learner, step = learner_and_loss("d_rtrl", **options)
    for fold in (1, 4):
        assert distance(gradient(learner, xs, step, fold=fold), expected) < 1e-5
    detached = gradient(learner, xs, lambda x: (learner(x) ** 2).sum())
    assert distance(detached, expected) > 1e-2


class Vanilla(brainstate.nn.Module):
    """A recurrence without memory of its own, so that strict traces need not follow its state."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((9, 5)))

    def init_state(self, batch_size=None):
        self.v = brainstate.HiddenState(jnp.zeros(5))

    def update(self, x):
        self.v.value = jnp.tanh(matmul(jnp.concatenate([x, self.v.value]), self.w.value))
        return self.v.value


def test_a_previous_state_that_no_trace_follows_is_refused(model, data):
    x = data[0][:, 0]
    for subject, algorithm in ((Vanilla(), "d_rtrl"), (model, "eprop"), (model, "ottt")):
        options = {"decay": 0.9} if algorithm == "ottt" else {}
        learner = compile(subject, algorithm, x[0], **options)
        before = learner.running_index.value
        with pytest.raises(LearnerError, match=r"previous value of a hidden state.*\n.*\n  found:    v"):
            learner.etrace_grad(x, step_fn=lambda x, m=subject, f=learner: (m.v.value * f(x).sum()).sum())
        assert learner.running_index.value == before
        detached = lambda x, m=subject, f=learner: (jax.lax.stop_gradient(m.v.value) * f(x).sum()).sum()  # noqa: E731
        learner.etrace_grad(x, step_fn=detached)


def test_a_way_around_the_model_is_refused(recurrent_model, data):
    """An input made of hidden states, or states that are written: traces know of neither."""
    model, x = recurrent_model, data[0][:, 0]

    def closed_loop(learner, x):
        return (learner(x + model.v.value[:4]) ** 2).sum()

    def written_before(learner, x):
        model.v.value = jnp.where(x[0] > 0, 0.0, model.v.value)
        return (learner(x) ** 2).sum()

    def written_behind(learner, x):
        out = learner(x)
        model.v.value = jnp.where(x[0] > 0, 0.0, model.v.value)
        return (out**2).sum()

    cases = {closed_loop: "computed from hidden states", written_before: "is written", written_behind: "is written"}
    for algorithm, options in (("d_rtrl", {}), ("d_rtrl", OPTIONS["windows of 3"]), ("rtrl", {}), ("snap", {})):
        learner = compile(model, algorithm, x[0], **options)
        for step, message in cases.items():
            with pytest.raises(LearnerError, match=message):
                learner.etrace_grad(x, step_fn=lambda x, f=step, of=learner: f(of, x))
    whole = compile(model, "bptt", x[0])  # nothing is carried, and all of the window is differentiated
    for step in cases:
        whole.etrace_grad(x, step_fn=lambda x, f=step: f(whole, x))


def test_a_way_around_windows_is_refused(model, data):
    x = data[0][:, 0]
    learner = compile(model, "d_rtrl", x[0])

    def written(x):
        model.v.value = 2 * model.v.value
        return (learner(MultiStepData(x)) ** 2).sum(-1)

    steps = {
        "read hidden states": lambda x: (learner(MultiStepData(x)) ** 2).sum(-1) + model.v.value.sum(),
        "is written": written,
    }
    learner.etrace_grad(x, step_fn=steps["read hidden states"], chunk_size=3)  # reads what the window leaves
    steps["read hidden states"] = lambda x: model.v.value.sum() + (learner(MultiStepData(x)) ** 2).sum(-1)
    for message, step in steps.items():
        with pytest.raises(LearnerError, match=message):
            learner.etrace_grad(x, step_fn=step, chunk_size=3)


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, brainstate.transform.jit])
def test_a_transformed_step_function_is_refused(model, data, transform):
    x = data[0][:, 0]
    learner = compile(model, "d_rtrl", x[0])
    with pytest.raises(LearnerError, match="inside of a JAX transformation"):
        learner.etrace_grad(x, step_fn=transform(lambda x: (learner(x) ** 2).sum()))


@pytest.mark.parametrize("method", ["etrace_grad", "etrace_train"])
def test_parameters_that_nobody_learns_are_named(model, data, method):
    x = data[0][:, 0]
    learner, readout = compile(model, "d_rtrl", x[0]), brainstate.ParamState(jnp.ones((2, 3)))
    options = {"optimizer": optax.sgd(0.1)} if method == "etrace_train" else {}
    with pytest.warns(CompilationWarning, match=r"1 parameters .*\(f32\[2,3\]\)") as told:
        getattr(learner, method)(x, step_fn=lambda x: ((learner(x) @ readout.value) ** 2).sum(), **options)
    assert told[0].filename == __file__
    fixed = lambda x: ((learner(x) @ jax.lax.stop_gradient(readout.value)) ** 2).sum()  # noqa: E731
    getattr(learner, method)(x, step_fn=fixed, **options)


def test_states_that_are_made_anew_are_noticed_and_put_back(recurrent_model, data, distance):
    model, x = recurrent_model, data[0][:, 0]
    learner = compile(model, "d_rtrl", x[0])

    def total():
        return learner.etrace_grad(x, step_fn=lambda x: (learner(x) ** 2).sum())

    expected, state = total(), model.v
    brainstate.nn.init_all_states(model)
    gradient_of_call = brainstate.transform.jit(lambda: brainstate.transform.grad(learner)(x[0]))
    for run in (total, lambda: learner(x[0]), lambda: learner.etrace_evolve(x), gradient_of_call):
        with pytest.raises(LearnerError, match="another object"):
            run()
    learner.reset_state()
    assert model.v is state
    assert distance(total(), expected) < 1e-7


def test_hidden_states_that_are_written_between_calls_leave_traces_behind(recurrent_model, data):
    model, x = recurrent_model, data[0][:, 0]
    learner = compile(model, "d_rtrl", x[0])
    options = {"step_fn": lambda x: (learner(x) ** 2).sum()}
    model.v.value = model.v.value + 1  # another beginning, and nothing of the past
    step = brainstate.transform.jit(lambda x: learner(x))
    runs = (
        lambda: learner(x[0]),
        lambda: learner.etrace_grad(x, **options),
        lambda: learner.etrace_train(x, optimizer=optax.sgd(0.1), **options),
        lambda: learner.etrace_evolve(x),
    )
    for run in runs:
        run()
        step(x[0])  # writes both, out of sight
        run()
        model.v.value = jnp.zeros_like(model.v.value)
        with pytest.warns(CompilationWarning, match="and its traces were not") as told:
            learner(x[0])
        assert told[0].filename == __file__
        run()
        learner.reset_state()
        model.v.value = model.v.value + 1
