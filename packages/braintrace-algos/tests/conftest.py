"""Models of the learners' tests, written on the primitives alone."""

import brainstate
import jax
import jax.numpy as jnp
import pytest

from braintrace_primitives import element_wise, matmul

B, I, H, O, T = 3, 4, 5, 2, 7


def normal(seed, *shape):
    return 0.5 * jax.random.normal(jax.random.key(seed), shape)


class Leaky(brainstate.nn.Module):
    """A leaky layer of two chained states, a marked gain and a readout: exact under the strict rule."""

    def __init__(self, recurrent=False):
        super().__init__()
        self.recurrent = recurrent
        self.w = brainstate.ParamState({"weight": normal(0, I + H * recurrent, H), "bias": normal(1, H)})
        self.gain = brainstate.ParamState(1.0 + normal(2, H))
        self.out = brainstate.ParamState(normal(3, H, O))

    def init_state(self, batch_size=None):
        lead = () if batch_size is None else (batch_size,)
        self.g = brainstate.HiddenState(jnp.zeros((*lead, H)))
        self.v = brainstate.HiddenState(jnp.zeros((*lead, H)))

    def update(self, x):
        if self.recurrent:
            x = jnp.concatenate([x, jnp.tanh(self.v.value)], -1)
        self.g.value = 0.7 * self.g.value + matmul(x, self.w.value["weight"], self.w.value["bias"])
        self.v.value = 0.9 * self.v.value + element_wise(self.gain.value) * jnp.tanh(self.g.value)
        return matmul(jnp.tanh(self.v.value), self.out.value)


@pytest.fixture
def model():
    return Leaky()


@pytest.fixture
def recurrent_model():
    return Leaky(recurrent=True)


@pytest.fixture(scope="session")
def data():
    return normal(10, T, B, I), normal(11, T, B, O)


def squared(out, y):
    return jnp.mean((out - y) ** 2)


@pytest.fixture
def loss():
    return squared


@pytest.fixture
def bptt():
    """Backpropagation through time of a `Leaky` model, by JAX alone."""

    def gradient(model, xs, ys, loss=squared):
        def total(theta):
            def step(carry, xy):
                g, v = carry
                x, y = xy
                if model.recurrent:
                    x = jnp.concatenate([x, jnp.tanh(v)], -1)
                g = 0.7 * g + x @ theta[("w",)]["weight"] + theta[("w",)]["bias"]
                v = 0.9 * v + theta[("gain",)] * jnp.tanh(g)
                return (g, v), loss(jnp.tanh(v) @ theta[("out",)], y)

            zeros = jnp.zeros((*xs.shape[1:-1], H))
            return jax.lax.scan(step, (zeros, zeros), (xs, ys))[1].sum()

        theta = {p: s.value for p, s in brainstate.graph.states(model, brainstate.ParamState).items()}
        return jax.grad(total)(theta)

    return gradient


@pytest.fixture
def distance():
    """Largest difference between two gradients, relative to the larger entry of each leaf."""

    def relative(a, b):
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return max(float(jnp.abs(u - v).max() / jnp.abs(v).max()) for u, v in pairs)

    return relative
