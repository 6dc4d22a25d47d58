import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from braintrace_algos import BPTT, D_RTRL, LearnerError, LearnerTypeError, _feedback, _progress, compile
from braintrace_compiler import CompilationWarning
from braintrace_primitives import _rows


@pytest.fixture
def learner(recurrent_model, data):
    return compile(recurrent_model, D_RTRL, data[0][0], batch_size=data[0].shape[1])


@pytest.fixture
def step(learner, loss):
    return lambda x, y: loss(learner(x), y)


@pytest.fixture
def start(learner):
    """Bring parameters and states back, to compare two ways to train."""
    initial = {path: state.value for path, state in learner.param_states.items()}

    def restart():
        learner.reset_state()
        for path, value in initial.items():
            learner.param_states[path].value = value

    return restart


def parameters(learner):
    return {path: state.value for path, state in learner.param_states.items()}


def by_hand(learner, step, data, optimizer, every=1):
    """Online learning as a Python loop around single calls."""
    gradient = brainstate.transform.jit(brainstate.transform.grad(step, learner.param_states, return_value=True))
    memory, losses, T = optimizer.init(parameters(learner)), [], len(data[0])
    for begin in range(0, T, every):
        steps = range(begin, min(begin + every, T))
        share = 1 / len(steps)
        total = jax.tree.map(jnp.zeros_like, parameters(learner))
        for t in steps:
            grads, value = gradient(data[0][t], data[1][t])
            total = jax.tree.map(lambda a, g, share=share: a + share * g, total, grads)
            losses.append(value)
        updates, memory = optimizer.update(total, memory, parameters(learner))
        for path, value in optax.apply_updates(parameters(learner), updates).items():
            learner.param_states[path].value = value
    return jnp.stack(losses)


@pytest.mark.parametrize(("every", "by_rows"), [(1, False), (3, False), (100, False), (1, True)])
def test_training_equals_a_python_loop(learner, step, data, start, distance, every, by_rows, monkeypatch):
    optimizer = optax.adam(1e-2)
    expected_losses = by_hand(learner, step, data, optimizer, every)
    expected, traces = parameters(learner), learner.etraces.value
    start()
    before = parameters(learner)
    if by_rows:
        monkeypatch.setattr(_rows, "_LEAST", 1)
    history = learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=every)
    np.testing.assert_allclose(history.losses, expected_losses, rtol=1e-4)
    assert distance(parameters(learner), expected) < 1e-4
    assert distance(learner.etraces.value, traces) < 1e-4
    assert distance(before, expected) > 1e-3


def test_the_optimiser_is_remembered_from_call_to_call(learner, step, data, start, distance):
    optimizer = optax.adam(1e-2)
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer)
    whole = parameters(learner)
    start()
    learner.init_optimizer(optimizer)
    for part in (slice(0, 3), slice(3, None)):
        learner.etrace_train(data[0][part], data[1][part], step_fn=step, optimizer=optimizer)
    assert distance(parameters(learner), whole) < 1e-5
    count = learner.optimizer_states[0].value[0].count
    assert int(count) == len(data[0])
    start()
    for part in (slice(0, 3), slice(3, None)):
        learner.init_optimizer(optimizer)
        learner.etrace_train(data[0][part], data[1][part], step_fn=step, optimizer=optimizer)
    assert distance(parameters(learner), whole) > 1e-4


def test_training_is_compiled_once(learner, data, loss):
    traced = []

    def step(x, y):
        traced.append(None)
        return loss(learner(x), y)

    optimizer = optax.sgd(0.01)
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=2)
    count = len(traced)
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=2)
    learner.init_optimizer(optimizer)
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=2)
    assert len(traced) == count
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=3)
    assert len(traced) > count


def test_weights_are_transposed_beforehand_where_they_last(learner, data, step, monkeypatch):
    seen, original = [], _feedback.with_way_back
    monkeypatch.setattr(_feedback, "with_way_back", lambda *a: seen.append(None) or original(*a))
    optimizer = optax.sgd(0.01)
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer)
    assert not seen
    learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=2)
    assert seen


def test_an_optimiser_made_anew_in_each_call_is_told_of(learner, data, step):
    def train():
        learner.etrace_train(data[0][:1], data[1][:1], step_fn=step, optimizer=optax.sgd(0.01))

    for _ in range(4):
        train()
    with pytest.warns(CompilationWarning, match="another GradientTransformation") as told:
        train()
    assert told[0].filename == __file__


def test_training_inside_of_jit(learner, step, data, start, distance):
    optimizer = optax.adam(1e-2)

    @brainstate.transform.jit
    def sequence(xs, ys):
        return learner.etrace_train(xs, ys, step_fn=step, optimizer=optimizer).losses

    with pytest.raises(LearnerError, match="init_optimizer"):
        sequence(*data)
    losses = learner.etrace_train(*data, step_fn=step, optimizer=optimizer).losses
    expected = parameters(learner)
    start()
    learner.init_optimizer(optimizer)
    np.testing.assert_allclose(sequence(*data), losses, rtol=1e-5)
    assert distance(parameters(learner), expected) < 1e-5


def test_masked_steps_make_no_update(learner, step, data, start, distance):
    optimizer = optax.adam(1e-2)
    T = len(data[0])
    learner.etrace_train(data[0][:3], data[1][:3], step_fn=step, optimizer=optimizer)
    expected = parameters(learner)
    start()
    learner.init_optimizer(optimizer)
    history = learner.etrace_train(*data, step_fn=step, optimizer=optimizer, mask=jnp.arange(T) < 3)
    assert distance(parameters(learner), expected) < 1e-6
    assert history.losses.shape == (T,)
    assert int(learner.running_index.value) == T


