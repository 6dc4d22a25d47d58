"""Traces as factors: proven where it holds, refused where D or F could change, and never a change of numbers."""

import brainstate
import jax
import jax.numpy as jnp
import pytest

from braintrace_algos import D_RTRL, compile
from braintrace_algos._factored_rules import FactoredTraceRule
from braintrace_primitives import matmul

B, I, H, O = 3, 4, 5, 2


def normal(seed, *shape):
    return 0.5 * jax.random.normal(jax.random.key(seed), shape)


class Integrators(brainstate.nn.Module):
    """A current and a voltage that leak; `change` breaks the proof in one of the ways there are."""

    def __init__(self, change=None):
        super().__init__()
        self.change = change
        self.w = brainstate.ParamState({"weight": normal(0, I, H), "bias": normal(1, H)})
        self.out = brainstate.ParamState(normal(2, H, O))

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        self.g = brainstate.HiddenState(jnp.zeros((*lead, H)))
        self.v = brainstate.HiddenState(jnp.zeros((*lead, H)))

    def update(self, x):
        leak = jnp.linspace(0.1, 0.9, H) if self.change == "position" else 0.7
        y = matmul(x, self.w.value["weight"], self.w.value["bias"])
        self.g.value = leak * self.g.value + (jnp.tanh(y) if self.change == "nonlinear" else y)
        reset = jax.nn.sigmoid(self.v.value) if self.change == "reset" else 0.1
        self.v.value = (1.0 - reset) * self.v.value + 0.3 * self.g.value
        return matmul(jnp.tanh(self.v.value), self.out.value)


def is_factored(learner):
    return [isinstance(c.rule, FactoredTraceRule) for c in learner.plan.traced_couplings]


@pytest.mark.parametrize("options", [{}, {"vmap": True}, {"vjp_method": "multi-step", "window": 3}])
def test_constant_derivatives_are_found_and_change_no_number(data, loss, distance, options):
    xs, ys = data
    model = Integrators()
    learner, reference = (compile(model, a, xs[0], batch_size=B, **o) for a, o in ((D_RTRL, options), ("bptt", {})))
    assert is_factored(learner) == [True]
    elements = sum(v.size for v in jax.tree.leaves(learner.etraces.value))
    assert elements == 2 * B * I + 2 * (B if "vmap" in options else 1)
    assert "filtered inputs" in learner.report.notes
    results = []
    for f in (learner, reference):
        f.reset_state()
        results.append(f.etrace_grad(xs, ys, step_fn=lambda x, y, f=f: loss(f(x), y), reduction="sum"))
    assert distance(*results) < 1e-5


@pytest.mark.parametrize("change", [None, "reset"])
def test_single_steps_agree_too(data, loss, distance, change):
    xs, ys = data
    learner = compile(Integrators(change), D_RTRL, xs[0], batch_size=B)
    whole = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    learner.reset_state()
    gradient = brainstate.transform.jit(
        brainstate.transform.grad(lambda x, y: loss(learner(x), y), learner.param_states)
    )
    total = jax.tree.map(jnp.zeros_like, whole)
    for x, y in zip(xs, ys, strict=True):
        total = jax.tree.map(jnp.add, total, gradient(x, y))
    assert distance(total, whole) < 1e-5


@pytest.mark.parametrize("fold", [1, 3, 7])
@pytest.mark.parametrize("options", [{}, {"vmap": True}, {"vjp_method": "multi-step", "window": 3}])
def test_a_synapse_is_factored_in_front_of_a_membrane_that_is_not(data, loss, distance, options, fold):
    xs, ys = data
    learner, reference = (
        compile(Integrators("reset"), a, xs[0], batch_size=B, **o) for a, o in ((D_RTRL, options), ("bptt", {}))
    )
    (trace,) = learner.etraces.value.values()
    copies = B if "vmap" in options else 1
    assert sum(v.size for v in jax.tree.leaves(trace)) == B * I + copies + B * I * H + B * H
    assert "D and F into g are constants" in learner.report.notes
    results = []
    for f in (learner, reference):
        f.reset_state()
        how = {"fold": fold} if f is learner and "window" not in options else {}
        results.append(f.etrace_grad(xs, ys, step_fn=lambda x, y, f=f: loss(f(x), y), reduction="sum", **how))
    assert distance(*results) < 1e-5


