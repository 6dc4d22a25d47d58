"""strict=True and on_mixing."""

import jax
import jax.numpy as jnp
import pytest
from compiler_models import H, I, Model, array, gains, gated, graph, leaky, recurrent
from test_diagnostics import mixing_feed, mixing_transition, plain_parameter, quiet, time_varying

from braintrace_compiler import CompilationError
from braintrace_primitives import matmul


def test_strict_accepts_exact_models():
    graph(leaky(), strict=True)
    graph(gains(), jnp.ones(H), strict=True)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (recurrent, r"etp_mv\(\('w',\)\) omits recurrent mixing \(.*compiler_models\.py"),
        (gated, r"\('wr',\)\) omits through another op"),
        (time_varying, "omits time-varying weight"),
        (plain_parameter, r"parameter \('tau',\)"),
        (mixing_feed, "omits position mixing"),
    ],
)
def test_strict_names_all_that_is_left_out(make, told):
    with pytest.raises(CompilationError, match=told):
        graph(make(), strict=True)


@pytest.mark.parametrize("make", [mixing_transition, mixing_feed])
def test_mixing_may_be_refused(make):
    with pytest.raises(CompilationError, match=r"(?s)\('v',\).*on_mixing='error'"):
        graph(make(), on_mixing="error")
    graph(leaky(), on_mixing="error")
    quiet(make(), on_mixing="exact")


def test_a_large_jacobian_is_refused():
    def step(m, x):
        m.v.value = jax.nn.softmax(m.v.value) + matmul(x, m.w.value)
        return m.v.value

    big = 2**14 + 1
    model = Model(step, {"w": jnp.zeros((I, big))}, {"v": jnp.zeros(big)})
    with pytest.raises(CompilationError, match="local Jacobian of 268468225 elements"):
        graph(model)


def test_an_unknown_choice_is_refused():
    with pytest.raises(CompilationError, match="on_mixing='row sums'"):
        graph(Model(lambda m, x: x, {"w": array(I, H)}, {"v": array(H)}), on_mixing="row sums")
