"""Every algorithm against the formula of its paper, written out step by step in NumPy for a leaky tanh network."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_algos import ETraceConfig, LearnerError, LearnerTypeError, MultiStepData, compare_gradients, compile
from braintrace_algos.carries import InfluenceCarry
from braintrace_compiler import NotSupportedError
from braintrace_primitives import (
    SparsityPattern,
    conv,
    einsum,
    element_wise,
    embedding,
    grouped_matmul,
    lora_matmul,
    matmul,
    sparse_matmul,
)

B, I, H, O, T = 2, 2, 3, 2, 5
A = 0.7


class LeakyTanh(brainstate.nn.Module):
    """h = A h + (1 - A) tanh([x, h] W), read out by V."""

    def __init__(self, diagonal=False):
        super().__init__()
        rng = np.random.default_rng(0)
        recurrent = rng.normal(size=(H, H))
        if diagonal:
            recurrent = np.diag(np.diag(recurrent))
        self.W = brainstate.ParamState(jnp.asarray(np.concatenate([rng.normal(size=(I, H)), recurrent]), jnp.float32))
        self.V = brainstate.ParamState(jnp.asarray(rng.normal(size=(H, O)), jnp.float32))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((H,) if batch_size is None else (batch_size, H)))

    def update(self, x):
        y = matmul(jnp.concatenate([x, self.h.value], -1), self.W.value)
        self.h.value = A * self.h.value + (1 - A) * jnp.tanh(y)
        return self.read()

    def read(self):
        return matmul(self.h.value, self.V.value)


RNG = np.random.default_rng(1)
XS, YS = RNG.normal(size=(T, B, I)), RNG.normal(size=(T, B, O))


class Steps:
    """The run of a `LeakyTanh`: per step the joint input, F, the error at the readout and the signal L."""

    def __init__(self, model, feedback=None):
        W, V = np.asarray(model.W.value, float), np.asarray(model.V.value, float)
        back = V if feedback is None else np.asarray(feedback, float)
        h, self.steps = np.zeros((B, H)), []
        for x, target in zip(XS, YS, strict=True):
            u = np.concatenate([x, h], -1)
            s = np.tanh(u @ W)
            h = A * h + (1 - A) * s
            error = 2 * (h @ V - target)
            self.steps.append((u, (1 - A) * (1 - s**2), error, error @ back.T))
        self.W = W

    def __iter__(self):
        return iter(self.steps)


def gradient(algorithm, model=None, batch=B, xs=XS, ys=YS, **options):
    model = model or LeakyTanh()
    call = options.pop("call", lambda learner, x: learner(x))
    learner = compile(model, algorithm, jnp.zeros((batch, I)), batch_size=batch, **options)

    def step(x, y):
        return ((call(learner, x) - y) ** 2).sum()

    grads = learner.etrace_grad(jnp.asarray(xs), jnp.asarray(ys), step_fn=step, reduction="sum")
    return learner, model, {path[0]: np.asarray(g) for path, g in grads.items()}


def traced(model, signal=lambda m, L: L, leak=lambda steps, F: np.full_like(F, A), kappa=0.0):
    """sum_t signal · ē^t with e^t = leak e^{t-1} + F u, ē^t = κ ē^{t-1} + e^t."""
    steps = Steps(model)
    e = filtered = np.zeros((B, I + H, H))
    total = np.zeros((I + H, H))
    for u, F, _, L in steps:
        e = leak(steps, F)[:, None, :] * e + u[:, :, None] * F[:, None, :]
        filtered = kappa * filtered + e
        total += np.einsum("bo,bio->io", signal(model, L), filtered)
    return total


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max())


def test_e_prop():
    _, model, grads = gradient("eprop")
    close(grads["W"], traced(model))
    _, model, filtered = gradient("eprop", kappa_filter_decay=0.6)
    close(filtered["W"], traced(model, kappa=0.6))
    close(filtered["V"], grads["V"])
    assert np.abs(filtered["W"] - grads["W"]).max() > 0.1


def test_e_prop_with_random_feedback():
    learner, model, grads = gradient("eprop", feedback="random", random_feedback_key=jax.random.key(3))
    (feedback,) = learner.plan.feedback.values()
    assert feedback["weight"].shape == model.V.value.shape
    expected, e = np.zeros((I + H, H)), np.zeros((B, I + H, H))
    for u, F, _, L in Steps(model, feedback["weight"]):
        e = A * e + u[:, :, None] * F[:, None, :]
        expected += np.einsum("bo,bio->io", L, e)
    close(grads["W"], expected)
    close(grads["V"], gradient("eprop")[2]["V"])
    with pytest.raises(LearnerTypeError, match="key"):
        gradient("eprop", feedback="random")


def test_random_feedback_passes_a_sparse_readout():
    """Its weights come in one row, as those of a bias do."""
    pattern = SparsityPattern(*np.nonzero(np.ones((H, O))), (H, O))

    class Sparse(LeakyTanh):
        def read(self):
            return sparse_matmul(self.h.value, self.V.value.reshape(-1), sparse_mat=pattern)

    learner, model, grads = gradient("eprop", Sparse(), feedback="random", random_feedback_key=0)
    (feedback,) = (np.asarray(v["weight"]).reshape(H, O) for v in learner.plan.feedback.values())
    assert np.abs(feedback).min() > 0
    expected, e = np.zeros((I + H, H)), np.zeros((B, I + H, H))
    for u, F, _, L in Steps(model, feedback):
        e = A * e + u[:, :, None] * F[:, None, :]
        expected += np.einsum("bo,bio->io", L, e)
    close(grads["W"], expected)


SPARSE = SparsityPattern(*np.nonzero(np.random.default_rng(0).random((200, 64)) < 0.1), (200, 64))


@pytest.mark.parametrize(
    ("inputs", "shape", "read", "fan_in"),
    [
        ((200,), (200, 64), matmul, 200),
        ((9, 8), (3, 8, 64), lambda h, w: conv(h, w, dimension_numbers=("NHC", "HIO", "NHC")), 24),
        ((8, 9), (64, 2, 3), lambda h, w: conv(h, w, feature_group_count=4), 6),
        ((4, 50), (4, 50, 16), grouped_matmul, 50),
        ((200,), (64, 200), lambda h, w: einsum("i,oi->o", h, w), 200),
        ((200,), (SPARSE.nnz,), lambda h, w: sparse_matmul(h, w, sparse_mat=SPARSE), SPARSE.nnz / 64),
    ],
)
def test_random_feedback_is_scaled_by_the_fan_in(inputs, shape, read, fan_in):
    """By the first axis of a kernel, it was too large by the root of the others."""

    class Readout(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.out = brainstate.ParamState(jnp.ones(inputs)), brainstate.ParamState(jnp.ones(shape))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros(inputs))

        def update(self, x):
            self.h.value = 0.5 * self.h.value + element_wise(self.gain.value) * x
            return read(self.h.value, self.out.value)

    learner = compile(Readout(), "eprop", jnp.ones(inputs), feedback="random", random_feedback_key=0)
    (feedback,) = learner.plan.feedback.values()
    assert feedback["weight"].shape == shape
    assert abs(float(feedback["weight"].std()) * fan_in**0.5 - 1) < 0.15


@pytest.mark.parametrize("iterations", [3, 40])
def test_random_feedback_into_loops(iterations):
    """Long loops stay loops, in which the readout passes signals by its own weights."""

    class Settling(LeakyTanh):
        def read(self):
            def settle(r, _):
                return jnp.tanh(r + matmul(self.h.value + r.sum(-1, keepdims=True), self.V.value)), None

            return jax.lax.scan(settle, jnp.zeros((B, O)), None, iterations)[0]

    options = {"feedback": "random", "random_feedback_key": 0}
    if iterations < 32:
        _, _, grads = gradient("eprop", Settling(), **options)
        assert np.abs(grads["W"] - gradient("eprop", Settling())[2]["W"]).max() > 0.01
    else:
        with pytest.raises(NotSupportedError, match=r"unroll_limit"):
            gradient("eprop", Settling(), **options)


def test_the_filter_leaves_groups_without_recurrence_alone():
    """An operation may drive a recurrent group and another that it leads nowhere from."""

    class Shared(LeakyTanh):
        def init_state(self, batch_size=None):
            super().init_state(batch_size)
            self.r = brainstate.HiddenState(jnp.zeros((batch_size, H)))

        def update(self, x):
            y = matmul(jnp.concatenate([x, self.h.value], -1), self.W.value)
            self.h.value = jnp.tanh(A * self.h.value + y)
            self.r.value = A * self.r.value + y
            return matmul(self.r.value + 0 * self.h.value, self.V.value)

    learner, _, plain = gradient("eprop", Shared())
    assert len(learner.graph.hidden_groups) == 2
    close(gradient("eprop", Shared(), kappa_filter_decay=0.6)[2]["W"], plain["W"])


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _surrogate(primals, tangents):
    (v,), (dv,) = primals, tangents
    return spike(v), jnp.maximum(0, 1 - jnp.abs(v)) * dv


class Spiking(brainstate.nn.Module):
    """Leaky integrate-and-fire units whose recurrent weights are zero, under a leaky readout of their spikes."""

    def __init__(self, keeps_spikes):
        super().__init__()
        rng, self.keeps_spikes = np.random.default_rng(0), keeps_spikes
        weights = np.concatenate([2 * rng.normal(size=(I, H)), np.zeros((H, H))])
        self.W, self.V = (brainstate.ParamState(jnp.asarray(v)) for v in (weights, rng.normal(size=(H, O))))

    def init_state(self, batch_size=None):
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, H)))
        if self.keeps_spikes:
            self.z = brainstate.HiddenState(jnp.zeros((batch_size, H)))
        self.r = brainstate.HiddenState(jnp.zeros((batch_size, O)))

    def update(self, x):
        before = self.z.value if self.keeps_spikes else spike(self.v.value - 0.5)
        y = matmul(jnp.concatenate([x, before], -1), self.W.value)
        self.v.value = A * self.v.value * (1 - jax.lax.stop_gradient(before)) + y
        z = spike(self.v.value - 0.5)
        if self.keeps_spikes:
            self.z.value = z
        self.r.value = 0.9 * self.r.value + matmul(z, self.V.value)
        return self.r.value


def test_the_filter_is_that_of_the_paper_where_spikes_are_a_state():
    """There it stands for the leak of the readout; where they are a function of the membrane alone, it does not."""

    def error(keeps_spikes, **options):
        learner = compile(Spiking(keeps_spikes), "eprop", XS[0], batch_size=B, **options)
        comparison = compare_gradients(learner, 4 * XS, YS, step_fn=lambda x, y: jnp.sum((learner(x) - y) ** 2))
        return comparison["W"].relative_error

    with jax.enable_x64(True):
        assert error(True, kappa_filter_decay=0.9) < 1e-6
        assert error(False, kappa_filter_decay=0.9) > 1e-2
        assert error(True) > 1e-2


class ManyOperations(LeakyTanh):
    """Beside the weights a gain on the state itself and a product of low rank, each with a trace of its own kind."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(2)
        self.gain = brainstate.ParamState(jnp.asarray(rng.normal(size=H)))
        self.left, self.right = (brainstate.ParamState(jnp.asarray(rng.normal(size=s))) for s in ((I, 2), (2, H)))

    def update(self, x):
        y = matmul(jnp.concatenate([x, self.h.value], -1), self.W.value) + element_wise(self.gain.value) * self.h.value
        self.h.value = A * self.h.value + jnp.tanh(y + lora_matmul(x, self.left.value, self.right.value))
        return matmul(self.h.value, self.V.value)


