"""Products whose cotangents go back by weights transposed beforehand, against the programs that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace_compiler._way_back import with_way_back
from braintrace_primitives import matmul
from braintrace_primitives._jax_compat import eval_jaxpr, make_jaxpr_without_consts

B, I, H = 2, 3, 4


def step(w, bias, out, x, h):
    """A recurrent layer on input and state together, and a readout of single precision."""
    h = jnp.tanh(matmul(jnp.concatenate([x, h], -1), w, bias))
    return h, matmul(h, out)


@pytest.fixture
def operands():
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(I + H, H), (H,), (H, 2), (B, I), (B, H)]
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("single", [False, True])
def test_values_and_gradients_are_those_of_the_program(operands, single):
    if single:
        operands = [*operands[:3], operands[3][0], operands[4][0]]
    program, _ = make_jaxpr_without_consts(jax.make_jaxpr(step)(*operands))
    other = with_way_back(program)
    assert "custom_vjp" in str(other)

    def loss(program, *operands):
        h, y = eval_jaxpr(program, *operands)
        return jnp.sum(jnp.sin(h)) + jnp.sum(y**2)

    expected, found = (jax.value_and_grad(loss, tuple(range(1, 6)))(p, *operands) for p in (program, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, found)
    copies = (None, None, None, 0, 0)
    several = [jnp.stack([v, -v]) if axis == 0 else v for v, axis in zip(operands, copies, strict=True)]
    mapped = [jax.vmap(jax.grad(lambda *a, p=p: loss(p, *a), (0, 4)), copies)(*several) for p in (program, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *mapped)


def test_the_weight_is_transposed_once_and_the_input_gets_nothing(operands):
    program, _ = make_jaxpr_without_consts(jax.make_jaxpr(step)(*operands))
    weights, (x, h) = operands[:3], operands[3:]

    def loss(h, xs, program):
        def body(h, x):
            h, y = eval_jaxpr(program, *weights, x, h)
            return h, jnp.sum(y**2)

        return jax.lax.scan(body, h, xs)[1].sum()

    def products(program):
        compiled = jax.jit(jax.grad(loss), static_argnums=2).lower(h, jnp.stack([x, x, x]), program).compile()
        return [line for line in compiled.as_text().splitlines() if " dot(" in line]

    shape = f"f32[{B},{I + H}]"  # the cotangent of input and state together
    assert any(f"= {shape}" in line for line in products(program))
    assert not any(f"= {shape}" in line for line in products(with_way_back(program)))


def test_a_product_of_several_precisions_is_left_alone(operands):
    w, bias, out, x, h = operands
    mixed = [w.astype(jnp.bfloat16), bias.astype(jnp.bfloat16), out, x, h]
    program, _ = make_jaxpr_without_consts(jax.make_jaxpr(lambda w, b, o, x, h: matmul(x, w[:I], b))(*mixed))
    assert "custom_vjp" not in str(with_way_back(program))