def test_chosen_weights_learn_and_the_others_stay(learner, step, data):
    before = parameters(learner)
    chosen = {("gain",): learner.param_states[("gain",)]}
    learner.etrace_train(*data, step_fn=step, optimizer=optax.sgd(0.1), weights=chosen)
    after = parameters(learner)
    assert float(jnp.abs(after[("gain",)] - before[("gain",)]).max()) > 1e-4
    for path in (("w",), ("out",)):
        jax.tree.map(np.testing.assert_array_equal, after[path], before[path])
    with pytest.raises(LearnerError, match="init_optimizer"):
        learner.etrace_train(*data, step_fn=step, optimizer=optax.adam(0.1))


def test_one_callback_is_no_sequence_of_them(learner, data, loss):
    with pytest.raises(LearnerTypeError, match="callbacks"):
        learner.etrace_train(
            *data,
            step_fn=lambda x, y: loss(learner(x), y),
            optimizer=optax.sgd(0.1),
            callbacks=print,
        )


def test_callbacks_and_aux(learner, data, loss):
    seen = []

    def step(x, y):
        out = learner(x)
        return loss(out, y), out

    history = learner.etrace_train(
        *data,
        step_fn=step,
        optimizer=optax.sgd(0.1),
        update_every=3,
        has_aux=True,
        callbacks=[lambda step, value: seen.append((step, value))],
    )
    assert history.aux.shape == data[1].shape
    assert [step for step, _ in seen] == [3, 6, 7]
    np.testing.assert_allclose([v for _, v in seen][:2], history.losses[:6].reshape(2, 3).mean(1), rtol=1e-5)


@pytest.mark.parametrize("bars", [True, False])
def test_training_reports_progress(learner, data, loss, capsys, monkeypatch, bars):
    """Loss and speed are shown, by tqdm or without, and a second run shows them again without a second compilation."""
    if not bars:
        monkeypatch.setattr(_progress, "tqdm", None)
    elif _progress.tqdm is None:
        pytest.skip("tqdm is not installed")
    traced = []

    def step(x, y):
        traced.append(None)
        return loss(learner(x), y)

    optimizer, counts = optax.sgd(0.1), []
    for _ in range(2):
        learner.etrace_train(*data, step_fn=step, optimizer=optimizer, progress=True)
        jax.effects_barrier()
        shown = capsys.readouterr().err
        assert "100" in shown
        assert "loss" in shown
        assert "step/s" in shown.replace("steps/s", "step/s")
        counts.append(len(traced))
    assert counts[0] == counts[1]
    learner.etrace_evolve(data[0], progress=True)
    jax.effects_barrier()
    shown = capsys.readouterr().err
    assert "100" in shown
    assert "loss" not in shown


def test_truncated_bptt_learns_too(recurrent_model, data, loss):
    learner = compile(recurrent_model, BPTT, data[0][0], batch_size=data[0].shape[1])
    optimizer = optax.adam(1e-2)
    means = []

    def step(x, y):
        return loss(learner(x), y)

    for _ in range(6):
        learner.reset_state()
        history = learner.etrace_train(*data, step_fn=step, optimizer=optimizer, update_every=4)
        means.append(float(history.losses.mean()))
    assert means[-1] < 0.9 * means[0]


class Descent:
    """An optimiser that holds its parameters, as those of braintools do."""

    def __init__(self, rate):
        self.rate, self.opt_state = rate, None

    def register_trainable_weights(self, states):
        self.parameters = states
        self.opt_state = brainstate.LongTermState({path: s.value for path, s in states.items()})
        self.opt_state.value = jax.tree.map(jnp.zeros_like, self.opt_state.value)
        self.count = brainstate.LongTermState(0)

    def update(self, grads):
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, self.opt_state.value, grads)
        self.opt_state.value = momentum
        self.count.value = self.count.value + 1
        for path, state in self.parameters.items():
            state.value = jax.tree.map(lambda p, m: p - self.rate * m, state.value, momentum[path])


def test_an_optimiser_that_holds_its_parameters(learner, step, data, start, distance):
    learner.etrace_train(*data, step_fn=step, optimizer=optax.sgd(0.05, momentum=0.9), update_every=2)
    expected = parameters(learner)
    start()
    learner.init_optimizer(descent := Descent(0.05))
    learner.etrace_train(*data, step_fn=step, optimizer=descent, update_every=2)
    assert distance(parameters(learner), expected) < 1e-5
    assert int(descent.count.value) == 4
    assert len(learner.optimizer_states) == 2


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"update_every": 0}, LearnerError, "update_every"),
        ({"update_every": 1.5}, LearnerError, "update_every"),
        ({"reduction": "median"}, LearnerError, "reduction"),
        ({"mask": jnp.ones(2)}, LearnerError, "mask"),
        ({"optimizer": 0.1}, LearnerTypeError, "no optimiser"),
    ],
)
def test_unfit_options_are_refused(learner, step, data, options, error, words):
    before = parameters(learner)
    with pytest.raises(error, match=words):
        learner.etrace_train(*data, step_fn=step, **{"optimizer": optax.sgd(0.1), **options})
    jax.tree.map(np.testing.assert_array_equal, parameters(learner), before)