@pytest.mark.parametrize("window", [1, 2, T])
def test_e_prop_in_windows_is_d_rtrl_in_windows(window):
    """Where credit inside of a window is whole, and no filter stands behind it, the rules do not differ."""

    def in_windows(algorithm):
        learner = compile(ManyOperations(), algorithm, XS[0], batch_size=B, vjp_method="multi-step", window=window)
        shapes = jax.tree.map(jnp.shape, learner.etraces.value)

        def step(x, y):
            return jnp.sum((learner(x) - y) ** 2)

        return shapes, learner.etrace_grad(XS, YS, step_fn=step, reduction="sum")

    with jax.enable_x64(True):
        (shapes, expected), (own, found) = in_windows("d_rtrl"), in_windows("eprop")
        assert own == shapes
        jax.tree.map(lambda g, r: np.testing.assert_allclose(g, r, rtol=1e-6), found, expected)


@pytest.mark.parametrize(("option", "a", "b"), [(0.8, 0.8, 0.8), (3, 0.5, 0.5), ((0.9, 0.3), 0.9, 0.3)])
def test_pp_prop(option, a, b):
    _, model, grads = gradient("pp_prop", decay_or_rank=option)
    ex, ef, expected = np.zeros((B, I + H)), np.zeros((B, H)), np.zeros((I + H, H))
    for n, (u, F, _, L) in enumerate(Steps(model), 1):
        ex, ef = a * ex + u, b * A * ef + (1 - b) * F
        expected += np.einsum("bi,bo->io", ex, L * ef / (1 - b**n))
    close(grads["W"], expected)


