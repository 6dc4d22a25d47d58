import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

from braintrace_algos import BPTT, D_RTRL, RTRL, UORO, LearnerError, MultiStepData, compile
from braintrace_algos._driver import GradientDriver
from braintrace_algos._fold_length import auto_fold
from braintrace_primitives import matmul

F32, B, I, H, O = 4, 3, 4, 5, 2


def compiled(model, algorithm=D_RTRL, **options):
    return compile(model, algorithm, jnp.zeros((B, I)), batch_size=B, **options)


def test_bytes_by_purpose(model):
    report = compiled(model, fold=7).memory_report()
    assert report.parameters == {"w": F32 * (I + 1) * H, "gain": F32 * H, "out": F32 * H * O}
    assert report.hidden == {"g": F32 * B * H, "v": F32 * B * H}
    # g filters its inputs, v has a number for each synapse.
    assert report.traces == {"w#0->g": F32 * (B * I + 1 + B * (I + 1) * H), "gain#1->g": 2 * F32 * B * H}
    # tanh(g) and the gain, of which dv/dg, F of w into v and of the gain into v are made; q of both states; x and b of
    # the operations; the weight of the loss.
    step = (B * H + H) + 2 * B * H + (B * I + B * H) + H + (B * H + B * O) + 1
    assert report.tape_per_step == F32 * step
    assert report.tape == 7 * report.tape_per_step
    assert report.optimizer == 0
    parts = sum(sum(group.values()) for group in (report.parameters, report.hidden, report.traces))
    assert report.total == parts + report.tape


def test_the_fold_and_why(model):
    small = compiled(model).memory_report()
    assert (small.fold, small.reason) == (64, "no less, though the tape takes more than the traces")
    assert auto_fold(held=1, per_step=1 << 20, T=160)[:2] == (16, small.reason)
    assert auto_fold(held=1, per_step=180_000, T=256).steps == 32  # within 6 MB
    assert small.tape > sum(small.traces.values())
    assert compiled(model).memory_report(steps=9).reason == "the whole sequence"
    fixed = compiled(model, fold=3).memory_report()
    assert (fixed.fold, fixed.reason) == (3, "fold=3")
    window = compiled(model, vjp_method="multi-step", window=5).memory_report(steps=4)
    assert (window.fold, window.reason) == (4, "the whole sequence")
    windows = compiled(model, vjp_method="multi-step", window=5)
    assert windows.memory_report(steps=200).fold == 50  # ten windows; 64 steps at most, which divide the sequence
    assert auto_fold(held=1 << 20, per_step=1 << 14, T=256, window=48)[0::2] == (48, 48)
    bptt = compiled(model, BPTT).memory_report(steps=100)
    assert (bptt.fold, bptt.reason, bptt.traces) == (100, "the whole sequence", {})
    with pytest.raises(LearnerError, match="steps"):
        compiled(model).memory_report(steps=0)


def test_the_optimiser_s_state_counts(model, data, loss):
    learner = compiled(model)
    learner.init_optimizer(optax.adam(1e-3))
    report = learner.memory_report()
    assert report.optimizer == 2 * sum(report.parameters.values()) + F32


@pytest.mark.parametrize(("algorithm", "options"), [(RTRL, {}), (UORO, {}), ("pp_prop", {"decay_or_rank": 0.9})])
def test_every_carry_is_counted(model, algorithm, options):
    report = compiled(model, algorithm, **options).memory_report()
    assert sum(report.traces.values()) > 0
    assert report.tape_per_step > 0


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize(
    ("algorithm", "carry", "options"),
    [
        (BPTT, "nothing", {}),
        (D_RTRL, "trace", {}),
        ("pp_prop", "two factors", {"decay_or_rank": 0.9}),
        (RTRL, "full influence", {}),
        (UORO, "random rank one", {}),
    ],
)
def test_the_compilation_report_foretells_it(model, recurrent_model, recurrent, algorithm, carry, options, vmap):
    learner = compiled(recurrent_model if recurrent else model, algorithm, vmap=vmap, **options)
    (told,) = [c["bytes"] for c in learner.report.carries if c["carry"] == carry]
    beside = (8 if algorithm is UORO else 4) * B  # a random key, or a counter, for each copy
    assert sum(learner.memory_report().traces.values()) == pytest.approx(told, abs=beside)


