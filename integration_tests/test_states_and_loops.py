"""States with several columns, branches and loops, learnt online: gradients of models written in two ways agree."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace

I, H, T, B = 2, 3, 5, 2


def weight(*shape: int) -> jax.Array:
    return jnp.asarray(0.5 * np.random.default_rng(0).normal(size=shape), jnp.float32)


def inputs(*batch: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(T, *batch, I)), jnp.float32)


class Written(brainstate.nn.Module):
    """A model of one weight, whose states are made by `make` and whose step is `step(model, x)`."""

    def __init__(self, make: Any, step: Any, num_in: int = I):
        super().__init__()
        self.w = brainstate.ParamState(weight(num_in, H))
        self._make, self._step = make, step

    def init_state(self, batch_size: int | None = None) -> None:
        for name, state in self._make(() if batch_size is None else (batch_size,)).items():
            setattr(self, name, state)

    def update(self, x: Any) -> Any:
        return self._step(self, x)


def gradient(model: Any, algorithm: str = "d_rtrl", batch: tuple[int, ...] = (), **options: Any) -> Any:
    xs = inputs(*batch)
    learner = braintrace.compile(model, algorithm, xs[0], batch_size=batch[0] if batch else None, **options)
    return learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum")["w",]


def update(g: Any, v: Any, x: Any, w: Any) -> Any:
    g = 0.8 * g + braintrace.matmul(jnp.concatenate([x, jnp.tanh(v)], -1), w)
    return g, 0.9 * v * (1 - jax.nn.sigmoid(v)) + g


def apart() -> Written:
    def step(m: Any, x: Any) -> Any:
        m.g.value, m.v.value = update(m.g.value, m.v.value, x, m.w.value)
        return m.v.value

    def make(batch: Any) -> Any:
        return {name: brainstate.HiddenState(jnp.zeros((*batch, H))) for name in "gv"}

    return Written(make, step, I + H)


def together(state: Any, names: Any) -> Written:
    def step(m: Any, x: Any) -> Any:
        g, v = update(*(m.h.get_value(n) for n in names), x, m.w.value)
        m.h.set_value(dict(zip(names, (g, v), strict=True)))
        return m.h.get_value(names[1])

    return Written(lambda batch: {"h": state(batch)}, step, I + H)


STATES = {
    "group": lambda: together(lambda batch: brainstate.HiddenGroupState(jnp.zeros((*batch, H, 2))), (0, 1)),
    "tree": lambda: together(
        lambda batch: brainstate.HiddenTreeState({n: jnp.zeros((*batch, H)) for n in "gv"}), ("g", "v")
    ),
}


@pytest.mark.parametrize("algorithm", ["d_rtrl", "pp_prop", "rtrl"])
@pytest.mark.parametrize(("batch", "vmap"), [((), False), ((B,), False), ((B,), True)])
@pytest.mark.parametrize("name", STATES)
def test_columns_of_one_state_are_states(name, batch, vmap, algorithm):
    options = {"vmap": vmap} | ({"decay_or_rank": 0.9} if algorithm == "pp_prop" else {})
    found = gradient(STATES[name](), algorithm, batch, **options)
    np.testing.assert_allclose(found, gradient(apart(), algorithm, batch, **options), rtol=1e-5)


LAYOUTS = {
    "batch last": (lambda v: v.T, lambda v: v.T),
    "batch inside": (lambda v: jnp.moveaxis(v.reshape(B, 1, H), 0, 1), lambda v: v.reshape(B, H)),
    "two axes of units": (lambda v: v.reshape(B, H, 1), lambda v: v.reshape(B, H)),
    "reversed": (lambda v: v[:, ::-1], lambda v: v[:, ::-1]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_states_may_be_laid_out_in_any_way(name):
    inwards, outwards = LAYOUTS[name]

    def step(m: Any, x: Any) -> Any:
        g, v = update(outwards(m.g.value), outwards(m.v.value), x, m.w.value)
        m.g.value, m.v.value = inwards(g), inwards(v)
        return v

    def make(batch: Any) -> Any:
        return {n: brainstate.HiddenState(inwards(jnp.zeros((*batch, H)))) for n in "gv"}

    found, expected = (gradient(model, batch=(B,)) for model in (Written(make, step, I + H), apart()))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def integrator(advance: Any) -> Written:
    def step(m: Any, x: Any) -> Any:
        m.v.value = advance(m.v.value, x, m.w.value)
        return m.v.value

    return Written(lambda batch: {"v": brainstate.HiddenState(jnp.zeros((*batch, H)))}, step)


def in_a_loop(v: Any, x: Any, w: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda k, v: 0.9 * v + jnp.tanh(braintrace.matmul((k + 1) * x, w)), v)


def around_a_loop(v: Any, x: Any, w: Any) -> Any:
    """The weight's operation before a loop of many iterations."""
    y = braintrace.matmul(x, w)
    return jax.lax.fori_loop(0, 100, lambda k, v: 0.99 * v + 0.1 * jnp.tanh(y), v)