class Gated(LeakyTanh):
    """h = leak h + sigmoid(u G) tanh(u W) for u = [x, h]: two operations on one input."""

    def __init__(self, leak):
        super().__init__()
        self.leak, self.G = leak, brainstate.ParamState(0.5 * self.W.value[:, ::-1])

    def update(self, x):
        u = jnp.concatenate([x, self.h.value], -1)
        new = jax.nn.sigmoid(matmul(u, self.G.value)) * jnp.tanh(matmul(u, self.W.value))
        self.h.value = self.leak * self.h.value + new if self.leak else new
        return matmul(self.h.value, self.V.value)


@pytest.mark.parametrize("fold", [1, 2, T])
@pytest.mark.parametrize("leak", [0, A])
def test_operations_on_one_input_share_its_factor(leak, fold):
    learner, model, grads = gradient("pp_prop", Gated(leak), decay_or_rank=(0.9, 0.8), fold=fold)
    told = {c["carry"]: c["bytes"] for c in learner.report.carries}["two factors"]
    kept = learner.etraces.value
    assert told == 4 * B * (I + H + 2 * H) == 4 * sum(v.size for name in "xf" for v in jax.tree.leaves(kept[name]))
    G, W, V = (np.asarray(p.value, float) for p in (model.G, model.W, model.V))
    h, ex = np.zeros((B, H)), np.zeros((B, I + H))
    ef, expected = {"G": h, "W": h}, {"G": 0, "W": 0}
    for n, (x, target) in enumerate(zip(XS, YS, strict=True), 1):
        u = np.concatenate([x, h], -1)
        gate, c = 1 / (1 + np.exp(-u @ G)), np.tanh(u @ W)
        h = leak * h + gate * c
        L = 2 * (h @ V - target) @ V.T
        ex = 0.9 * ex + u
        for name, F in (("G", gate * (1 - gate) * c), ("W", gate * (1 - c**2))):
            ef[name] = 0.8 * leak * ef[name] + 0.2 * F
            expected[name] = expected[name] + np.einsum("bi,bo->io", ex, L * ef[name] / (1 - 0.8**n))
    close(grads["G"], expected["G"])
    close(grads["W"], expected["W"])


