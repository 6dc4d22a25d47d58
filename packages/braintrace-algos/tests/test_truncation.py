"""Traces cut short: against sums that leave old terms out by name, and against the bound that is reported."""

import functools

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, EProp, LearnerError, LearnerTypeError, Truncate, compile
from braintrace_compiler import ControlFlowPolicy, Omission
from braintrace_primitives import conv, embedding, lora_matmul, matmul

B, T = 2, 11


def normal(seed, *shape):
    return 0.4 * jax.random.normal(jax.random.key(seed), shape)


def convolve(x, w):
    return conv(x, w["kernel"], w["bias"], padding="SAME")


OPERATIONS = {
    "matmul": (lambda x, w: matmul(x, w["w"], w["b"]), {"w": normal(1, 40, 12), "b": normal(2, 12)}, (T, B, 40)),
    "conv": (convolve, {"kernel": normal(3, 24, 24, 3, 3), "bias": normal(4, 24)}, (T, B, 24, 4, 4)),
    "lora": (lambda x, w: lora_matmul(x, w["B"], w["A"]), {"B": normal(5, 40, 2), "A": normal(6, 2, 12)}, (T, B, 40)),
    "embedding": (lambda i, w: embedding(i, w["table"]), {"table": normal(7, 90, 12)}, None),
}


def sequence(name):
    shape = OPERATIONS[name][2]
    return jax.random.randint(jax.random.key(8), (T, B), 0, 90) if shape is None else 2 * normal(8, *shape)


def transition(h, y, leak):
    g, v = h
    g = jax.nn.sigmoid(v) * g + y
    return jnp.stack([g, leak * jnp.tanh(v) + 0.5 * g])


class Chain(brainstate.nn.Module):
    """A gated current and a voltage behind one operation; exact under the strict rule."""

    def __init__(self, name, leak=0.8):
        super().__init__()
        self.operation, weights, _ = OPERATIONS[name]
        self.w, self.leak = brainstate.ParamState(weights), leak
        self.shape = jax.eval_shape(self.operation, sequence(name)[0], weights).shape[1:]

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        self.g, self.v = (brainstate.HiddenState(jnp.zeros((*lead, *self.shape))) for _ in range(2))

    def update(self, x):
        h = jnp.stack([self.g.value, self.v.value])
        self.g.value, self.v.value = transition(h, self.operation(x, self.w.value), self.leak)
        return self.v.value


def loss(v):
    return (v**3 + v).sum()


def learned(model, xs, *, algorithm=D_RTRL, vmap=False, **options):
    learner = compile(model, algorithm, xs[0], batch_size=B, vmap=vmap, **options)
    return learner, learner.etrace_grad(xs, step_fn=lambda x: loss(learner(x)), reduction="sum")["w",]


class Reference:
    """The gradient as a sum over pairs of steps, with D and F from explicit Jacobians."""

    def __init__(self, name, leak=0.8):
        self.model, self.xs = Chain(name, leak), sequence(name)
        local = jax.jacfwd(lambda h, y: transition(h, y, leak), argnums=(0, 1))
        jacobians = jax.jit(jax.vmap(local, in_axes=(1, 0), out_axes=-1))
        self.pull = jax.jit(
            lambda x, sent: jax.vjp(lambda w: self.model.operation(x, w), self.model.w.value)[1](sent)[0]
        )
        h = jnp.zeros((2, B, *self.model.shape))
        self.D, self.F, self.L = [None], [None], [None]  # steps count from 1
        for x in self.xs:
            y = self.model.operation(x, self.model.w.value)
            D, F = jacobians(h.reshape(2, -1), y.reshape(-1))
            self.D.append(np.asarray(D))
            self.F.append(np.asarray(F))
            h = transition(h, y, leak)
            self.L.append(np.stack([0 * h[1], 3 * h[1] ** 2 + 1]).reshape(2, -1))

    def product(self, t, s):
        """D^t ... D^{s+1} at each position."""
        P = np.broadcast_to(np.eye(2)[:, :, None], (2, 2, self.F[1].shape[-1]))
        for r in range(s + 1, t + 1):
            P = np.einsum("abp,bcp->acp", self.D[r], P)
        return P

    def gradient(self, counts):
        """The sum over the pairs (t, s) that count: the loss of step t by way of the operation at step s."""
        total = jax.tree.map(jnp.zeros_like, self.model.w.value)
        for s in range(1, T + 1):
            sent = np.zeros_like(self.F[s][0])
            for t in range(s, T + 1):
                if counts(t, s):
                    sent = sent + np.einsum("ap,abp,bp->p", self.L[t], self.product(t, s), self.F[s])
            sent = jnp.asarray(sent.reshape(B, *self.model.shape), jnp.float32)
            total = jax.tree.map(jnp.add, total, self.pull(self.xs[s - 1], sent))
        return total


