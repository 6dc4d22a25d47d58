"""Compile time grows with the program and no faster, and compiling is re-entrant."""

import concurrent.futures
import time

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import array, graph, two_layers
from test_graph import fingerprint

from braintrace_compiler import _flow
from braintrace_primitives import matmul

N = 4


class Deep(brainstate.nn.Module):
    """A stack of recurrent layers, 14 equations each."""

    def __init__(self, layers):
        super().__init__()
        self.w = [brainstate.ParamState(array(2 * N, N, seed=k)) for k in range(layers)]
        self.h = [brainstate.HiddenState(jnp.zeros(N)) for _ in range(layers)]

    def update(self, x):
        for w, h in zip(self.w, self.h, strict=True):
            z = 0.9 * h.value + jnp.tanh(matmul(jnp.concatenate([x, h.value]), w.value))
            for _ in range(3):
                z = jnp.sin(z) + 0.1 * z
            h.value = x = z
        return x


def test_equations_are_visited_a_bounded_number_of_times(monkeypatch):
    """The walker's own work per equation is the same for a deep model as for a shallow one."""
    visits = [0]

    def counted(eqn, reads=_flow.reads):
        visits[0] += 1
        return reads(eqn)

    monkeypatch.setattr(_flow, "reads", counted)
    per_equation = []
    for layers in (4, 16):
        visits[0] = 0
        compiled = graph(Deep(layers), jnp.ones(N))
        per_equation.append(visits[0] / len(compiled.module_info.jaxpr.eqns))
    assert per_equation[1] < 1.1 * per_equation[0] < 50


@pytest.mark.slow
def test_ten_thousand_equations():
    began = time.process_time()
    compiled = graph(Deep(700), jnp.ones(N))
    assert len(compiled.module_info.jaxpr.eqns) > 9000
    assert len(compiled.hidden_param_op_relations) == 700
    assert time.process_time() - began < 30


def test_threads_do_not_disturb_each_other():
    expected = fingerprint(graph(two_layers()))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fingerprint(graph(two_layers())), range(8)))
    assert found == [expected] * 8


def test_compiling_inside_a_trace():
    def traced(x):
        compiled = graph(two_layers())
        return x * len(compiled.hidden_groups)

    np.testing.assert_allclose(jax.jit(traced)(2.0), 4.0)