@pytest.mark.parametrize("option", [1.0, -0.1, 0, True, "0.9", (0.1, 0.2, 0.3)])
def test_pp_prop_refuses_what_is_no_decay(option):
    with pytest.raises(LearnerError, match="decay_or_rank"):
        gradient("pp_prop", decay_or_rank=option)


def test_ottt_and_its_regime_of_exactness():
    _, model, grads = gradient("ottt", decay=0.4)
    ex, expected = np.zeros((B, I + H)), np.zeros((I + H, H))
    for u, F, _, L in Steps(model):
        ex = 0.4 * ex + u
        expected += np.einsum("bi,bo->io", ex, L * F)
    close(grads["W"], expected)


class Integrators(brainstate.nn.Module):
    """h = 0.4 h + y, read out as it is."""

    def __init__(self, y, **params):
        super().__init__()
        self.y, self.names = y, tuple(params)
        for name, value in params.items():
            setattr(self, name, brainstate.ParamState(jnp.asarray(value, jnp.float32)))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((H,) if batch_size is None else (batch_size, H)))

    def update(self, x):
        self.h.value = 0.4 * self.h.value + self.y(x, *(getattr(self, name).value for name in self.names))
        return self.h.value[..., :O]


INTEGRATORS = {
    "one": (
        lambda x, w: matmul(jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], -1), w),
        {"w": RNG.normal(size=(I + 1, H))},
    ),
    "bias": (lambda x, w, b: matmul(x, w, b), {"w": RNG.normal(size=(I, H)), "b": RNG.normal(size=H)}),
    "embedding": (lambda x, w: embedding(jnp.floor(2 * x[..., 0]).astype(int), w), {"w": RNG.normal(size=(8, H))}),
    "loop": (
        lambda x, w: jax.lax.scan(
            lambda y, k: (y + embedding(jnp.floor(k * x[..., 0]).astype(int) + 4, w), None),
            jnp.zeros((*x.shape[:-1], H)),
            jnp.linspace(0, 2, 40),
        )[0],
        {"w": RNG.normal(size=(20, H))},
    ),
}


