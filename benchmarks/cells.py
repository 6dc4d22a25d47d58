"""The cells in plain JAX, as one writes them for backpropagation through time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = dict[tuple[str, ...], Any]
States = tuple[jax.Array, ...]

OUTPUTS = 10
IMAGE = (16, 16)
LEAK, SYNAPSE, ADAPTATION, STRENGTH = 0.9, 0.8, 0.97, 0.1


class Cell(NamedTuple):
    """A recurrent layer without its readout.

    Attributes
    ----------
    step : callable
        ``step(params, states, x) -> states``; the last state is what the readout sees, through `output`.
    num_states : int
    output : callable
        From the new states to the readout's input.
    """

    step: Callable[[Params, States, jax.Array], States]
    num_states: int
    output: Callable[[States], jax.Array] = lambda states: states[-1]


def dense(p: dict[str, jax.Array], *inputs: jax.Array) -> jax.Array:
    """A dense layer on the concatenated inputs."""
    return jnp.concatenate(inputs, -1) @ p["weight"] + p["bias"]


def rnn(params: Params, states: States, x: jax.Array) -> States:
    """Vanilla recurrent network."""
    return (jax.nn.relu(dense(params["rnn", "W", "weight"], x, states[0])),)


def gru(params: Params, states: States, x: jax.Array) -> States:
    """Gated recurrent unit."""
    (h,) = states
    z = jax.nn.sigmoid(dense(params["rnn", "Wz", "weight"], x, h))
    r = jax.nn.sigmoid(dense(params["rnn", "Wr", "weight"], x, h))
    return ((1 - z) * h + z * jnp.tanh(dense(params["rnn", "Wh", "weight"], x, r * h)),)


def lstm(params: Params, states: States, x: jax.Array) -> States:
    """Long short-term memory."""
    c, h = states
    i, g, f, o = (dense(params["rnn", name, "weight"], x, h) for name in ("Wi", "Wg", "Wf", "Wo"))
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


@jax.custom_jvp
def spike(v: jax.Array) -> jax.Array:
    """Heaviside step with a triangular surrogate derivative."""
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    return spike(*primals), jnp.maximum(0, 1 - abs(primals[0])) * tangents[0]


def lif_step(num_states: int, project: Callable[[jax.Array], jax.Array], states: States, x: jax.Array) -> States:
    """Leaky integrate-and-fire units with soft reset: membrane; with synapse; with synapse and adaptation."""
    v = states[-1]
    threshold = 1 + STRENGTH * states[0] if num_states == 3 else 1.0
    s = spike(v - threshold)
    current = project(jnp.concatenate([x, s], -1))
    new = ()
    if num_states == 3:
        new += (ADAPTATION * states[0] + s,)
    if num_states >= 2:
        current = SYNAPSE * states[-2] + current
        new += (current,)
    return (*new, LEAK * v + current - s)


def _lif(num_states: int) -> Cell:
    def step(params, states, x):
        return lif_step(num_states, lambda xs: xs @ params["rnn", "w"], states, x)

    return Cell(step, num_states, lambda states: spike(states[-1] - 1))


def conv(params: Params, states: States, x: jax.Array) -> States:
    """A convolution into leaky units."""
    kernel = params["rnn", "conv", "weight"]["weight"]
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return (LEAK * states[0] + jnp.tanh(y),)


CELLS = {
    "rnn": Cell(rnn, 1),
    "gru": Cell(gru, 1),
    "gru-wr": Cell(gru, 1),
    "lstm": Cell(lstm, 2),
    "lif1": _lif(1),
    "lif2": _lif(2),
    "lif3": _lif(3),
    "conv": Cell(conv, 1, lambda states: states[0].mean((-3, -2))),
}
