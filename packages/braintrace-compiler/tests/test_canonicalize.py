"""No call boundary hides a marked operation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, graph

from braintrace_compiler import NotSupportedError
from braintrace_primitives import matmul


@jax.custom_jvp
def with_jvp(x, w):
    return matmul(x, w)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]))


@jax.custom_vjp
def with_vjp(x, w):
    return matmul(x, w)


with_vjp.defvjp(lambda x, w: (matmul(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, jnp.outer(saved[0], g)))

WAYS = {
    "jit": jax.jit(matmul),
    "nested jit": jax.jit(lambda x, w: jax.jit(matmul)(x, w) * 1.0),
    "checkpoint": jax.checkpoint(matmul),
    "jit in checkpoint": jax.checkpoint(jax.jit(matmul)),
    "named call": jax.named_call(matmul, name="layer"),
    "named scope": lambda x, w: jax.named_scope("layer")(matmul)(x, w),
    "custom_jvp": with_jvp,
    "custom_vjp": with_vjp,
    "vmap": lambda x, w: jax.vmap(matmul, (0, None))(x[None], w)[0],
    "nested vmap": lambda x, w: jax.vmap(jax.vmap(matmul, (0, None)), (0, None))(x[None, None], w)[0, 0],
    "partial": functools.partial(matmul),
}


@pytest.mark.parametrize("name", WAYS)
def test_operations_are_found_inside(name):
    def step(m, x):
        m.v.value = 0.9 * m.v.value + WAYS[name](x, m.w.value)
        return m.v.value

    compiled = graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    (relation,) = compiled.hidden_param_op_relations
    assert relation.weight_path == ("w",)
    assert relation.feeds[0].kind.value in ("same", "gather")
    np.testing.assert_array_equal(
        np.arange(H) if relation.feeds[0].index is None else relation.feeds[0].index.reshape(-1), np.arange(H)
    )


def test_a_call_without_marked_operations_stays():
    """Its derivative rule is the user's."""

    def step(m, x):
        m.v.value = jax.nn.relu(0.9 * m.v.value + matmul(x, m.w.value))
        return m.v.value

    names = [e.primitive.name for e in graph(Model(step, {"w": array(I, H)}, {"v": array(H)})).module_info.jaxpr.eqns]
    assert "custom_jvp_call" in names


@jax.custom_vjp
def surrogate_layer(x, w):
    return (matmul(x, w) > 0).astype(x.dtype)


surrogate_layer.defvjp(
    lambda x, w: (surrogate_layer(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, jnp.outer(saved[0], g))
)


def test_a_rule_that_replaces_the_derivative_of_an_operation_is_refused():
    """Opened, it would silently have no gradient at all."""

    def step(m, x):
        m.v.value = 0.9 * m.v.value + surrogate_layer(x, m.w.value)
        return m.v.value

    with pytest.raises(NotSupportedError, match=r"(?s)test_canonicalize\.py.*spike\(matmul"):
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
