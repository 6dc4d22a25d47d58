import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, LearnerError, LearnerTypeError, MultiStepData, SingleStepData, compile
from braintrace_compiler._jaxpr import bodies
from braintrace_primitives import _rows, _trace_rule, matmul


def compiled(model, data, **options):
    return compile(model, D_RTRL, data[0][0], batch_size=data[0].shape[1], **options)


METHODS = {"single-step": {}, "multi-step": {"vjp_method": "multi-step", "window": 3}}


def gradient_of_windows(learner, data, loss, K):
    def total(xs, ys):
        out = learner(MultiStepData(xs))
        return sum(loss(o, y) for o, y in zip(out, ys, strict=True))

    gradient = brainstate.transform.jit(brainstate.transform.grad(total, learner.param_states))
    parts = [gradient(data[0][t : t + K], data[1][t : t + K]) for t in range(0, len(data[0]), K)]
    return jax.tree.map(lambda *g: sum(g), *parts)


@pytest.mark.parametrize("vjp_method", ["single-step", "multi-step"])
@pytest.mark.parametrize("vmap", [False, True])
def test_a_window_is_as_the_driver_s(recurrent_model, data, loss, distance, vjp_method, vmap):
    data = tuple(v[:6] for v in data)
    learner = compiled(recurrent_model, data, **METHODS[vjp_method], vmap=vmap)
    expected = learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    traces, hidden = learner.etraces.value, recurrent_model.v.value
    learner.reset_state()
    assert distance(gradient_of_windows(learner, data, loss, 3), expected) < 1e-5
    assert distance(learner.etraces.value, traces) < 1e-5
    assert distance(hidden, recurrent_model.v.value) < 1e-6
    assert int(learner.running_index.value) == len(data[0])


@pytest.mark.parametrize("options", [{"fold": 3}, {"vjp_method": "multi-step", "window": 3, "fold": 6}])
def test_large_traces_are_turned_as_small_ones(recurrent_model, data, loss, distance, options, monkeypatch):
    """Contracted, then written in their place: the filtered states and the rest, weights and biases."""
    found = []
    for large in (False, True):
        if large:
            monkeypatch.setattr(_trace_rule, "_LARGE", 1)
            monkeypatch.setattr(_rows, "_LEAST", 1)
        learner = compiled(recurrent_model, data, **options)
        gradient = learner.etrace_grad(*data, step_fn=lambda x, y, learner=learner: loss(learner(x), y))
        found.append((gradient, learner.etraces.value))
        learner.reset_state()
    assert distance(*(gradient for gradient, _ in found)) < 1e-5
    assert distance(*(traces for _, traces in found)) < 1e-5


def test_windows_differ_from_single_steps(recurrent_model, data, loss, distance):
    learner = compiled(recurrent_model, data, vjp_method="multi-step")
    windows = gradient_of_windows(learner, data, loss, 7)
    learner.reset_state()
    assert distance(gradient_of_windows(learner, data, loss, 1), windows) > 1e-2


@pytest.mark.parametrize("vjp_method", ["single-step", "multi-step"])
def test_chunks_are_windows_of_the_call(recurrent_model, data, loss, distance, vjp_method):
    learner = compiled(recurrent_model, data, **METHODS[vjp_method])
    mask = jnp.arange(len(data[0])) != 1

    def step(x, y):
        return loss(learner(x), y)

    expected, losses = learner.etrace_grad(*data, step_fn=step, mask=mask, return_value=True)
    learner.reset_state()

    def window(x, y):
        out = learner(MultiStepData(x))
        return jnp.mean((out - y) ** 2, axis=(1, 2)), out

    grads, values, aux = learner.etrace_grad(
        *data, step_fn=window, mask=mask, chunk_size=3, return_value=True, has_aux=True
    )
    assert distance(grads, expected) < 1e-5
    np.testing.assert_allclose(values, losses, rtol=1e-5)
    assert aux.shape == data[1].shape
    learner.reset_state()
    if vjp_method == "multi-step":
        longer = learner.etrace_grad(*data, step_fn=lambda x, y: window(x, y)[0], mask=mask, chunk_size=5)
        assert distance(longer, expected) > 1e-3
    same = learner.etrace_grad(*data, step_fn=step, mask=mask, chunk_size=1)
    assert jax.tree.structure(same) == jax.tree.structure(expected)


def test_chunks_of_a_random_sketch_draw_once_for_each_window(recurrent_model, data, loss, distance):
    def gradient(step, chunk_size=None, **options):
        learner = compile(recurrent_model, "uoro", data[0][0], batch_size=data[0].shape[1], key=1, **options)
        learner.reset_state()
        return learner.etrace_grad(*data, step_fn=lambda *xy: step(learner, *xy), chunk_size=chunk_size)

    def losses(learner, x, y):
        return ((learner(MultiStepData(x)) - y) ** 2).mean((1, 2))

    expected = gradient(lambda learner, x, y: loss(learner(x), y), window=3)
    assert distance(gradient(losses, chunk_size=3), expected) < 1e-5
    assert distance(gradient(losses, chunk_size=2), expected) > 1e-2


