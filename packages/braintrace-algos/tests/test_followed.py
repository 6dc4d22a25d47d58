"""States that follow from others keep no trace of their own, and learn the same."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import D_RTRL, MultiStepData, Truncate, compile
from braintrace_algos._local import Followed
from braintrace_primitives import element_wise, matmul, register_primitive

T, B, I, H = 9, 3, 4, 5


class Pair(brainstate.nn.Module):
    """Leaders, and h that is made of their new values: of those stored (`seen`), or of the same computed once more."""

    def __init__(self, advance, follow, leaders, seen, inputs=I):
        super().__init__()
        rng = np.random.default_rng(5)
        self.advance, self.follow, self.names, self.seen = advance, follow, leaders, seen
        for name, columns in (("wi", H), ("wf", H), ("wo", H), ("all", 4 * H)):
            setattr(self, name, brainstate.ParamState(jnp.asarray(0.6 * rng.normal(size=(inputs + H, columns)))))
        self.gain = brainstate.ParamState(jnp.asarray(rng.normal(size=H)))
        self.out = brainstate.ParamState(jnp.asarray(rng.normal(size=(H, 2))))

    def init_state(self, batch_size=None):
        shape = (H,) if batch_size is None else (batch_size, H)
        for name in (*self.names, "h"):
            setattr(self, name, brainstate.HiddenState(jnp.zeros(shape)))

    def update(self, x):
        joined = jnp.concatenate([x, self.h.value], -1)
        old = [getattr(self, name).value for name in self.names]
        y = {name: matmul(joined, getattr(self, name).value) for name in ("wi", "wf", "wo", "all")}
        past = self.h.value
        stored = self.advance(y, past, *old)
        for name, value in zip(self.names, stored, strict=True):
            getattr(self, name).value = value
        self.h.value = self.follow(self, y, *(stored if self.seen else self.advance(y, past, *old)))
        return matmul(jnp.tanh(self.h.value), self.out.value)


def gates(y):
    return jnp.split(y["all"], 4, -1)


def lstm(y, h, c):
    return (jax.nn.sigmoid(y["wf"]) * c + jnp.tanh(y["wi"]),)


def fused(y, h, c):
    i, f, g, _ = gates(y)
    return (jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g),)


def two(y, h, a, b):
    a = jax.nn.sigmoid(y["wf"]) * a + jnp.tanh(y["wi"])
    return a, 0.7 * jnp.tanh(b) + a


def reset(y, z, v):
    return (0.9 * v * (1 - z) + y["wi"],)


def adaptive(y, z, v, a):
    return 0.9 * v - 0.7 * z * a + y["wi"], 0.8 * a + 0.3 * z


MODELS = {
    "lstm": (lstm, lambda m, y, c: jax.nn.sigmoid(y["wo"]) * jnp.tanh(c), ("c",)),
    "fused": (fused, lambda m, y, c: jax.nn.sigmoid(gates(y)[3]) * jnp.tanh(c), ("c",)),
    "two leaders": (two, lambda m, y, a, b: jnp.tanh(a) * b, ("a", "b")),
    "constant decay": (lambda y, h, v: (0.9 * v + y["wi"],), lambda m, y, v: jax.nn.sigmoid(v) * y["wo"], ("v",)),
    "gain": (lstm, lambda m, y, c: jnp.tanh(c) * element_wise(m.gain.value), ("c",)),
    "reset by spikes": (reset, lambda m, y, v: jax.nn.sigmoid(2 * v), ("v",)),
    "adaptive threshold": (adaptive, lambda m, y, v, a: jax.nn.sigmoid(2 * (v - a)), ("v", "a")),
    "linear reset": (lambda y, z, v: (0.9 * v - 0.5 * z + y["wi"],), lambda m, y, v: 0.6 * v, ("v",)),
    "half of it": (lstm, lambda m, y, c: 0.5 * c, ("c",)),
}


def learner(name, seen, mapped=False, **options):
    with jax.enable_x64(True):
        model = Pair(*MODELS[name], seen)
        options = {"vjp_method": "multi-step", **options}
        return compile(model, D_RTRL, jnp.zeros((B, I)), batch_size=B, vmap=mapped, **options)


def learnt(compiled, calls=1, **options):
    """Gradients over a sequence in some calls, as one vector."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        xs, ys = jnp.asarray(rng.normal(size=(T, B, I))), jnp.asarray(rng.normal(size=(T, B, 2)))

        def loss(x, y):
            if "chunk_size" in options:
                return ((compiled(MultiStepData(x)) - y) ** 2).mean((1, 2))
            return ((compiled(x) - y) ** 2).mean()

        parts = [slice(k * T // calls, (k + 1) * T // calls) for k in range(calls)]
        found = [compiled.etrace_grad(xs[part], ys[part], step_fn=loss, reduction="sum", **options) for part in parts]
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(found)])