@pytest.mark.parametrize("name", [name for name in INTEGRATORS if name != "bias"])
@pytest.mark.parametrize("options", [{}, {"vmap": True}, {"vjp_method": "multi-step", "window": 2}])
def test_ottt_is_exact_for_what_only_leaks(name, options):
    """The index of a row is no number to be filtered."""
    y, params = INTEGRATORS[name]
    learner, model, grads = gradient("ottt", Integrators(y, **params), decay=0.4, **options)
    if "vmap" not in options:
        told = {c["carry"]: c["bytes"] for c in learner.report.carries}["two factors"]
        assert told == 4 * sum(v.size for name in "xf" for v in jax.tree.leaves(learner.etraces.value[name]))
    exact = gradient("bptt", model)[2]
    for path, grad in grads.items():
        close(grad, exact[path])
    if "window" not in options:
        learner.reset_state()
        step = brainstate.transform.grad(lambda x, y: ((learner(x) - y) ** 2).sum(), learner.param_states)
        singly = [step(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(XS, YS, strict=True)]
        for path, grad in grads.items():
            close(sum(np.asarray(g[path,]) for g in singly), grad)


def test_a_bias_has_no_presynaptic_factor():
    """It learns by L F alone; a weight of an input of one is exact."""
    y, params = INTEGRATORS["bias"]
    found = gradient("ottt", Integrators(y, **params), decay=0.4)[2]
    model = Integrators(y, **params)
    exact = gradient("bptt", model)[2]
    close(found["w"], exact["w"])
    latest = gradient("ostl_feedforward", model)[2]
    close(found["b"], latest["b"])
    assert np.abs(found["b"] - exact["b"]).max() > 0.1


def test_ostl_without_memory_is_the_instantaneous_product():
    _, model, grads = gradient("ostl_feedforward")
    close(grads["W"], sum(np.einsum("bi,bo->io", u, L * F) for u, F, _, L in Steps(model)))


def test_ostl_with_memory_keeps_the_influence_of_a_unit_on_itself():
    _, model, grads = gradient("ostl_recurrent")
    close(grads["W"], traced(model, leak=lambda steps, F: A + F * np.diag(steps.W[I:])))
    _, model, diagonal = gradient("ostl_recurrent", LeakyTanh(diagonal=True))
    exact = gradient("bptt", model)[2]["W"]
    close(diagonal["W"][:I], exact[:I])
    assert np.abs(grads["W"] - gradient("bptt")[2]["W"]).max() > 0.1


def test_three_factors():
    learner, model, grads = gradient("three_factor", modulator=0.3)
    close(grads["W"], traced(model, signal=lambda m, L: np.full_like(L, 0.3)))
    close(grads["V"], gradient("d_rtrl")[2]["V"])
    learner.reset_state()
    learner.modulator.value = jnp.asarray(-0.3)
    again = learner.etrace_grad(XS, YS, step_fn=lambda x, y: ((learner(x) - y) ** 2).sum(), reduction="sum")
    close(np.asarray(again["W",]), -grads["W"])


def test_a_modulator_may_be_given_with_each_call():
    learner, model, grads = gradient("three_factor", call=lambda learner, x: learner(x, modulator=x.sum()))
    e, expected = np.zeros((B, I + H, H)), np.zeros((I + H, H))
    for (u, F, _, _), x in zip(Steps(model), XS, strict=True):
        e = A * e + u[:, :, None] * F[:, None, :]
        expected += x.sum() * e.sum(0)
    close(grads["W"], expected)
    assert float(learner.modulator.value) == pytest.approx(XS[-1].sum(), rel=1e-5)


def test_a_modulator_that_is_the_signal_gives_the_symmetric_rule():
    model = LeakyTanh()
    expected = gradient("eprop", model)[2]["W"]
    signals = [L for *_, L in Steps(model)]
    learner = compile(model, "three_factor", jnp.zeros((B, I)), batch_size=B, modulator=np.zeros((B, H)))

    def step(x, y, m):
        return ((learner(x, modulator=m) - y) ** 2).sum()

    grads = learner.etrace_grad(XS, YS, np.stack(signals), step_fn=step, reduction="sum")
    close(np.asarray(grads["W",]), expected)


@pytest.mark.parametrize("vmap", [False, True])
def test_a_modulator_reaches_what_has_no_derivative_in_single_calls(vmap):
    """Spikes without a surrogate: the readout learns by the loss, and no derivative of it comes to the states."""

    class Hard(LeakyTanh):
        def read(self):
            return matmul((self.h.value > 0).astype(self.V.value.dtype), self.V.value)

    learner, _, grads = gradient("three_factor", Hard(), modulator=0.3, vmap=vmap)
    learner.reset_state()
    step = brainstate.transform.grad(lambda x, y: ((learner(x) - y) ** 2).sum(), learner.param_states)
    singly = [step(jnp.asarray(x), jnp.asarray(y)) for x, y in zip(XS, YS, strict=True)]
    assert np.abs(grads["W"]).max() > 0.1
    close(sum(np.asarray(g["V",]) for g in singly), grads["V"])
    close(sum(np.asarray(g["W",]) for g in singly), grads["W"])


@pytest.mark.parametrize("vmap", [False, True])
def test_a_modulator_of_a_wrong_shape_is_refused_wherever_it_comes_from(vmap):
    def learner(modulator):
        return compile(LeakyTanh(), "three_factor", XS[0], batch_size=B, vmap=vmap, modulator=modulator)

    wrong, states = np.zeros(H + 1), rf"states, \*positions\) = \(1, {'' if vmap else f'{B}, '}{H}\)"
    with pytest.raises(LearnerError, match=states):
        learner(wrong)
    standing = learner(np.zeros((B, 1)))
    with pytest.raises(LearnerError, match=rf"found: *f32\[{H + 1}\][\s\S]*f32\[{B},1\]"):
        standing(XS[0], modulator=wrong)
    standing.modulator.value = wrong
    with pytest.raises(LearnerError, match=states):
        standing(XS[0])


@pytest.mark.parametrize("algorithm", ["three_factor", ETraceConfig(signal="modulatory")])
def test_a_call_that_fails_leaves_the_standing_modulator(algorithm):
    learner = compile(LeakyTanh(), algorithm, XS[0], batch_size=B, modulator=0.3)
    before = learner.modulator.value
    with pytest.raises(LearnerError):
        learner(XS[0, :, 1:], modulator=0.5)
    assert learner.modulator.value is before
    learner(XS[0], modulator=0.5)
    assert float(learner.modulator.value) == 0.5


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 3}, {"window": 2, "vmap": True}])
def test_rtrl_is_exact(options):
    expected = gradient("bptt")[2]
    grads = gradient("rtrl", **options)[2]
    close(grads["W"], expected["W"])
    close(grads["V"], expected["V"])