@pytest.mark.parametrize("change", ["position", "nonlinear"])
def test_what_varies_is_not_factored(data, change):
    learner = compile(Integrators(change), D_RTRL, data[0][0], batch_size=B)
    assert is_factored(learner) == [False]
    assert "filtered inputs" not in learner.report.notes


class Feedforward(brainstate.nn.Module):
    """A vanilla recurrent layer: position by position it forgets at once."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState({"weight": normal(0, I + H, H), "bias": normal(1, H)})
        self.out = brainstate.ParamState(normal(2, H, O))

    def init_state(self, batch_size=None):
        self.h = brainstate.HiddenState(jnp.zeros((H,) if batch_size is None else (batch_size, H)))

    def update(self, x):
        x = jnp.concatenate([x, self.h.value], -1)
        self.h.value = jnp.tanh(matmul(x, self.w.value["weight"], self.w.value["bias"]))
        return matmul(self.h.value, self.out.value)


@pytest.mark.parametrize("vmap", [False, True])
def test_where_nothing_is_remembered_the_latest_step_says_it_all(data, loss, distance, vmap):
    """Windows of one step: each looks back on one step, and no further, as BPTT over pairs of steps does."""
    xs, ys = data
    options = {"vjp_method": "multi-step", "window": 1, "vmap": vmap}
    learner = compile(Feedforward(), D_RTRL, xs[0], batch_size=B, **options)
    (trace,) = learner.etraces.value.values()
    assert sum(v.size for v in jax.tree.leaves(trace)) == B * (I + H) + B * H
    found = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")

    def step(w, h, x):
        return jnp.tanh(jnp.concatenate([x, h], -1) @ w["weight"] + w["bias"])

    def latest(w, h, xs, y):
        """Loss of the last step of one or two from h, which is held fixed."""
        for x in xs:
            h = step(w, h, x)
        return loss(h @ out, y)

    w, out = learner.param_states["w",].value, learner.param_states["out",].value
    h = jnp.zeros((B, H))
    total = jax.grad(latest)(w, h, xs[:1], ys[0])
    for t in range(1, len(xs)):
        total = jax.tree.map(jnp.add, total, jax.grad(latest)(w, h, xs[t - 1 : t + 1], ys[t]))
        h = step(w, h, xs[t - 1])
    assert distance(found["w",], total) < 1e-5


class WithEmptyPart(brainstate.nn.Module):
    """A layer without units, as sizes from a table may give one, beside another that drives the loss."""

    def __init__(self):
        super().__init__()
        self.none = brainstate.ParamState(jnp.zeros((I, 0)))
        self.w = brainstate.ParamState(normal(0, I, H))

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        self.empty = brainstate.HiddenState(jnp.zeros((*lead, 0)))
        self.h = brainstate.HiddenState(jnp.zeros((*lead, H)))

    def update(self, x):
        self.empty.value = 0.9 * self.empty.value + matmul(x, self.none.value)
        self.h.value = 0.9 * jnp.sin(self.h.value) + matmul(x, self.w.value)
        return self.h.value + self.empty.value.sum(-1, keepdims=True)


@pytest.mark.parametrize("options", [{}, {"vmap": True}, {"vjp_method": "multi-step", "window": 2}])
def test_states_of_no_units(data, loss, distance, options):
    xs, ys = data[0], data[0][..., :1]
    found = []
    for algorithm, more in ((D_RTRL, options), ("bptt", {})):
        learner = compile(WithEmptyPart(), algorithm, xs[0], batch_size=B, **more)
        found.append(learner.etrace_grad(xs, ys, step_fn=lambda x, y, f=learner: loss(f(x), y), fold=2))
        assert found[-1]["none",].shape == (I, 0)
    assert distance(found[0]["w",], found[1]["w",]) < 1e-5
