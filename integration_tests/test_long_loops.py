"""Loops of many iterations around marked operations: the gradient is that of the unrolled program.

The unrolled loop is understood operation by operation; the descent sees one operation on all iterations. Strict
gradients and certificates must be the same, and multi-step gradients those of backpropagation through time.
"""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from online import precision

import braintrace
from braintrace import ControlFlowPolicy, matmul

pytestmark = [pytest.mark.filterwarnings(f"ignore:{kind}") for kind in ("PLAIN_PARAMETER_TEMPORAL", "STATE_MISMATCH")]
I, H, T, B, N = 2, 3, 3, 2, 3
DESCEND, UNROLL = ControlFlowPolicy(unroll_limit=0), ControlFlowPolicy(unroll_limit=100)


class Substeps(brainstate.nn.Module):
    """Two states, four weights, and a step ``update(model, x)`` of many substeps."""

    def __init__(self, step: Any):
        super().__init__()
        self._step = step
        shapes = {"w": (I, H), "u": (I + H, H), "r": (I + H, H), "o": (H, H)}
        for seed, (name, shape) in enumerate(shapes.items()):
            value = 0.5 * np.random.default_rng(seed).normal(size=shape)
            setattr(self, name, brainstate.ParamState(jnp.asarray(value)))

    def init_state(self, batch_size: int | None = None) -> None:
        batch = () if batch_size is None else (batch_size,)
        self.v = brainstate.HiddenState(jnp.zeros((*batch, H)))
        self.g = brainstate.HiddenState(jnp.zeros((*batch, H)))

    def update(self, x: Any) -> Any:
        return self._step(self, x)


def joined(*parts: Any) -> Any:
    return jnp.concatenate(parts, -1)


def driven(m: Any, x: Any) -> Any:
    m.v.value = jax.lax.fori_loop(0, N, lambda k, v: 0.9 * v + jnp.tanh(matmul((k + 1) * x, m.w.value)), m.v.value)
    return m.v.value


def unchanging(m: Any, x: Any) -> Any:
    m.v.value = jax.lax.fori_loop(0, N, lambda k, v: 0.9 * v + jnp.tanh(v + matmul(x, m.w.value)), m.v.value)
    return m.v.value


def synapse(m: Any, x: Any) -> Any:
    """A membrane and the synapse that feeds it in the same substep, backwards over the inputs; an output on the way."""

    def body(carry: Any, k: Any) -> Any:
        v, g = carry
        g = 0.8 * g + matmul(joined(k * x, jnp.tanh(v)), m.u.value)
        v = 0.9 * v * (1 - jax.nn.sigmoid(v)) + g
        return (v, g), jnp.sin(v)

    start = m.v.value, m.g.value
    (m.v.value, m.g.value), out = jax.lax.scan(body, start, jnp.arange(1.0, N + 1), reverse=True)
    return out.sum(0)


def gated(m: Any, x: Any) -> Any:
    """A weight that reaches the state through another operation only."""

    def body(k: Any, h: Any) -> Any:
        gate = jax.nn.sigmoid(matmul(joined(x, h), m.r.value))
        return 0.5 * h + jnp.tanh(matmul(joined(x, gate * h), m.u.value))

    m.v.value = jax.lax.fori_loop(0, N, body, m.v.value)
    return m.v.value


def read_out(m: Any, x: Any) -> Any:
    """A readout of every substep: its operation does not lead back, so that its input is not cut."""

    def body(v: Any, k: Any) -> Any:
        out = matmul(jnp.tanh(v), m.o.value)
        return 0.9 * v + jnp.tanh(matmul(joined(k * x, v), m.u.value)), out

    m.v.value, out = jax.lax.scan(body, m.v.value, jnp.arange(1.0, N + 1))
    return out.sum(0)


def inner_memory(m: Any, x: Any) -> Any:
    """Only the last iteration feeds the state; the others go through it."""
    z = jax.lax.fori_loop(0, N, lambda k, z: jnp.tanh(matmul(joined(x, z), m.u.value)), jnp.zeros_like(m.v.value))
    m.v.value = 0.9 * m.v.value + z
    return m.v.value


def nested(m: Any, x: Any) -> Any:
    def substep(k: Any, v: Any) -> Any:
        return 0.9 * v + 0.3 * jnp.tanh(matmul(joined((k + 1) * x, v), m.u.value))

    def body(k: Any, v: Any) -> Any:
        return jax.lax.fori_loop(0, 2, substep, v) + 0.1 * matmul(k * x + x, m.w.value)

    m.v.value = jax.lax.fori_loop(0, N, body, m.v.value)
    return m.v.value


def nested_gated(m: Any, x: Any) -> Any:
    m.v.value = jax.lax.fori_loop(0, 2, lambda k, v: gated(Carried(m, v), (k + 1) * x), m.v.value)
    return m.v.value


class Carried:
    """The weights of a model beside a state of a loop's own."""

    def __init__(self, m: Any, v: Any):
        self.u, self.r, self.v = m.u, m.r, brainstate.ShortTermState(v)


