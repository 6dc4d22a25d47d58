"""Small models for the compiler's tests: a module made of parameters, states and one step function."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import compile_etrace_graph, extract_module_info
from braintrace_primitives import element_wise, matmul

I, H, O = 2, 3, 2


def array(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(0.5 * np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


class Model(brainstate.nn.Module):
    """``update(x)`` is ``step(self, x)``; parameters and hidden states are attributes of their own names."""

    def __init__(self, step: Any, params: dict[str, Any], states: dict[str, Any]):
        super().__init__()
        self._step = step
        for name, value in params.items():
            setattr(self, name, brainstate.ParamState(value))
        for name, value in states.items():
            setattr(self, name, value if isinstance(value, brainstate.State) else brainstate.HiddenState(value))

    def update(self, *args: Any) -> Any:
        return self._step(self, *args)


def leaky(x_to_y=matmul, **params):
    """One leaky state and a readout."""

    def step(m, x):
        m.v.value = 0.9 * m.v.value + x_to_y(x, m.w.value)
        return matmul(m.v.value, m.out.value)

    return Model(step, {"w": array(I, H), "out": array(H, O)} | params, {"v": array(H, seed=1)})


def recurrent():
    """A membrane, the synapse that feeds it in the same step, recurrence through an operation, and a readout."""

    def step(m, x):
        m.g.value = 0.8 * m.g.value + matmul(jnp.concatenate([x, jnp.tanh(m.v.value)]), m.w.value)
        m.v.value = 0.9 * m.v.value + m.g.value
        return matmul(m.v.value, m.out.value)

    params = {"w": array(I + H, H), "out": array(H, O)}
    return Model(step, params, {"v": array(H, seed=1), "g": array(H, seed=2)})


def two_layers():
    """Two recurrent layers that talk through operations."""

    def step(m, x):
        m.a.value = 0.9 * m.a.value + matmul(jnp.concatenate([x, m.a.value]), m.w1.value)
        m.b.value = 0.7 * m.b.value + matmul(jnp.concatenate([m.a.value, m.b.value]), m.w2.value)
        return m.b.value

    params = {"w1": array(I + H, H), "w2": array(2 * H, H)}
    return Model(step, params, {"a": array(H, seed=1), "b": array(H, seed=2)})


def gated():
    """A reset gate: one weight reaches the state only through another operation."""

    def step(m, x):
        h = m.h.value
        r = jax.nn.sigmoid(matmul(jnp.concatenate([x, h]), m.wr.value))
        m.h.value = 0.5 * h + matmul(jnp.concatenate([x, r * h]), m.wh.value)
        return m.h.value

    return Model(step, {"wr": array(I + H, H), "wh": array(I + H, H)}, {"h": array(H, seed=1)})


def gains():
    """Element-wise parameters: a decay per unit and one gain for all."""

    def step(m, x):
        m.v.value = jax.nn.sigmoid(element_wise(m.tau.value)) * m.v.value + element_wise(m.gain.value) * x
        return m.v.value

    return Model(step, {"tau": array(H), "gain": array(1)}, {"v": array(H, seed=1)})


def info(model: Any, *args: Any, **options: Any) -> Any:
    return extract_module_info(model, *(args or (jnp.ones(I),)), **options)


def graph(model: Any, *args: Any, **options: Any) -> Any:
    return compile_etrace_graph(model, *(args or (jnp.ones(I),)), **options)


def kinds(compiled: Any) -> list[str]:
    return [record.kind.name for record in compiled.diagnostics]