def brainstate_loop(v: Any, x: Any, w: Any) -> Any:
    state = brainstate.ShortTermState(v)

    def body(k: Any) -> None:
        state.value = 0.9 * state.value + jnp.tanh(braintrace.matmul(x, w))

    brainstate.transform.for_loop(body, jnp.arange(3))
    return state.value


def branching(v: Any, x: Any, w: Any) -> Any:
    y = jax.lax.cond(x.sum() > 0, lambda: braintrace.matmul(x, w), lambda: braintrace.matmul(-x, 2 * w))
    return 0.9 * v + jnp.tanh(y)


def until_it_is_large(v: Any, x: Any, w: Any) -> Any:
    """A loop of unknown length, whose iterations keep positions, over a state and a drive."""
    y = jnp.tanh(braintrace.matmul(x, w))
    return 0.3 * jax.lax.while_loop(lambda v: jnp.abs(v).max() < 2, lambda v: 1.3 * v + 0.5 * jnp.sin(v) + y + 0.1, v)


def switching(v: Any, x: Any, w: Any) -> Any:
    index = jnp.clip(jnp.floor(2 * x.sum()), 0, 2).astype(int)
    y = jax.lax.switch(
        index, [lambda: braintrace.matmul(x, w), lambda: jnp.sin(braintrace.matmul(2 * x, w)), lambda: jnp.ones_like(v)]
    )
    return 0.9 * v + y


def loop_in_a_branch(v: Any, x: Any, w: Any) -> Any:
    """Both open: the branch becomes a choice, the loop of forty iterations is followed as a whole."""

    def many(v: Any) -> Any:
        return jax.lax.fori_loop(0, 40, lambda k, v: 0.98 * v + 0.1 * jnp.tanh(braintrace.matmul((k + 1) * x, w)), v)

    return jax.lax.cond(x.sum() > 0, many, lambda v: 0.5 * v + braintrace.matmul(x, w), v)


def loops_in_loops(v: Any, x: Any, w: Any) -> Any:
    """A loop of unknown length inside one of known length, a marked operation before both."""
    y = jnp.tanh(braintrace.matmul(x, w))

    def substep(k: Any, v: Any) -> Any:
        return 0.3 * jax.lax.while_loop(lambda v: jnp.abs(v).max() < 2, lambda v: 1.3 * v + jnp.sin(v) + y + 0.1, v)

    return jax.lax.fori_loop(0, 2, substep, v)


LOOPS = {
    f.__name__: f
    for f in (
        in_a_loop,
        around_a_loop,
        brainstate_loop,
        branching,
        until_it_is_large,
        switching,
        loop_in_a_branch,
        loops_in_loops,
    )
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_and_branches_are_exact(name):
    found = gradient(integrator(LOOPS[name]))
    np.testing.assert_allclose(found, gradient(integrator(LOOPS[name]), "bptt"), rtol=2e-5)


def called_twice(v: Any, x: Any, w: Any) -> Any:
    return 0.9 * v + jnp.tanh(braintrace.matmul(x, w)) * jnp.sin(braintrace.matmul(x**2, w))


def called_for_other_positions(v: Any, x: Any, w: Any) -> Any:
    return 0.9 * v + jnp.tanh(braintrace.matmul(x, w)) * jnp.sin(jnp.roll(braintrace.matmul(x**2, w), 1, -1))


@pytest.mark.parametrize("fold", [1, 2, 7, T])
@pytest.mark.parametrize(("advance", "traces"), [(in_a_loop, 1), (called_twice, 1), (called_for_other_positions, 2)])
def test_uses_of_a_weight_share_a_trace(advance, traces, fold):
    """The traces of all uses of a weight are one, and its gradient is that of backpropagation through time."""
    xs = inputs(B)
    learner = braintrace.compile(integrator(advance), "d_rtrl", xs[0], batch_size=B, fold=fold)
    held = learner.memory_report().traces
    assert (len(held), sum(held.values())) == (traces, traces * 4 * B * I * H)
    found = learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum")["w",]
    np.testing.assert_allclose(found, gradient(integrator(advance), "bptt", (B,)), rtol=2e-5)


def test_factors_of_several_uses_stay_apart():
    """An outer product of sums is not the sum of outer products: pp_prop keeps two factors for each use."""
    xs = inputs(B)
    learner = braintrace.compile(integrator(in_a_loop), "pp_prop", xs[0], batch_size=B, decay_or_rank=0.9)
    assert (len(learner.etraces.value["x"]), len(learner.etraces.value["f"])) == (3, 3)


def test_the_policy_reaches_the_compiler():
    policy = braintrace.ControlFlowPolicy(unroll_limit=2, long_scan="close")
    with pytest.raises(braintrace.NotSupportedError, match="unroll_limit=3"):
        gradient(integrator(in_a_loop), control_flow=policy)


def test_mixing_may_be_refused():
    with pytest.raises(braintrace.CompilationError, match="Positions are mixed"):
        gradient(
            integrator(lambda v, x, w: jax.nn.softmax(v) + braintrace.matmul(x, w)),
            on_mixing="error",
        )