@pytest.mark.parametrize("name", ["rtrl", "uoro"])
@pytest.mark.parametrize("options", [{}, {"vmap": True}])
@pytest.mark.parametrize("called", ["step by step", "window"])
def test_a_window_holds_the_hidden_states_it_begins_with_and_no_others(name, options, called, monkeypatch):
    """The others are made anew where the steps are run again."""
    tapes = []

    def window(self, plan, window, *args):
        tapes.append([leaf.shape for leaf in jax.tree.leaves(window.tape._replace(x=(), args=()))])
        return plain(self, plan, window, *args)

    plain = InfluenceCarry.window
    monkeypatch.setattr(InfluenceCarry, "window", window)
    learner = compile(LeakyTanh(), name, jnp.zeros((B, I)), batch_size=B, window=T, **options)
    if called == "window":
        learner(MultiStepData(jnp.asarray(XS)))
    else:
        learner.etrace_grad(jnp.asarray(XS), step_fn=lambda x: learner(x).sum())
    assert tapes == [[(1, H) if options else (1, B, H)]]


def test_rtrl_refuses_what_does_not_fit_with_the_numbers():
    with pytest.raises(LearnerError, match="6 hidden units x 21 parameters"):
        gradient("rtrl", limit=100)


def test_snap_comes_closer_with_its_order():
    expected = gradient("bptt")[2]["W"]
    first, second = (gradient("snap", n=n)[2]["W"] for n in (1, 2))
    close(second, expected)
    assert np.abs(first - expected).max() > 0.05
    with pytest.raises(LearnerError, match="order"):
        gradient("snap", n=0)


def test_snap_of_order_one_keeps_what_a_weight_drives():
    """C of a weight into unit o lives on unit o; there it follows the whole diagonal, and q is full."""
    _, model, grads = gradient("snap", n=1)
    steps, V = Steps(model), np.asarray(model.V.value, float)
    e, expected = np.zeros((B, I + H, H)), np.zeros((I + H, H))
    for u, F, error, L in steps:
        q = A * L + (L * F) @ steps.W[I:].T
        expected += np.einsum("bo,bio->io", q, e) + np.einsum("bo,bi->io", L * F, u)
        e = (A + F * np.diag(steps.W[I:]))[:, None, :] * e + u[:, :, None] * F[:, None, :]
        assert L.shape == (error @ V.T).shape
    close(grads["W"], expected)


