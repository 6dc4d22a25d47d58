import copy

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, LearnerError, LearnerTypeError, MultiStepData, _learner, _windows, compile
from braintrace_primitives import lora_matmul, matmul


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
    by_name = learner.get_etrace_of("gain")
    assert list(by_path) == list(by_state) == list(by_name) == ["gain#1->g"]
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
        (lambda x: x + 1j, LearnerTypeError, r"c64[\s\S]*x\.real"),
        (lambda x: x[:-1], LearnerError, "batch size"),
        (lambda x: x[None], LearnerError, "one time step"),
        (lambda x: x.astype(jnp.int32), LearnerTypeError, "astype"),
        (lambda x: {"x": x}, LearnerTypeError, r"structure[\s\S]*found: *\({'x': \*}\)\n *expected: *\(\*\)"),
        (lambda x: x.tolist(), LearnerTypeError, r"found: *\(\[\[\*, \*"),
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
    learner(xs[0])
    traces, steps = learner.etraces.value, learner.running_index.value
    compile(model, D_RTRL, xs[0, 0])
    with pytest.raises(LearnerError, match="state g"):
        learner(xs[0])
    assert learner.etraces.value is traces
    assert learner.running_index.value is steps
    learner.reset_state()
    learner(xs[0])


def test_a_parameter_of_another_shape_is_named_with_what_helps(model, data):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    value = model.gain.value
    model.gain.value = jnp.ones(7)
    with pytest.raises(LearnerError, match=r"state gain[\s\S]*set it to a value of that form"):
        learner(xs[0])
    model.gain.value = value
    learner(xs[0])