def test_chunks_make_one_program_in_every_run(recurrent_model, data):
    """It must not depend on where objects lie in memory, or the compilation cache on disk never finds it again."""

    def program():
        learner = compiled(type(recurrent_model)(recurrent=True), data, vjp_method="multi-step")
        kept.append(learner)

        def run(xs, ys):
            def losses(x, y):
                return jnp.mean((learner(MultiStepData(x)) - y) ** 2, axis=(1, 2))

            return learner.etrace_grad(xs, ys, step_fn=losses, chunk_size=len(xs))

        function = brainstate.transform.StatefulFunction(run)
        function.make_jaxpr(*data)
        values = [state.value for state in function.get_states(*data)]
        return jax.jit(function.jaxpr_call).lower(values, *data).as_text()

    kept = []
    assert len({program() for _ in range(4)}) == 1


def test_chunks_weigh_signals_that_are_not_their_losses(recurrent_model, data, loss, distance):
    learner = compile(recurrent_model, "three_factor", data[0][0], batch_size=data[0].shape[1], modulator=0.3)
    mask = jnp.arange(len(data[0])) != 1
    expected = learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y), mask=mask)
    learner.reset_state()

    def window(x, y):
        return jnp.mean((learner(MultiStepData(x)) - y) ** 2, axis=(1, 2))

    assert distance(learner.etrace_grad(*data, step_fn=window, mask=mask, chunk_size=3), expected) < 1e-5


@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
@pytest.mark.filterwarnings("ignore:MEMORY_NOT_HIDDEN")
def test_states_that_are_not_hidden_are_not_differentiated_through_time(data, loss, distance):
    """A delay line gives the same gradient whatever the window: that of a line that is data."""
    I, H, O = data[0].shape[-1], 3, data[1].shape[-1]

    class Delayed(brainstate.nn.Module):
        def __init__(self, line):
            super().__init__()
            self.line = line
            self.w = brainstate.ParamState(jnp.asarray(np.random.default_rng(0).normal(size=(I + H, H)), jnp.float32))
            self.out = brainstate.ParamState(jnp.ones((H, O)))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, H)))
            self.d = self.line(jnp.zeros((2, batch_size, H)))

        def update(self, x):
            late = self.d.value[0]
            self.d.value = jnp.stack([self.d.value[1], self.h.value])
            self.h.value = 0.7 * self.h.value + jnp.tanh(matmul(jnp.concatenate([x, late], -1), self.w.value))
            return matmul(self.h.value, self.out.value)

    def gradient(line, algorithm, **options):
        learner = compile(Delayed(line), algorithm, data[0][0], batch_size=data[0].shape[1], **options)
        return learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")

    expected = gradient(brainstate.ShortTermState, "rtrl")
    for algorithm, options in (("bptt", {}), ("rtrl", {"window": 3}), ("d_rtrl", {})):
        assert distance(gradient(brainstate.ShortTermState, algorithm, **options), expected) < 1e-5
    learner = compile(Delayed(brainstate.ShortTermState), "bptt", data[0][0], batch_size=data[0].shape[1])
    assert distance(gradient_of_windows(learner, data, loss, len(data[0])), expected) < 1e-5
    assert distance(gradient(brainstate.HiddenState, "bptt"), expected) > 0.05


def of_whole_sequence(learner, data, loss):
    return learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")


def of_one_chunk(learner, data, loss):
    def window(x, y):
        return jnp.stack([loss(o, t) for o, t in zip(learner(MultiStepData(x)), y, strict=True)])

    return learner.etrace_grad(*data, step_fn=window, chunk_size=len(data[0]), reduction="sum")


@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
@pytest.mark.parametrize("gradient", [of_whole_sequence, of_one_chunk])
@pytest.mark.parametrize("options", [{}, {"vjp_method": "multi-step", "window": 7}])
def test_a_weight_that_is_not_trained_is_kept_once(data, loss, distance, gradient, options):
    """It is a state that no step changes: neither a loop nor its way back has a copy for each step."""
    T, B, I = data[0].shape
    H, O = 6, data[1].shape[-1]
    rng = np.random.default_rng(0)
    w, fixed, out = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((I + H, H), (I + H, H), (H, O)))

    class Gated(brainstate.nn.Module):
        def __init__(self, of_fixed):
            super().__init__()
            self.w, self.out, self.fixed = brainstate.ParamState(w), brainstate.ParamState(out), of_fixed(fixed)

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, H)))

        def update(self, x):
            gate = jax.nn.sigmoid(jnp.concatenate([x, self.h.value], -1) @ self.fixed.value)
            new = jnp.tanh(matmul(jnp.concatenate([x, gate * self.h.value], -1), self.w.value))
            self.h.value = 0.7 * self.h.value + new
            return matmul(self.h.value, self.out.value)

    def constant(value):
        return type("Constant", (), {"value": value})

    expected = gradient(compiled(Gated(constant), data, **options), data, loss)
    learner = compiled(Gated(brainstate.LongTermState), data, **options)
    program = brainstate.transform.StatefulFunction(lambda *data: gradient(learner, data, loss))
    program.make_jaxpr(*data)
    loops = [eqn for eqn in equations(program.get_jaxpr(*data).jaxpr) if eqn.primitive is jax.lax.scan_p]
    shapes = {v.aval.shape for eqn in loops for v in [*eqn.invars, *eqn.outvars]}
    assert (T, B, H) in shapes
    assert not {(T, *fixed.shape), (T, I, H), (T, H, H)} & shapes
    assert distance(gradient(learner, data, loss), expected) < 1e-5


