import jax
import jax.numpy as jnp
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import draw


def normal(*shape):
    return draw(shape, jnp.float32)


TABLE = normal(5, 3)


@pytest.mark.parametrize("lead", [(), (2,), (4, 2)])
def test_grouped_matmul(lead):
    x, w, b = normal(*lead, 3, 2), normal(3, 2, 4), normal(3, 4)
    want = jnp.stack([x[..., g, :] @ w[g] + b[g] for g in range(3)], -2)
    assert jnp.allclose(bp.grouped_matmul(x, w, b), want, atol=1e-5)
    assert jnp.allclose(bp.grouped_matmul(x, w, b, weight_fn=jnp.negative, bias_fn=jnp.negative), -want, atol=1e-5)
    (eqn,) = jax.make_jaxpr(bp.grouped_matmul)(x, w).eqns
    assert eqn.primitive is (bp.etp_gmm_p if lead else bp.etp_gmv_p)


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((2, 3, 3), (3, 2, 4)), r"x of shape \(..., 3, 2\)"),
        (((2,), (3, 2, 4)), r"x of shape \(..., 3, 2\)"),
        (((2, 3, 2), (2, 4)), r"weight of shape \(G, K, N\)"),
        (((2, 3, 2), (3, 2, 4), (4,)), r"bias of shape \(3, 4\)"),
    ],
)
def test_grouped_misfits(shapes, text):
    with pytest.raises(bp.OperandError, match=text):
        bp.grouped_matmul(*(jnp.ones(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        ("bi,io->bo", (2, 3), (3, 4)),
        ("bhi,hio->bho", (2, 3, 4), (3, 4, 5)),
        ("b t i, i o -> b o t", (2, 3, 4), (4, 5)),
        ("i,i->", (3,), (3,)),
        ("b,o->bo", (2,), (3,)),
    ],
)
def test_einsum(equation, x, w):
    x, w = normal(*x), normal(*w)
    assert jnp.allclose(bp.einsum(equation, x, w), jnp.einsum(equation, x, w), atol=1e-5)
    assert jnp.allclose(bp.einsum(equation, x, w, weight_fn=jnp.sin), jnp.einsum(equation, x, jnp.sin(w)), atol=1e-5)


def test_einsum_survives_vmap_over_its_input():
    f = lambda x: bp.einsum("bi,io->ob", x, normal(3, 4))  # noqa: E731
    xs = normal(5, 2, 3)
    assert [e.primitive for e in jax.make_jaxpr(jax.vmap(f))(xs).eqns] == [bp.etp_einsum_p]
    assert jnp.allclose(jax.vmap(f)(xs), jnp.stack([f(x) for x in xs]), atol=1e-5)


@pytest.mark.parametrize(
    "equation", ["bi,io", "bi->bo", "...i,io->...o", "bb,io->bo", "bi,io->bk", "bi,io->boo", "bi,io,o->bo"]
)
def test_malformed_equations(equation):
    with pytest.raises(bp.OperandError, match="equation is malformed"):
        bp.einsum(equation, jnp.ones((2, 3)), jnp.ones((3, 4)))


@pytest.mark.parametrize("shapes", [((2, 4), (3, 4)), ((2, 3, 1), (3, 4)), ((2, 3), (3,))])
def test_einsum_misfits(shapes):
    with pytest.raises(bp.OperandError, match=r"shapes that fit 'bi,io->bo'"):
        bp.einsum("bi,io->bo", *(jnp.ones(shape) for shape in shapes))


@pytest.mark.parametrize("indices", [3, [1, -1], [[0, 4], [2, 2]], []])
def test_embedding(indices):
    indices = jnp.array(indices, jnp.int32)
    assert jnp.array_equal(bp.embedding(indices, TABLE), TABLE[indices])
    assert jnp.allclose(bp.embedding(indices, TABLE, weight_fn=jnp.sin), jnp.sin(TABLE)[indices])
    (eqn,) = jax.make_jaxpr(bp.embedding)(indices, TABLE).eqns
    assert eqn.primitive is (bp.etp_emb_p if indices.ndim else bp.etp_emb_v_p)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_narrow_indices_reach_into_tables_of_more_rows_than_they_count(dtype):
    table, indices = jnp.arange(300.0)[:, None], jnp.array([1, -1], jnp.int8).astype(dtype)
    want = [1.0, 299.0 if dtype == jnp.int8 else 255.0]
    assert bp.embedding(indices, table).ravel().tolist() == want
    gradient = jax.grad(lambda table: bp.embedding(indices, table).sum())(table).ravel()
    assert jnp.flatnonzero(gradient).tolist() == want


def test_an_index_beyond_the_table_is_not_a_number_and_teaches_nothing():
    indices = jnp.array([1, 5])
    assert jnp.isnan(bp.embedding(indices, TABLE)[1]).all()
    rule = bp.get_primitive_spec(bp.etp_emb_p).trace_rule
    xs, factors = jnp.array([[1, 5], [7, 0]]), normal(2, 1, 2, 3)
    trace = rule.accumulate(xs, factors, {"weight": TABLE}, {})["weight"]
    want = jnp.zeros((1, 2, 5, 3)).at[0, 0, 1].add(factors[0, 0, 0]).at[0, 1, 0].add(factors[1, 0, 1])
    assert jnp.allclose(trace, want)


def test_an_embedding_window_holds_no_table_per_sample_or_step():
    rule = bp.get_primitive_spec(bp.etp_emb_p).trace_rule
    xs, gs = jnp.zeros((7, 11), jnp.int32), jnp.ones((7, 11, 3))
    program = jax.make_jaxpr(lambda xs, gs: rule.pullback(xs, {"weight": TABLE}, gs, {}))(xs, gs)
    assert max(v.aval.size for e in program.eqns for v in e.outvars) <= 7 * 11 * 3


def test_embedding_misfits():
    with pytest.raises(bp.OperandTypeError, match="Indices must be integers"):
        bp.embedding(jnp.ones(2), TABLE)
    with pytest.raises(bp.OperandError, match=r"weight of shape \(N, D\)"):
        bp.embedding(jnp.arange(2), TABLE[0])