class InPart(brainstate.nn.Module):
    """A current that filters, a voltage that resets, a state without memory, and a readout of the past of all three."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((I, H)))
        self.u = brainstate.ParamState(jnp.ones((I, H)))
        self.out = brainstate.ParamState(jnp.ones((3 * H, O)))

    def init_state(self, batch_size=None):
        for name in ("g", "v", "s"):
            setattr(self, name, brainstate.HiddenState(jnp.zeros((batch_size, H) if batch_size else (H,))))

    def update(self, x):
        past = jnp.concatenate([self.g.value, self.v.value, self.s.value], -1)
        self.g.value = 0.8 * self.g.value + matmul(x, self.w.value)
        self.v.value = jnp.tanh(self.v.value) + self.g.value
        self.s.value = jnp.tanh(matmul(x, self.u.value))
        return matmul(past, self.out.value)


class OutputGate(brainstate.nn.Module):
    """A cell behind a gate, which the recurrence alone reads; as in an LSTM."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((I + H, H)))
        self.gate = brainstate.ParamState(jnp.ones((I + H, H)))

    def init_state(self, batch_size=None):
        self.c, self.h = (brainstate.HiddenState(jnp.zeros((batch_size, H))) for _ in range(2))

    def update(self, x):
        xh = jnp.concatenate([x, self.h.value], -1)
        self.c.value = jnp.tanh(self.c.value) + matmul(xh, self.w.value)
        self.h.value = jax.nn.sigmoid(matmul(xh, self.gate.value)) * jnp.tanh(self.c.value)
        return self.h.value


class Gate(brainstate.nn.Module):
    """A layer with a full trace, of a size that can be chosen."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.w, self.outputs = brainstate.ParamState(jnp.ones((inputs, outputs))), outputs

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.outputs) if batch_size else (self.outputs,)))

    def update(self, x):
        self.h.value = jnp.tanh(self.h.value) + matmul(x, self.w.value)
        return self.h.value


@pytest.mark.parametrize("vmap", [False, True])
@pytest.mark.parametrize(
    ("size", "fold", "reason"), [(256, 50, "about as much"), (1300, 250, "no more, though"), (8, 50, "no less, though")]
)
def test_a_fold_takes_the_memory_of_the_traces(size, fold, reason, vmap):
    """Each unit has D, q, b and x, 4 numbers on the tape, and as many in the trace as there are inputs."""
    learner = compile(Gate(size, size), D_RTRL, jnp.zeros((B, size)), batch_size=B, vmap=vmap)
    report = learner.memory_report(steps=1000)
    assert report.fold == fold
    assert reason in report.reason
    tape, traces = report.tape, sum(report.traces.values())
    assert (tape <= traces) == (size > 8)
    assert tape > 0.75 * traces or size == 1300


@pytest.mark.parametrize("vmap", [False, True])
def test_the_compilation_report_foretells_factors(vmap):
    learner = compiled(InPart(), vmap=vmap)
    report = learner.report
    assert [o["kept_as"] for o in report.operations] == ["filtered inputs in part", "the latest step", None]
    (told,) = [c["bytes"] for c in report.carries if c["carry"] == "trace"]
    # g: the input filtered; v: a full trace; s: input and factor of the latest step
    assert told == F32 * (I * B + B * I * H + B * (I + H))
    assert sum(learner.memory_report().traces.values()) == told


@pytest.mark.parametrize(
    ("options", "kept_as", "beside"),
    [
        ({}, ["a full trace", None], 0),
        ({"vjp_method": "multi-step", "window": 4}, ["a full trace", "the latest step"], F32 * B * H),
    ],
)
def test_the_report_tells_what_single_steps_keep_and_what_windows_do(options, kept_as, beside):
    """The gated output follows from the membrane: its trace is made of the other's by a number for each unit."""
    learner = compiled(OutputGate(), **options)
    assert [o["kept_as"] for o in learner.report.operations] == kept_as
    full, latest = learner.report.operations
    assert full["trace_bytes"] == F32 * B * (I + H) * H
    assert sum(learner.memory_report().traces.values()) == full["trace_bytes"] + latest["trace_bytes"] + beside
    assert ("is made of" in learner.report.notes) == bool(beside)
    assert "keeps of the past takes" not in learner.report.notes
    assert [o["kept_as"] for o in learner.graph.report().operations] == ["a full trace", None]


