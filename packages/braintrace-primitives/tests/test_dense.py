import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import draw

X, W, B = draw((2, 3), jnp.float32), draw((3, 4), jnp.float32), draw((4,), jnp.float32)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 2, 3), (0, 3), (1, 3)])
def test_matmul_equals_plain_jax(shape):
    x = draw(shape, jnp.float32)
    assert jnp.array_equal(bp.matmul(x, W, B), x @ W + B)
    assert jnp.array_equal(jax.jit(bp.matmul)(x, W), x @ W)


def test_equation_parameters_are_the_bias_flag_alone():
    for bias in (None, B):
        (eqn,) = jax.make_jaxpr(lambda x, bias=bias: bp.matmul(x, W, bias))(X).eqns
        assert eqn.params == {"has_bias": bias is not None}


def test_functions_of_the_weights_stay_outside():
    eqns = jax.make_jaxpr(lambda w, b: bp.matmul(X, w, b, weight_fn=jnp.exp, bias_fn=jnp.tanh))(W, B).eqns
    assert [e.primitive.name for e in eqns] == ["exp", "tanh", "etp_mm"]
    assert jnp.allclose(bp.matmul(X, W, B, weight_fn=jnp.exp, bias_fn=jnp.tanh), X @ jnp.exp(W) + jnp.tanh(B))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64])
def test_dtype_of_the_result(dtype):
    assert bp.matmul(X.astype(dtype), W.astype(dtype)).dtype == dtype
    assert bp.matmul(X, W.astype(dtype)).dtype == (X @ W.astype(dtype)).dtype


def test_spikes_and_numpy_arrays_are_numbers():
    spikes = X > 0
    assert jnp.allclose(bp.matmul(spikes, W), spikes.astype(jnp.float32) @ W)
    assert jnp.allclose(bp.matmul(np.asarray(X), np.asarray(W)), X @ W)


@pytest.mark.parametrize(
    ("operands", "text"),
    [
        ((X, W.T), r"x float32\[2,3\], weight float32\[4,3\](.|\n)*x of shape \(..., 4\)"),
        ((X, W[0]), r"weight of shape \(I, O\)"),
        ((jnp.float32(1), W), r"x of shape \(..., 3\)"),
        ((X, W, B[:2]), r"bias of shape \(4,\)"),
        ((X, W, jnp.float32(1)), r"bias of shape \(4,\)"),
    ],
)
def test_misfits(operands, text):
    for call in (bp.matmul, jax.jit(bp.matmul)):
        with pytest.raises(bp.OperandError, match=text):
            call(*operands)


def test_wrong_types():
    class Parameter:
        value = W

    with pytest.raises(bp.OperandTypeError, match=r"pass weight\.value"):
        bp.matmul(X, Parameter())
    with pytest.raises(bp.OperandTypeError, match="x is not an array"):
        bp.matmul([1.0, 2.0, 3.0], W)
    with pytest.raises(bp.OperandTypeError, match="use embedding"):
        bp.matmul(jnp.arange(3), W)
    with pytest.raises(bp.OperandTypeError, match="weight cannot be trained"):
        bp.matmul(X, W.astype(jnp.int32))


def test_scan_and_remat():
    @jax.checkpoint
    def step(h, x):
        h = jnp.tanh(bp.matmul(jnp.concatenate([x, h]), W, B))
        return h[:2], h

    def plain(h, x):
        h = jnp.tanh(jnp.concatenate([x, h]) @ W + B)
        return h[:2], h

    xs = draw((5, 1), jnp.float32)
    run = lambda f: lambda xs: jax.lax.scan(f, jnp.zeros(2), xs)[1].sum()  # noqa: E731
    assert jnp.allclose(jax.grad(run(step))(xs), jax.grad(run(plain))(xs), atol=1e-5)