def equations(program):
    for eqn in program.eqns:
        yield eqn
        for body in bodies(eqn):
            yield from equations(body)


def test_chunks_are_compiled_once(recurrent_model, data):
    learner = compiled(recurrent_model, data, vjp_method="multi-step")
    traced = []

    def window(x, y):
        traced.append(None)
        return jnp.mean((learner(MultiStepData(x)) - y) ** 2, axis=(1, 2))

    learner.etrace_grad(*data, step_fn=window, chunk_size=3)
    count = len(traced)
    learner.etrace_grad(*data, step_fn=window, chunk_size=3)
    assert len(traced) == count


def test_single_step_data_is_the_step_itself(model, data):
    learner = compiled(model, data)
    expected = learner(data[0][0])
    learner.reset_state()
    np.testing.assert_array_equal(learner(SingleStepData(data[0][0])), expected)


def test_unfit_windows_are_refused(model, data, loss):
    learner = compiled(model, data, vjp_method="multi-step")
    with pytest.raises(LearnerError, match="another shape"):
        learner(MultiStepData(data[0][..., :-1]))
    with pytest.raises(LearnerError, match="chunk_size"):
        learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(MultiStepData(x[None]))[0], y))
    with pytest.raises(LearnerError, match="one loss for each step"):
        learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(MultiStepData(x)), y), chunk_size=3)
    with pytest.raises(LearnerTypeError, match="all arguments"):
        learner(MultiStepData(data[0]), data[0])
    with pytest.raises(LearnerError, match="chunk_size"):
        learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y), chunk_size=0)


class TwiceDriven(brainstate.nn.Module):
    """Like an LSTM: no state reads h position by position. One weight is used twice, another reaches h alone."""

    def __init__(self):
        super().__init__()
        keys = jax.random.split(jax.random.key(0), 2)
        self.w, self.gate = (brainstate.ParamState(jax.random.normal(k, (6, 4))) for k in keys)

    def init_state(self, batch_size, **_):
        self.c, self.h = (brainstate.HiddenState(jnp.zeros((batch_size, 4))) for _ in range(2))

    def update(self, x):
        z = jnp.concatenate([x, self.h.value], -1)
        u = matmul(z, self.w.value) + jnp.tanh(matmul(0.3 * z, self.w.value))
        self.c.value = jax.nn.sigmoid(u) * self.c.value + jnp.sin(u)
        self.h.value = jax.nn.sigmoid(matmul(z, self.gate.value)) * jnp.tanh(self.c.value)
        return self.h.value


def test_an_operation_that_reaches_no_state_whose_past_meets_a_signal_has_no_trace():
    learner = compile(TwiceDriven(), D_RTRL, jnp.zeros((3, 2)), batch_size=3)
    assert learner.get_etrace_of(("w",))
    with pytest.raises(LearnerError, match="No eligibility trace"):
        learner.get_etrace_of(("gate",))


def test_traces_of_states_that_none_reads_are_those_of_single_steps(distance):
    xs = jax.random.normal(jax.random.key(1), (5, 3, 2))
    learner = compile(TwiceDriven(), D_RTRL, xs[0], batch_size=3, vjp_method="multi-step")
    for x in xs:
        learner(x)
    expected = learner.etraces.value
    kept = {name for trace in expected.values() if isinstance(trace, dict) for name in trace}
    assert kept == {"weight", "factor", "x"}  # the gate keeps factors
    learner.reset_state()
    for window in (xs[:3], xs[3:]):
        learner(MultiStepData(window))
    assert distance(learner.etraces.value, expected) < 1e-6


class Delayed(brainstate.nn.Module):
    """A delay line in a hidden state: its D differs from position to position, and from no step to the next."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.linspace(-1, 1, 20).reshape(4, 5))

    def init_state(self, batch_size=None):
        self.line = brainstate.HiddenState(jnp.zeros((3, 5)))

    def update(self, x):
        out = self.line.value[0]
        self.line.value = jnp.concatenate([self.line.value[1:], matmul(x, self.w.value)[None]])
        return out


@pytest.mark.filterwarnings("ignore:POSITION_MIXING")
def test_a_window_through_a_delay_line_is_backpropagation(data, distance):
    """All that a step leaves for D and F is constant: nothing of it is kept."""
    xs, model = data[0][:, 0], Delayed()
    grads = {}
    for algorithm, options in (("bptt", {}), ("d_rtrl", {"vjp_method": "multi-step", "window": len(xs)})):
        learner = compile(model, algorithm, xs[0], **options)
        grads[algorithm] = learner.etrace_grad(xs, step_fn=lambda x, of=learner: (of(x) ** 2).sum())
    assert distance(grads["d_rtrl"], grads["bptt"]) < 1e-6
