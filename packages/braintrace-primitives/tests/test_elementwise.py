import jax
import jax.numpy as jnp
import pytest

import braintrace_primitives as bp


def test_marks_without_changing():
    w = jnp.array([1.0, -2.0])
    (eqn,) = jax.make_jaxpr(bp.element_wise)(w).eqns
    assert eqn.primitive is bp.etp_elemwise_p
    assert bp.element_wise(w).tolist() == w.tolist()


@pytest.mark.parametrize(
    "call", [lambda w: bp.element_wise(w, jnp.exp), lambda w: bp.element_wise(w, weight_fn=jnp.exp)]
)
def test_function_is_applied_before_the_mark(call):
    eqns = jax.make_jaxpr(call)(jnp.ones(2)).eqns
    assert [e.primitive.name for e in eqns] == ["exp", "etp_elemwise"]


def test_broadcasts_and_differentiates_like_its_weight():
    h = jnp.arange(6.0).reshape(2, 3)
    assert jax.grad(lambda w: (bp.element_wise(w) * h).sum())(jnp.ones(1)).tolist() == [15.0]


def test_mapped_weight():
    assert jax.vmap(bp.element_wise)(jnp.eye(2)).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_wrong_types():
    with pytest.raises(bp.OperandTypeError, match="must be a function"):
        bp.element_wise(jnp.ones(3), jnp.ones(3))
    with pytest.raises(bp.OperandTypeError, match="cannot be trained"):
        bp.element_wise(jnp.arange(3))
    with pytest.raises(bp.OperandTypeError, match="not an array"):
        bp.element_wise(None)