def test_the_report_tells_where_an_algorithm_keeps_something_else(model):
    assert "keeps of the past" not in compiled(model).report.notes
    assert "keeps of the past takes 0 B" in compiled(model, BPTT).report.notes


def test_the_report_reads_as_text_and_as_html(model):
    report = compiled(model, vmap=True).memory_report()
    lines = str(report).splitlines()
    assert lines[0].split() == ["purpose", "name", "memory"]
    assert lines[-1].startswith("total")
    assert report._repr_html_().count("<tr>") == len(lines) - 1


def test_the_fold_is_weighed_once(model, data, loss, monkeypatch):
    learner = compiled(model)
    weighed = []
    monkeypatch.setattr("braintrace_algos._sequence.tape_bytes", lambda plan: weighed.append(plan) or 1)
    for _ in range(2):
        learner.etrace_grad(*data, step_fn=lambda x, y: loss(learner(x), y))
    assert len(weighed) == 1


class Fixed(brainstate.nn.Module):
    """A recurrent layer with a matrix that no step changes."""

    def __init__(self, size):
        super().__init__()
        self.w = brainstate.ParamState(0.3 * jax.random.normal(jax.random.key(0), (4 + 3, 3)))
        self.size = size

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros(3))
        self.fixed = brainstate.ShortTermState(jax.random.normal(jax.random.key(1), (self.size, 4)))

    def update(self, x):
        x = jnp.tanh(jnp.tile(x, self.size // 4) @ self.fixed.value)
        self.h.value = jnp.tanh(matmul(jnp.concatenate([x, self.h.value]), self.w.value))
        return self.h.value


@pytest.mark.parametrize("options", [{}, {"batch_size": 2, "vmap": True}])
@pytest.mark.parametrize("algorithm", ["rtrl", "uoro"])
def test_windows_keep_one_copy_of_what_no_step_changes(algorithm, options, distance):
    """It was kept once for each step."""
    T, size = 12, 4 * 512
    xs = jax.random.normal(jax.random.key(2), (T, *([2] if options else []), 4))
    learner = compile(Fixed(size), algorithm, xs[0], window=T // 2, **options)
    bptt = compile(Fixed(size), "bptt", xs[0], **options)

    def gradient(f):
        return f.etrace_grad(xs, step_fn=lambda x: (f(x) ** 2).sum())

    found, expected = gradient(learner), gradient(bptt)
    if algorithm == "rtrl":
        assert distance(found, expected) < 1e-5
    (driver,) = (d for d in learner._drivers._kept.values() if isinstance(d, GradientDriver))
    program = str(jax.make_jaxpr(driver.gradient)(*driver.read(), xs, jnp.ones(T)))
    copies = "2," if options else ""
    assert f"[{copies}{size},4]" in program
    assert f"[{T // 2},{copies}{size},4]" not in program

    def window(xs):
        return (learner(MultiStepData(xs)) ** 2).sum()

    of_window = brainstate.transform.StatefulFunction(brainstate.transform.grad(window, learner.param_states))
    of_window.make_jaxpr(xs)
    assert f"[{T},{copies}{size},4]" not in str(of_window.get_jaxpr(xs))