def test_uoro_is_unbiased_and_draws_fresh_noise():
    expected = gradient("bptt", batch=1, xs=XS[:3, :1], ys=YS[:3, :1])[2]["W"]
    model = LeakyTanh()
    learner = compile(model, "uoro", jnp.zeros((1, I)), batch_size=1, key=1)
    xs, ys = jnp.asarray(XS[:3, :1]), jnp.asarray(YS[:3, :1])

    @brainstate.transform.jit
    def sample():
        learner.reset_state()
        step = lambda x, y: ((learner(x) - y) ** 2).sum()  # noqa: E731
        return learner.etrace_grad(xs, ys, step_fn=step, reduction="sum")[("W",)]

    samples = np.stack([np.asarray(sample()) for _ in range(400)])
    assert np.abs(samples[0] - samples[1]).max() > 1e-3
    error = np.abs(samples.mean(0) - expected) / (samples.std(0) / np.sqrt(len(samples)) + 1e-6)
    assert error.max() < 5
    assert np.abs(gradient("tbptt", batch=1, xs=XS[:3, :1], ys=YS[:3, :1], window=1)[2]["W"] - expected).max() > 0.05


def test_truncated_backpropagation_forgets_at_its_window():
    expected = gradient("bptt")[2]["W"]
    assert np.abs(gradient("tbptt", window=2)[2]["W"] - expected).max() > 0.05
    close(gradient("tbptt", window=T)[2]["W"], expected)


def test_dni_starts_as_truncated_backpropagation_and_learns_the_credit_beyond():
    """Targets of zero make the future credit a function of the state, which the synthetic gradient can learn."""
    model, xs, zeros = LeakyTanh(), np.random.default_rng(5).normal(size=(40, B, I)), np.zeros((40, B, O))
    first = gradient("dni", model, xs=xs[:1], ys=zeros[:1])[2]
    close(first["W"], gradient("tbptt", model, xs=xs[:1], ys=zeros[:1], window=1)[2]["W"])

    expected = gradient("bptt", model, xs=xs, ys=zeros)[2]["W"]
    truncated = gradient("tbptt", model, xs=xs, ys=zeros, window=1)[2]["W"]
    learner = gradient("dni", model, xs=xs, ys=zeros, rate=0.1)[0]

    @brainstate.transform.jit
    def again():
        learner.reset_state()
        step = lambda x, y: ((learner(x) - y) ** 2).sum()  # noqa: E731
        return learner.etrace_grad(jnp.asarray(xs), jnp.asarray(zeros), step_fn=step, reduction="sum")[("W",)]

    for _ in range(300):
        learnt = np.asarray(again())
    before, after = (np.linalg.norm(g - expected) for g in (truncated, learnt))
    assert after < 0.4 * before
    with pytest.raises(LearnerError, match="vmap"):
        gradient("dni", vmap=True)
    with pytest.raises(LearnerError, match="rate"):
        gradient("dni", rate=3.0)


@pytest.mark.parametrize("name", ["rtrl", "snap", "uoro"])
def test_influences_are_kept_in_single_precision(name):
    class Half(LeakyTanh):
        def update(self, x):
            self.h.value = self.h.value.astype(jnp.bfloat16)
            return super().update(x.astype(jnp.bfloat16))

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, H), jnp.bfloat16))

    model = Half()
    for state in (model.W, model.V):
        state.value = state.value.astype(jnp.bfloat16)
    learner, _, grads = gradient(name, model)
    kept = [leaf.dtype for leaf in jax.tree.leaves(learner.etraces.value) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(kept) == {jnp.dtype(jnp.float32)}
    assert grads["W"].dtype == jnp.bfloat16
    if name == "rtrl":
        exact = gradient("bptt")[2]["W"]
        assert np.abs(grads["W"].astype(np.float32) - exact).max() < 0.03 * np.abs(exact).max()


def test_a_nan_does_not_outlive_a_reset_in_the_guess_of_future_credit():
    xs = XS.copy()
    xs[2] = np.nan
    learner, _, grads = gradient("dni", xs=xs)
    assert np.isnan(grads["W"]).all()
    learner.reset_state()
    step = lambda x, y: ((learner(x) - y) ** 2).sum()  # noqa: E731
    assert np.isfinite(learner.etrace_grad(XS, YS, step_fn=step)["W",]).all()
    learnt = learner.etraces.value
    learner.reset_state()
    assert all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (learnt, learner.etraces.value)), strict=True))


@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        ({}, "d_rtrl", {}),
        ({"signal": "symmetric", "filter": "kappa", "kappa": 0.5}, "eprop", {"kappa_filter_decay": 0.5}),
        (
            {"factorisation": "input_output", "signal": "symmetric", "decay": (0.9, 0.3)},
            "pp_prop",
            {"decay_or_rank": (0.9, 0.3)},
        ),
        (
            {"factorisation": "influence", "scope": "neighbourhood", "order": 1, "schedule": "window", "window": 1},
            "snap",
            {"n": 1},
        ),
        ({"scope": "coupled", "signal": "symmetric"}, "ostl_recurrent", {}),
        ({"factorisation": "none", "scope": "full", "schedule": "window", "window": 2}, "tbptt", {"window": 2}),
    ],
)
def test_a_config_names_the_point_of_a_class(config, name, options):
    model = LeakyTanh()
    got, expected = gradient(ETraceConfig(**config), model)[2], gradient(name, model, **options)[2]
    close(got["W"], expected["W"])
    close(got["V"], expected["V"])