reference_of = functools.cache(Reference)


def kept(K, R):
    return lambda t, s: s > K * ((t - 1) // K) - R


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_the_last_steps_and_drops_the_rest(name, distance):
    learner, found = learned(Chain(name), sequence(name), fold=3, carry=Truncate(4))
    reference = reference_of(name)
    assert distance(found, reference.gradient(kept(3, 4))) < 1e-5
    assert distance(found, reference.gradient(lambda t, s: True)) > 1e-2
    (trace,) = learner.truncation.traces
    assert trace.saved > 0


@pytest.mark.parametrize(
    ("options", "K", "R"),
    [
        ({"fold": 5}, 5, 2),
        ({"fold": 1}, 1, 3),
        ({"fold": 3, "vmap": True}, 3, 5),
        ({"vjp_method": "multi-step", "window": 4, "vmap": True}, 4, 3),
        ({"algorithm": EProp, "fold": 2}, 2, 3),
        ({"algorithm": "ostl_recurrent", "fold": 4}, 4, 3),
    ],
)
def test_whatever_the_window(options, K, R, distance):
    learner, found = learned(Chain("matmul"), sequence("matmul"), carry={"w": Truncate(R)}, **options)
    reference = reference_of("matmul")
    assert distance(found, reference.gradient(kept(K, R))) < 1e-5
    assert distance(found, reference.gradient(lambda t, s: True)) > 1e-2
    assert float(learner.truncation["w"].left_out) > 0


@pytest.mark.parametrize(
    ("algorithm", "vmap", "R"),
    # A signal at the new states meets the trace of the same step, which is then one of the three that are kept.
    [(D_RTRL, False, 3), (D_RTRL, True, 3), (EProp, False, 2), ("ostl_recurrent", False, 2)],
)
def test_single_steps_and_restored_ones_keep_the_last_steps(algorithm, vmap, R, distance, tmp_path):
    xs = sequence("matmul")
    expected = reference_of("matmul").gradient(kept(1, R))

    def fresh():
        return compile(Chain("matmul"), algorithm, xs[0], batch_size=B, carry=Truncate(3), vmap=vmap)

    def gradient_of(learner):
        return brainstate.transform.jit(brainstate.transform.grad(lambda x: loss(learner(x)), learner.param_states))

    learner, total = fresh(), jax.tree.map(jnp.zeros_like, expected)
    gradient = gradient_of(learner)
    for i, x in enumerate(xs):
        total = jax.tree.map(jnp.add, total, gradient(x)["w",])
        if i == 5:
            learner.save(tmp_path / "run")
            bound = learner.truncation["w"].left_out
            learner = fresh()
            learner.restore(tmp_path / "run")
            assert learner.truncation["w"].left_out == bound > 0
            gradient = gradient_of(learner)
    assert distance(total, expected) < 1e-5
    learner.reset_state()
    assert learner.truncation["w"].left_out == 0


@pytest.mark.parametrize(("fold", "R"), [(4, 4), (2, 5)])
def test_the_reported_norm_bounds_what_is_left_out(fold, R):
    learner, found = learned(Chain("matmul", leak=0.95), sequence("matmul"), fold=fold, carry=Truncate(R))
    reference = reference_of("matmul", 0.95)
    missing = jax.tree.map(jnp.subtract, reference.gradient(lambda t, s: True), found)["w"]
    trace = learner.truncation["w"]

    entries = [n for n in range(0, T, fold) if n > R]
    norms = [np.linalg.norm(reference.product(n, n - R), 2, axis=(0, 1)).max() for n in entries]
    assert max(norms) <= trace.left_out * 1.0001 <= trace.bound * 1.0002
    bound = 0.0
    for n in entries:
        signal = sum(
            np.einsum("ap,abp->bp", reference.L[t], reference.product(t, n)) for t in range(n + 1, min(n + fold, T) + 1)
        )
        steps = range(1, n - R + 1)
        F = [np.einsum("abp,bp->ap", reference.product(n - R, s), reference.F[s]).reshape(2, B, -1) for s in steps]
        past = sum(np.einsum("abo,bi->aboi", f, reference.xs[s - 1]) for s, f in zip(steps, F, strict=True))
        size = np.sqrt((past**2).sum((0, 3))).reshape(-1)
        bound += float(trace.left_out) * (np.linalg.norm(signal, axis=0) * size).sum()
    assert 1e-3 * bound < np.linalg.norm(missing) <= bound


class Uses(brainstate.nn.Module):
    """One weight in several places of a step: added up, in a loop, scaled, and in a group of its own."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(normal(1, 40, 12))

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        self.v, self.u = (brainstate.HiddenState(jnp.zeros((*lead, 12))) for _ in range(2))

    def step(self, h, x, w):
        v, u = (jax.nn.sigmoid(state) * state for state in h)
        v = v + matmul(x, w) + jnp.tanh(matmul(jnp.tanh(x + 1), w)) + matmul(x, 0.5 * w)
        return v, jax.lax.fori_loop(0, 2, lambda k, u: 0.5 * jnp.tanh(u) + matmul(jnp.sin(x + k), w), u)

    def update(self, x):
        self.v.value, self.u.value = self.step((self.v.value, self.u.value), x, self.w.value)
        return self.v.value + 2 * self.u.value


@functools.cache
def credit_of_uses(of_loss):
    """Derivative of the value of step t by a weight that acts at step s only, (T, T, I, O)."""
    model, xs, start = Uses(), sequence("matmul"), jnp.zeros((B, 12))

    def values(ws):
        def body(h, step):
            h = model.step(h, *step)
            return h, loss(h[0] + 2 * h[1]) if of_loss else (h[0] + h[1]).sum()

        return jax.lax.scan(body, (start, start), (xs, ws))[1]

    return np.asarray(jax.jit(jax.jacrev(values))(jnp.broadcast_to(model.w.value, (T, 40, 12))))


def of_pairs(credit, counts):
    return sum(credit[t - 1, s - 1] for t in range(1, T + 1) for s in range(1, t + 1) if counts(t, s))


@pytest.mark.parametrize("unroll_limit", [32, 1])
def test_several_uses_of_a_weight(unroll_limit, distance):
    options = {"carry": Truncate(2), "control_flow": ControlFlowPolicy(unroll_limit=unroll_limit)}
    learner, found = learned(Uses(), sequence("matmul"), fold=3, **options)
    assert distance(found, of_pairs(credit_of_uses(True), kept(3, 2))) < 1e-5
    assert distance(found, of_pairs(credit_of_uses(True), lambda t, s: True)) > 1e-2
    assert len(learner.truncation.traces) == 3


def test_modulated_traces(distance):
    """Over a sequence, and by calls of one's own, where the current step is one of the R."""
    xs, m = sequence("matmul"), jax.random.normal(jax.random.key(9), (T,))
    credit = m[:, None, None, None] * credit_of_uses(False)
    learner = compile(Uses(), "three_factor", xs[0], batch_size=B, carry=Truncate(2), fold=3)
    found = learner.etrace_grad(xs, m, step_fn=lambda x, m: loss(learner(x, modulator=m)), reduction="sum")["w",]
    assert distance(found, of_pairs(credit, kept(3, 2))) < 1e-5
    assert distance(found, of_pairs(credit, lambda t, s: True)) > 1e-2
    learner.reset_state()
    gradient = brainstate.transform.grad(lambda x, m: loss(learner(x, modulator=m)), learner.param_states)
    found = sum(gradient(*step)["w",] for step in zip(xs, m, strict=True))
    assert distance(found, of_pairs(credit, lambda t, s: s > t - 2)) < 1e-5


def test_short_sequences_lose_nothing(distance):
    xs = sequence("matmul")[:5]
    learner, found = learned(Chain("matmul"), xs, fold=1, carry=Truncate(4))
    _, exact = learned(Chain("matmul"), xs)
    assert distance(found, exact) < 1e-5
    assert learner.truncation["w"].left_out > 0.1  # the first step is forgotten now that the sequence has ended
    learner, found = learned(Chain("matmul"), xs, fold=2, carry=Truncate(5))
    assert distance(found, exact) < 1e-5
    assert learner.truncation["w"].left_out == 0


class Mixed(brainstate.nn.Module):
    """A layer whose trace is exact as filtered inputs, one that gates itself, and a leaky readout that is absorbed."""

    def __init__(self):
        super().__init__()
        self.w, self.u = (brainstate.ParamState(normal(k, 40, 20)) for k in (1, 2))
        self.r = brainstate.ParamState(normal(3, 20, 3))

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        self.i, self.h = (brainstate.HiddenState(jnp.zeros((*lead, 20))) for _ in range(2))
        self.o = brainstate.HiddenState(jnp.zeros((*lead, 3)))

    def update(self, x):
        self.i.value = 0.9 * self.i.value + matmul(x, self.w.value)
        self.h.value = jax.nn.sigmoid(self.h.value) * self.h.value + jnp.tanh(matmul(x, self.u.value))
        self.o.value = 0.7 * self.o.value + matmul(jnp.tanh(self.h.value), self.r.value)
        return self.o.value.sum() + (self.i.value**2).sum()


def test_traces_that_are_small_stay_whole_and_absorbed_memory_is_kept(distance):
    xs, results = sequence("matmul"), {}
    for name, options in {"long": {"carry": Truncate(10)}, "short": {"carry": Truncate(3)}, "bptt": {}}.items():
        learner = compile(Mixed(), "bptt" if name == "bptt" else D_RTRL, xs[0], batch_size=B, fold=2, **options)
        results[name] = learner.etrace_grad(xs, step_fn=learner, reduction="sum")
        if name != "bptt":
            assert [t.weights for t in learner.truncation.traces] == [("u",)]
            report = learner.report
            row = {o["weights"][0]: o for o in report.operations}
            assert row["u"]["strict"].startswith("omits older steps; absorbed: o")
            assert row["w"]["strict"] == "exact"
            assert row["u"]["kept_as"] == f"the last {options['carry'].steps} steps"
            assert "The trace u#" in report.notes
            told = sum(o["trace_bytes"] for o in report.operations)
            assert sum(learner.memory_report().traces.values()) == pytest.approx(told, abs=64)
    for name, found in results.items():
        assert distance(found["w",], results["bptt"]["w",]) < 1e-5
        assert (distance(found["u",], results["bptt"]["u",]) < 1e-5) == (name != "short")


def test_the_certificate_and_comparisons_name_what_is_left_out():
    xs = sequence("conv")
    learner = compile(Chain("conv"), D_RTRL, xs[0], batch_size=B, carry={"etp_conv": "truncate"})
    assert learner.truncation["w"].steps == 64
    (certificate,) = learner.plan.certificates()
    assert certificate.omissions == (Omission.OLDER_STEPS,)
    assert "the factors of the last 64 steps" in str(learner.truncation["w"])
    assert "64" in str(learner.truncation)
    lean = compile(Chain("conv"), D_RTRL, xs[0], batch_size=B, carry={"conv": "trace"})
    assert lean.truncation.traces == ()
    assert lean.plan.certificates()[0].exact


def test_what_cannot_be_meant_is_refused():
    xs = sequence("matmul")
    with pytest.raises(LearnerTypeError, match="what is kept"):
        compile(Chain("matmul"), D_RTRL, xs[0], batch_size=B, carry="half")
    with pytest.raises(LearnerError, match=r"found: *v\b[\s\S]*w, etp_mm, mm"):
        compile(Chain("matmul"), D_RTRL, xs[0], batch_size=B, carry={"v": "truncate"})
    with pytest.raises(LearnerError, match="no traces"):
        compile(Chain("matmul"), "rtrl", xs[0], batch_size=B, carry="truncate")
    with pytest.raises(LearnerError, match="steps"):
        Truncate(0)


class Phases(brainstate.nn.Module):
    """Two real states that a complex operation drives."""

    def __init__(self):
        super().__init__()
        re, im = (0.5 * jax.random.normal(jax.random.key(k), (6, 12)) for k in (0, 1))
        self.w = brainstate.ParamState(jax.lax.complex(re, im))

    def init_state(self, batch_size=None):
        self.a, self.b = (brainstate.HiddenState(jnp.zeros((batch_size, 12))) for _ in range(2))

    def update(self, x):
        y, a, b = matmul(x.astype(self.w.value.dtype), self.w.value), self.a.value, self.b.value
        self.a.value = 0.8 * jnp.tanh(a) + 0.3 * b + y.real
        self.b.value = 0.7 * b - 0.2 * jnp.sin(a) + y.imag
        return self.a.value + self.b.value


def test_kept_steps_of_a_complex_operation():
    """Two steps that are kept, and are all there were, give the gradient of the whole trace."""
    xs = jax.random.normal(jax.random.key(2), (4, 3, 6))
    found = []
    for carry in ("trace", Truncate(2)):
        learner = compile(Phases(), D_RTRL, xs[0], batch_size=3, carry=carry)

        def step(x, learner=learner):
            return (learner(x) ** 2).sum()

        learner.etrace_grad(xs[:2], step_fn=step)
        found.append(learner.etrace_grad(xs[2:], step_fn=step)["w",])
    assert learner.truncation
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-4)