def test_weights_inside_other_modules_are_found_by_a_path_with_dots():
    class Wrapped(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Refractory()

        def update(self, x):
            return self.inner(x)

    learner = compile(Wrapped(), D_RTRL, jnp.ones(4))
    assert list(learner.get_etrace_of("inner.w")) == list(learner.get_etrace_of(("inner", "w")))


class Refractory(brainstate.nn.Module):
    """A leaky layer with hidden states of booleans and integers: units rest after they fired, and count."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.linspace(-1, 1, 12).reshape(4, 3))

    def init_state(self, batch_size=None):
        self.v = brainstate.HiddenState(jnp.zeros(3))
        self.rests, self.count = brainstate.HiddenState(jnp.zeros(3, bool)), brainstate.HiddenState(jnp.zeros(3, int))

    def update(self, x):
        v = 0.9 * jnp.where(self.rests.value, 0.0, self.v.value) + matmul(x, self.w.value)
        self.rests.value = v > 0.3
        self.count.value = self.count.value + self.rests.value
        self.v.value = v
        return v * self.count.value


def test_hidden_states_without_derivatives_are_carried(data, distance):
    x = data[0][:, 0]
    grads = {}
    for algorithm in ("d_rtrl", "rtrl", "bptt"):
        learner = compile(Refractory(), algorithm, x[0])
        grads[algorithm] = learner.etrace_grad(x, step_fn=lambda x, of=learner: (of(x) ** 2).sum())
        assert learner.model.count.value.sum() > 0
        learner.reset_state()
        assert learner.model.count.value.sum() == 0
    assert distance(grads["d_rtrl"], grads["bptt"]) < 1e-5
    assert distance(grads["rtrl"], grads["bptt"]) < 1e-5


class Noisy(brainstate.nn.Module):
    """A leaky layer that is driven at random and counts its steps, with an input scale that it never changes."""

    def __init__(self):
        super().__init__()
        self.w, self.unused = brainstate.ParamState(jnp.ones((4, 3))), brainstate.ParamState(jnp.ones(2))
        self.scale = brainstate.ShortTermState(jnp.full((3,), 0.5))

    def init_state(self, batch_size=None):
        self.h, self.count = (
            brainstate.HiddenState(jnp.zeros((batch_size, 3))),
            brainstate.ShortTermState(jnp.zeros(())),
        )

    def update(self, x):
        drive = matmul(x, self.w.value) * self.scale.value + brainstate.random.normal(size=(3,))
        self.h.value, self.count.value = 0.9 * self.h.value + jnp.tanh(drive), self.count.value + 1
        return {"h": self.h.value, "count": self.count.value}


@pytest.mark.filterwarnings("ignore:Hidden states of the model were written")
def test_a_call_outside_of_jit_is_one_inside_and_traced_once_for_each_kind_of_input(data, monkeypatch):
    xs, _ = data
    traced = []
    monkeypatch.setattr(_learner, "check_state_shapes", lambda plan: traced.append(plan))

    def run(call):
        learner = compile(Noisy(), D_RTRL, xs[0], batch_size=xs.shape[1], seed=0)
        out = [call(learner, x) for x in (*xs[:3], np.asarray(xs[3]))]
        count = len(traced)
        learner.model.w.value, learner.model.h.value = jnp.zeros((4, 3)), np.ones((3, 3), np.float32)
        out.append(call(learner, np.asarray(xs[4])))
        held = [leaf for state in learner.states().values() for leaf in jax.tree.leaves(state.value)]
        held = [jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in held]
        return (out, held, jax.random.key_data(brainstate.random.DEFAULT.value)), count

    def interpreted(learner, x):
        with jax.disable_jit():
            return learner(x)

    outside, count = run(lambda learner, x: learner(x))
    assert count == 1
    for other in (lambda learner, x: brainstate.transform.jit(learner)(x), interpreted):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), outside, run(other)[0])


def test_who_watches_the_states_sees_what_a_compiled_call_reads_and_writes(model, data):
    """Hooks of a state, hooks of all states, recordings of brainstate."""
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    learner(xs[0])
    seen = []

    def clip(context):
        context.transformed_value = context.value.clip(-0.01, 0.01)

    with model.v.temporary_hook("write_before", clip):
        learner(xs[1])
    assert float(jnp.abs(model.v.value).max()) <= 0.0101
    with model.v.temporary_hook("read", lambda context: seen.append("read")):
        learner(xs[2])
    hook = brainstate.register_state_hook("write_after", lambda context: seen.append("written"))
    try:
        learner(xs[3])
    finally:
        brainstate.unregister_state_hook(hook)
    moving = 2 + len(learner.hidden_states)
    assert seen == ["read"] + moving * ["written"]
    with brainstate.StateTraceStack() as stack:
        learner(xs[4])
    assert len(stack.get_write_states()) == moving
    assert set(map(id, learner.states().values())) <= set(map(id, stack.states))


class Counting(brainstate.HiddenState):
    """Knows how often it was written by its own `value`."""

    @property
    def value(self):
        return super().value

    @value.setter
    def value(self, value):
        vars(self)["count"] = vars(self).get("count", 0) + 1
        brainstate.HiddenState.value.fset(self, value)


class Counted(Noisy):
    """With a state that counts."""

    def init_state(self, batch_size=None):
        super().init_state(batch_size)
        self.h = Counting(self.h.value)


def test_a_state_with_a_value_of_its_own_is_read_and_written_by_it(data):
    xs, _ = data
    model = Counted()
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    learner(xs[0])
    before = model.h.count
    learner(xs[1])
    assert model.h.count == before + 1


def test_brainstate_does_what_is_known_where_a_value_is_read_or_written():
    """What `_is_watched` asks for. Look there if a newer brainstate does more: compiled calls would leave that out."""
    value, known = brainstate.State.value, {"_value", "TRACE_CONTEXT", "state_stack", "_trace_state", "is_valid"}
    known |= {"isinstance", "State", "ValueError", "_check_invalidated", "_check_value_tree", "_been_writen"}
    known |= {"_check_tracer_write_outside_trace", "record_state_value_read", "record_state_value_write"}
    known |= {"_read_value", "_write_value", "_execute_read_hooks", "_execute_write_before_hooks"}
    known |= {"_execute_write_after_hooks"}
    assert {*value.fget.__code__.co_names, *value.fset.__code__.co_names} <= known


@pytest.mark.parametrize("clone", [copy.deepcopy, brainstate.graph.clone])
def test_clones_of_a_learner_that_was_used_have_states_of_their_own(data, clone):
    xs, _ = data
    learner = compile(Noisy(), D_RTRL, xs[0], batch_size=xs.shape[1])
    used = learner

    def step(x):
        return used(x)["h"].sum()

    learner(xs[0])
    learner.etrace_grad(xs, step_fn=step)
    used, before = clone(learner), learner.model.h.value
    used(xs[1])
    used.etrace_grad(xs, step_fn=step)
    assert learner.model.h.value is before
    T = len(xs)
    assert (int(learner.running_index.value), int(used.running_index.value)) == (1 + T, 2 + 2 * T)


class LowRank(brainstate.nn.Module):
    """Two square factors, whose names come in another order than the operation takes them."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState({"B": jnp.eye(4), "A": jnp.arange(16.0).reshape(4, 4) / 9})

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 4)))

    def update(self, x):
        self.h.value = jnp.tanh(0.5 * self.h.value + lora_matmul(x, self.w.value["B"], self.w.value["A"]))
        return self.h.value


@pytest.mark.parametrize("clone", [copy.deepcopy, brainstate.graph.clone])
def test_clones_have_the_gradient_of_the_original(data, clone, distance):
    xs, _ = data
    learner = compile(LowRank(), D_RTRL, xs[0], batch_size=xs.shape[1])
    twin = clone(learner)
    expected, found = (f.etrace_grad(xs, step_fn=lambda x, f=f: (f(x) ** 2).sum()) for f in (learner, twin))
    assert distance(found, expected) < 1e-6