def test_illegal_configs_name_the_legal_ones():
    with pytest.raises(LearnerError, match="scope in \\('full',\\)"):
        ETraceConfig(factorisation="rank_one", schedule="window", window=1, key=jax.random.key(0))
    with pytest.raises(LearnerError, match="need `kappa`"):
        ETraceConfig(signal="symmetric", filter="kappa")
    with pytest.raises(LearnerError, match="no such choice"):
        ETraceConfig(signal="loud")
    assert hash(ETraceConfig()) == hash(ETraceConfig())


def test_an_output_that_bypasses_the_stored_state_is_told():
    """Signals at the states would be zero there, and with them every gradient."""

    class Bypass(LeakyTanh):
        def update(self, x):
            y = matmul(jnp.concatenate([x, self.h.value], -1), self.W.value)
            v = A * self.h.value + (1 - A) * jnp.tanh(y)
            self.h.value = 1.0 * v
            return matmul(v, self.V.value)

    with pytest.warns(UserWarning, match="stored values") as told:
        assert np.abs(gradient("eprop", Bypass())[2]["W"]).max() == 0
    assert told[0].filename == __file__
    assert np.abs(gradient("d_rtrl", Bypass())[2]["W"]).max() > 0.1


class HeadReaders(brainstate.nn.Module):
    """Two populations that read each other at the head of the step; only the first is read out."""

    def __init__(self):
        super().__init__()
        self.back = brainstate.ParamState(0.3 * jnp.ones((4, 8)))
        self.forth = brainstate.ParamState(0.3 * jnp.ones((8, 4)))

    def init_state(self, batch_size=None):
        self.e = brainstate.HiddenState(jnp.full(8, 0.1))
        self.i = brainstate.HiddenState(jnp.full(4, 0.1))

    def update(self, x):
        e, i = self.e.value, self.i.value
        self.e.value = 0.9 * e + jnp.tanh(x + matmul(jnp.tanh(i), self.back.value))
        self.i.value = 0.8 * i + jnp.tanh(matmul(jnp.tanh(e), self.forth.value))
        return self.e.value


def test_states_that_no_output_follows_from_in_the_same_step_are_told():
    """The signal L^t of such states is zero, and with it the gradient of what drives them."""
    xs = jnp.ones((5, 8))

    def gradient_of_forth(algorithm, **options):
        learner = compile(HeadReaders(), algorithm, xs[0], **options)
        return np.abs(learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).mean())["forth",]).max()

    for algorithm, options in (("eprop", {}), ("pp_prop", {"decay_or_rank": 0.9}), ("ottt", {"decay": 0.9})):
        with pytest.warns(
            UserWarning, match=r"No output follows from the new values of \[\['i'\]\].*\['forth'\]"
        ) as told:
            assert gradient_of_forth(algorithm, **options) == 0
        assert told[0].filename == __file__
    assert gradient_of_forth("d_rtrl") > 0.001  # and says nothing
    gradient_of_forth("three_factor")  # whose signal does not come from the output


def test_keywords_reach_the_model_of_dni(model, data, loss, distance):
    class Scaled(type(model)):
        def update(self, x, twice):
            return super().update(x) * (2 if twice else 1)

    (xs, ys), grads = (value[:2] for value in data), []
    for algorithm in ("dni", "tbptt"):  # alike until the guess has learnt
        learner = compile(Scaled(), algorithm, xs[0], batch_size=xs.shape[1], kwargs={"twice": True}, window=2)
        grads.append(learner.etrace_grad(xs, ys, step_fn=lambda x, y, run=learner: loss(run(x, twice=True), y)))
    assert distance(*grads) < 1e-6


def test_the_guess_of_dni_keeps_its_dtype(recurrent_model, data, loss):
    xs, ys = data
    learner = compile(recurrent_model, "dni", xs[0], batch_size=xs.shape[1], window=2, trace_dtype=jnp.bfloat16)
    learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y))
    assert {leaf.dtype for leaf in jax.tree.leaves(learner.etraces.value)} == {jnp.dtype(jnp.bfloat16)}