def layers(m: Any, x: Any) -> Any:
    def body(k: Any, carry: Any) -> Any:
        v, g = carry
        v = 0.9 * v + jnp.tanh(matmul(joined((k + 1) * x, v), m.u.value))
        return v, 0.7 * g + jnp.tanh(matmul(v, m.o.value))

    m.v.value, m.g.value = jax.lax.fori_loop(0, N, body, (m.v.value, m.g.value))
    return m.g.value


def also_plain(m: Any, x: Any) -> Any:
    """A parameter that the loop uses both marked and plain."""

    def body(k: Any, v: Any) -> Any:
        return 0.9 * v * jnp.tanh(m.u.value.sum()) + jnp.tanh(matmul(joined((k + 1) * x, v), 2 * m.u.value))

    m.v.value = jax.lax.fori_loop(0, N, body, m.v.value)
    return m.v.value


def twice(m: Any, x: Any) -> Any:
    """One weight in two operations of an iteration, the second of which reads the first."""

    def body(k: Any, v: Any) -> Any:
        y = matmul(joined((k + 1) * x, v), m.u.value)
        return 0.9 * v + jnp.tanh(y) * matmul(joined(x, y), m.u.value)

    m.v.value = jax.lax.fori_loop(0, N, body, m.v.value)
    return m.v.value


def branching(m: Any, x: Any) -> Any:
    def body(k: Any, v: Any) -> Any:
        taken = jax.lax.cond(k % 2 == 0, lambda: matmul(joined(k * x, v), m.u.value), lambda: matmul(k * x, m.w.value))
        return 0.9 * v + jnp.tanh(taken)

    m.v.value = jax.lax.fori_loop(0, N, body, m.v.value)
    return m.v.value


QUICK = (driven, unchanging, synapse, gated, read_out, nested)
SLOW = (inner_memory, nested_gated, layers, also_plain, twice, branching)
MODELS = [*QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)]


def gradient(step: Any, algorithm: str = "d_rtrl", policy: Any = None, **options: Any) -> tuple[Any, Any]:
    xs = jnp.asarray(np.random.default_rng(5).normal(size=(T, B, I)))
    learner = braintrace.compile(Substeps(step), algorithm, xs[0], batch_size=B, control_flow=policy, **options)
    grads = learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(learner(x) ** 2), reduction="sum")
    return learner, {path[0]: value for path, value in grads.items() if np.abs(value).max() > 0}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-10 * np.abs(value).max(), err_msg=name)


def omissions(learner: Any) -> dict[Any, set[str]]:
    found: dict[Any, set[str]] = {}
    for certificate in learner.graph.certificates():
        found.setdefault(certificate.operation.weight_path, set()).update(o.value for o in certificate.omissions)
    return found


@pytest.fixture(autouse=True)
def double():
    with precision("float64"):
        yield


@pytest.mark.parametrize("step", MODELS)
def test_a_loop_has_the_gradient_of_the_unrolled_one(step):
    descended, found = gradient(step, policy=DESCEND)
    unrolled, expected = gradient(step, policy=UNROLL)
    assert_equal(found, expected)
    assert omissions(descended) == omissions(unrolled)


@pytest.mark.parametrize("step", [gated, *(pytest.param(f, marks=pytest.mark.slow) for f in (*QUICK, *SLOW))])
def test_a_whole_window_is_backpropagation(step):
    _, found = gradient(step, policy=DESCEND, vjp_method="multi-step", window=T)
    assert_equal(found, gradient(step, "bptt")[1])


@pytest.mark.parametrize("options", [{"fold": 1}, {"fold": T, "vmap": True}])
def test_folds_and_mapped_copies_agree(options):
    assert_equal(gradient(synapse, policy=DESCEND, **options)[1], gradient(synapse, policy=UNROLL)[1])


@pytest.mark.parametrize("algorithm", ["pp_prop", "ostl_recurrent"])
def test_other_carries_see_the_iterations_of_the_unrolled_loop(algorithm):
    options = {"decay_or_rank": 0.9} if algorithm == "pp_prop" else {}
    found = gradient(gated, algorithm, DESCEND, **options)[1]
    assert_equal(found, gradient(gated, algorithm, UNROLL, **options)[1])


def exponential_euler(m: Any, x: Any) -> Any:
    """A hundred substeps of a leaky membrane with a synapse whose input changes from substep to substep."""

    def body(carry: Any, k: Any) -> Any:
        v, g = carry
        g = 0.98 * g + 0.1 * matmul(jnp.sin(k * x), m.w.value)
        return (v + (1 - jnp.exp(-0.01 * (1 + g**2))) * (g - v), g), None

    (m.v.value, m.g.value), _ = jax.lax.scan(body, (m.v.value, m.g.value), jnp.linspace(0.0, 1.0, 100))
    return m.v.value


def test_a_hundred_substeps_are_exact():
    """One trace, and the gradient of backpropagation through all substeps of all steps."""
    learner, found = gradient(exponential_euler)
    assert all(c.exact for c in learner.graph.certificates())
    assert list(learner.memory_report().traces.values()) == [8 * 2 * B * I * H]
    assert_equal(found, gradient(exponential_euler, "bptt")[1])