WINDOWS = ({"window": 4}, {})
WAYS = {
    "windows of one step": ({"window": 1}, {"fold": 1}),
    "several windows at once": ({"window": 2}, {"fold": 6}),
    "chunks": ({}, {"chunk_size": 4}),
    "in two calls": ({"window": 3}, {"calls": 2}),
    "mapped": ({"window": 4, "mapped": True}, {}),
    "cut short": ({"window": 2, "carry": Truncate(steps=2)}, {}),
}


CASES = {
    **{name: (name, WINDOWS) for name in MODELS},
    **{way: ("fused", how) for way, how in WAYS.items()},
    **{f"spikes, {way}": ("reset by spikes", how) for way, how in WAYS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_traces_for_all_states(case):
    name, (options, how) = CASES[case]
    short, whole = learner(name, True, **options), learner(name, False, **options)
    assert [len(followed.followers) for followed in short.plan.followed.values()] == [1]
    assert not whole.plan.followed
    np.testing.assert_allclose(learnt(short, **how), learnt(whole, **how), rtol=1e-9, atol=1e-11)


def test_signals_at_followers_matter(monkeypatch):
    """Were they not given to the leaders, the gradient would be another one, with what is direct and without."""
    for name in ("lstm", "half of it", "reset by spikes"):
        expected = learnt(learner(name, True, window=4))
        with monkeypatch.context() as patch:
            patch.setattr(Followed, "led", lambda self, signals, jacobian, axis=0: signals)
            assert np.abs(learnt(learner(name, True, window=4)) - expected).max() > 1e-3 * np.abs(expected).max()


def test_traces_of_leaders_and_what_is_direct_are_all_that_is_kept():
    def sizes(name):
        traces = learner(name, True, window=4).etraces.value
        return sorted(leaf.size for leaf in jax.tree.leaves(traces))

    N, joined = B * H, B * (I + H)
    trace, latest, jacobian = N * (I + H), [2 * N, joined], N
    assert sizes("lstm") == sorted([trace, trace, *latest, jacobian])
    # All gates at once: the trace has their elements, and of the latest step what reaches h directly is kept.
    assert sizes("fused") == sorted([4 * trace, 4 * N, joined, jacobian])


def in_single_calls(compiled):
    """Gradients over a sequence, step by step in a loop of one's own."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        xs, ys = jnp.asarray(rng.normal(size=(T, B, I))), jnp.asarray(rng.normal(size=(T, B, 2)))
        step = brainstate.transform.grad(lambda x, y: ((compiled(x) - y) ** 2).mean(), compiled.param_states)
        run = brainstate.transform.jit(lambda xs, ys: brainstate.transform.for_loop(step, xs, ys))
        found = jax.tree.map(lambda steps: steps.sum(0), run(xs, ys))
        return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(found)])


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", ["lstm", "fused", "half of it"])
def test_single_steps_learn_from_the_new_trace(name, mapped):
    """No signal meets the past of h under the strict rule, yet what c learns comes from h as it is after the step."""
    compiled = learner(name, True, mapped, vjp_method="single-step")
    assert not compiled.plan.followed
    with jax.enable_x64(True):
        assert compiled.plan.carry.meeting(compiled.plan).plan.followed
        expected, traces = learnt(compiled), compiled.etraces.value
        compiled.reset_state()
        np.testing.assert_allclose(in_single_calls(compiled), expected, rtol=1e-9, atol=1e-11)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), compiled.etraces.value, traces)


class Twice(brainstate.nn.Module):
    """Two states that hold one value: the very same, or one that is multiplied by one."""

    def __init__(self, same, remembers):
        super().__init__()
        rng = np.random.default_rng(5)
        self.same, self.remembers = same, remembers
        self.w = brainstate.ParamState(jnp.asarray(0.6 * rng.normal(size=(I, H))))
        self.out = brainstate.ParamState(jnp.asarray(rng.normal(size=(H, 2))))

    def init_state(self, batch_size=None):
        self.c, self.h = (brainstate.HiddenState(jnp.zeros((batch_size, H))) for _ in range(2))

    def update(self, x):
        y = matmul(x, self.w.value)
        past = jax.nn.sigmoid(y) * self.c.value - 0.3 * self.h.value if self.remembers else 0.0
        self.c.value = past + jnp.tanh(y)
        self.h.value = self.c.value if self.same else 1.0 * self.c.value
        return matmul(self.h.value, self.out.value)


class Delay(Twice):
    """States that hold what another was: as it is, or multiplied by one. The output reads all of them."""

    def init_state(self, batch_size=None):
        self.c, self.before, self.long_before = (brainstate.HiddenState(jnp.zeros((batch_size, H))) for _ in range(3))

    def update(self, x):
        c, before = self.c.value, self.before.value
        self.c.value = 0.8 * c + jnp.tanh(matmul(x, self.w.value))
        self.before.value, self.long_before.value = (c, before) if self.same else (1.0 * c, 1.0 * before)
        read = [self.c, self.before, self.long_before] if self.remembers else [self.before]
        return matmul(sum(jnp.sin(state.value) for state in read), self.out.value)


@pytest.mark.parametrize("every", [True, False], ids=["all are read", "one is read"])
@pytest.mark.parametrize("algorithm", ["d_rtrl", "eprop", "pp_prop", "ostl_recurrent"])
def test_states_that_hold_the_old_value_of_another_learn_from_it(algorithm, every):
    options = {"decay_or_rank": 0.9} if algorithm == "pp_prop" else {}

    def compiled(same, name=algorithm, options=options):
        return compile(Delay(same, every), name, jnp.zeros((B, I)), batch_size=B, **options)

    with jax.enable_x64(True):
        one, expected = compiled(True), learnt(compiled(False))
        np.testing.assert_allclose(learnt(one), expected, rtol=1e-9, atol=1e-11)
        one.reset_state()
        np.testing.assert_allclose(in_single_calls(one), expected, rtol=1e-9, atol=1e-11)
        if algorithm != "pp_prop":
            np.testing.assert_allclose(expected, learnt(compiled(True, "bptt", {})), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("remembers", [True, False], ids=["one group", "two groups"])
@pytest.mark.parametrize("algorithm", ["d_rtrl", "eprop", "pp_prop", "ostl_recurrent"])
def test_states_that_hold_one_value_learn_from_it_once(algorithm, remembers):
    options = {"decay_or_rank": 0.9} if algorithm == "pp_prop" else {}

    def compiled(same):
        return compile(Twice(same, remembers), algorithm, jnp.zeros((B, I)), batch_size=B, **options)

    with jax.enable_x64(True):
        one, expected = compiled(True), learnt(compiled(False))
        assert len(one.graph.hidden_groups) == (1 if remembers else 2)
        np.testing.assert_allclose(learnt(one), expected, rtol=1e-9, atol=1e-11)
        one.reset_state()
        np.testing.assert_allclose(in_single_calls(one), expected, rtol=1e-9, atol=1e-11)


class Layers(brainstate.nn.Module):
    """Spikes that reset their membranes, and a gated cell that reads them."""

    def __init__(self):
        super().__init__()
        self.spiking, self.gated = Pair(*MODELS["reset by spikes"], True), Pair(*MODELS["lstm"], True, 2)

    def update(self, x):
        return self.gated(self.spiking(x))


def test_followers_with_a_past_and_without_may_meet_in_a_model():
    """The derivative by which spikes follow is carried on where that of the cell's output is of the step alone."""
    with jax.enable_x64(True):
        compiled = compile(Layers(), D_RTRL, jnp.zeros((B, I)), batch_size=B)
        met = compiled.plan.carry.meeting(compiled.plan).plan
        assert [len(plan.followed) for plan in (compiled.plan, met)] == [1, 2]
        expected, traces = learnt(compiled), compiled.etraces.value
        compiled.reset_state()
        np.testing.assert_allclose(in_single_calls(compiled), expected, rtol=1e-9, atol=1e-11)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), compiled.etraces.value, traces)


def test_a_trainable_may_be_called_last(monkeypatch):
    """As what followers keep of the latest step is, beside the trace of their leaders."""
    expected = learnt(learner("fused", True, window=2))
    product = register_primitive("test_product_with_last", lambda x, last: x @ last, leading_axes=True)
    monkeypatch.setitem(Pair.update.__globals__, "matmul", product)
    compiled = learner("fused", True, window=2)
    (trace,) = compiled.get_etrace_of("all").values()
    assert sorted(trace) == ["last", "last_"]
    np.testing.assert_allclose(learnt(compiled), expected, rtol=1e-10)