def test_windows_and_sequences_without_gradient_are_compiled_once(model, data, monkeypatch):
    xs, _ = data
    learner = compile(model, D_RTRL, xs[0], batch_size=xs.shape[1])
    steps = []
    run_step = _windows.run_step
    monkeypatch.setattr(_windows, "run_step", lambda *a, **k: steps.append(None) or run_step(*a, **k))
    first = learner(MultiStepData(xs))
    count = len(steps)
    learner.reset_state()
    np.testing.assert_array_equal(learner(MultiStepData(xs)), first)
    learner.reset_state()
    np.testing.assert_allclose(learner.etrace_evolve(xs, return_outputs=True), first, rtol=1e-5)
    assert learner.etrace_evolve(xs) is None
    assert len(steps) == count > 0
    assert int(learner.running_index.value) == 2 * len(xs)


class Around(brainstate.nn.Module):
    """Two layers; a step gives something `beside` what follows from the new states."""

    def __init__(self, beside, inputs=4, units=5):
        super().__init__()
        self.beside = beside
        self.w = brainstate.ParamState(jax.random.normal(jax.random.key(0), (inputs, units)))
        self.u = brainstate.ParamState(jax.random.normal(jax.random.key(1), (units, units)))

    def init_state(self, batch_size=None):
        shape = batch_size, len(self.u.value)
        self.v, self.g, self.second = (brainstate.HiddenState(jnp.zeros(shape)) for _ in range(3))

    def update(self, x):
        past, y = self.v.value, matmul(x, self.w.value)
        self.v.value = 0.9 * past + jnp.tanh(y)
        self.g.value = 0.5 * self.g.value + (jnp.tanh(y) if self.beside == "another group" else 0)
        z = matmul(self.v.value, self.u.value)
        self.second.value = 0.8 * self.second.value + jnp.tanh(z)
        return jnp.sin(self.second.value + self.v.value) + self.g.value + {"past": past, "y": y}.get(self.beside, 0)


@pytest.mark.parametrize("beside", ["nothing", "past", "y", "another group"])
def test_single_calls_agree_with_the_loop_however_outputs_are_made(beside, data, distance):
    xs = data[0]
    learner = compile(Around(beside), D_RTRL, xs[0], batch_size=xs.shape[1])
    assert (learner.plan.carry.meeting(learner.plan) is not None) == (beside == "nothing")
    expected = learner.etrace_grad(xs, step_fn=lambda x: jnp.mean(learner(x) ** 2), reduction="sum")
    learner.reset_state()
    gradient = brainstate.transform.jit(
        brainstate.transform.grad(lambda x: jnp.mean(learner(x) ** 2), learner.param_states)
    )
    found = [gradient(x) for x in xs]
    assert distance(jax.tree.map(lambda *steps: sum(steps), *found), expected) < 1e-5


class Gated(brainstate.nn.Module):
    """A cell behind a gate, as in an LSTM: what it gives follows from the state with the trace."""

    def __init__(self, inputs, units):
        super().__init__()
        shape = inputs + units, units
        self.w = brainstate.ParamState(jax.random.normal(jax.random.key(0), shape) / 16)
        self.u = brainstate.ParamState(jax.random.normal(jax.random.key(1), shape) / 16)

    def init_state(self, batch_size=None):
        self.c, self.h = (brainstate.HiddenState(jnp.zeros((batch_size, self.w.value.shape[1]))) for _ in range(2))

    def update(self, x):
        joined = jnp.concatenate([x, self.h.value], -1)
        self.c.value = jnp.tanh(self.c.value) + matmul(joined, self.w.value)
        self.h.value = jax.nn.sigmoid(matmul(joined, self.u.value)) * jnp.tanh(self.c.value)
        return self.h.value


@pytest.mark.parametrize("model", [Around("nothing", 64, 256), Gated(64, 256)], ids=["leaky", "gated"])
def test_a_loop_of_ones_own_holds_one_copy_of_the_trace(model):
    learner = compile(model, D_RTRL, jnp.zeros((8, 64)), batch_size=8)

    def step(x):
        grads = brainstate.transform.grad(lambda: jnp.mean(learner(x) ** 2), learner.param_states)()
        for path, state in learner.param_states.items():
            state.value = state.value - 0.01 * grads[path]

    run = brainstate.transform.StatefulFunction(
        lambda xs: brainstate.transform.for_loop(step, xs), return_only_write=False
    )
    xs = jnp.ones((5, 8, 64))
    run.make_jaxpr(xs)
    values = [state.value for state in run.get_states(xs)]
    compiled = jax.jit(run.jaxpr_call, donate_argnums=0).lower(values, xs).compile()
    kept = sum(v.nbytes for v in jax.tree.leaves(learner.etraces.value))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.8 * kept
