import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse as jax_sparse

import braintrace_primitives as bp
from braintrace_primitives.testing import draw

DENSE = np.where(np.random.default_rng(1).random((6, 5)) < 0.4, 1.0, 0.0).astype(np.float32)
PATTERN = bp.SparsityPattern.from_dense(DENSE)
DATA, X, BIAS = draw((PATTERN.nnz,), jnp.float32), draw((2, 6), jnp.float32), draw((5,), jnp.float32)
MATRIX = PATTERN.todense(DATA)


def test_product_equals_the_dense_one():
    for x in (X, X[0], X[None], X[:0]):
        got = bp.sparse_matmul(x, DATA, sparse_mat=PATTERN, bias=BIAS)
        assert jnp.allclose(got, x @ MATRIX + BIAS, atol=1e-5)


def test_pattern_is_static_and_names_the_equation():
    (eqn,) = jax.make_jaxpr(lambda d: bp.sparse_matmul(X, d, sparse_mat=PATTERN))(DATA).eqns
    assert eqn.primitive is bp.etp_sp_mm_p
    assert eqn.params == {"sparse_mat": PATTERN, "has_bias": False}


def test_matrices_of_jax():
    for matrix in (jax_sparse.BCOO.fromdense(DENSE), jax_sparse.BCSR.fromdense(DENSE)):
        assert bp.SparsityPattern.from_matrix(matrix) == PATTERN
        assert jnp.allclose(bp.sparse_matmul(X, DATA, sparse_mat=matrix), X @ MATRIX, atol=1e-5)
        compiled = jax.jit(lambda x, d, matrix=matrix: bp.sparse_matmul(x, d, sparse_mat=matrix))
        assert jnp.allclose(compiled(X, DATA), X @ MATRIX, atol=1e-5)


def test_foreign_matrices_by_duck_typing():
    rows, cols = np.nonzero(DENSE)
    indptr = np.concatenate([[0], np.cumsum(DENSE.sum(1).astype(int))])
    csr = types.SimpleNamespace(shape=(6, 5), indices=cols, indptr=indptr)
    coo = types.SimpleNamespace(shape=(6, 5), row=rows, col=cols)
    assert bp.SparsityPattern.from_matrix(csr) == bp.SparsityPattern.from_matrix(coo) == PATTERN


@pytest.mark.parametrize("kind", ["csr_array", "csc_array", "coo_array"])
def test_matrices_of_scipy(kind):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    matrix = getattr(scipy_sparse, kind)(np.asarray(MATRIX))
    got = bp.sparse_matmul(X, jnp.asarray(matrix.data), sparse_mat=matrix)
    assert jnp.allclose(got, X @ MATRIX, atol=1e-5)


def test_matrices_of_brainevent():
    brainevent = pytest.importorskip("brainevent")
    by_row = jax_sparse.BCSR.fromdense(np.asarray(MATRIX))
    csr = brainevent.CSR((by_row.data, by_row.indices, by_row.indptr), shape=(6, 5))
    assert jnp.allclose(bp.sparse_matmul(X, csr.data, sparse_mat=csr), X @ MATRIX, atol=1e-5)
    by_col = jax_sparse.BCSR.fromdense(np.asarray(MATRIX).T)
    csc = brainevent.CSC((by_col.data, by_col.indices, by_col.indptr), shape=(6, 5))
    assert jnp.allclose(bp.sparse_matmul(X, csc.data, sparse_mat=csc), X @ MATRIX, atol=1e-5)


def test_repeated_positions_add_up():
    pattern = bp.SparsityPattern([0, 0], [1, 1], (2, 2))
    assert bp.sparse_matmul(jnp.ones(2), jnp.array([1.0, 2.0]), sparse_mat=pattern).tolist() == [0.0, 3.0]


def test_both_ways_of_summing_a_window_agree():
    wide = bp.SparsityPattern([0, 7, 7, 39], [3, 3, 0, 8], (40, 9))
    rule = bp.get_primitive_spec(bp.etp_sp_mm_p).trace_rule
    xs, gs = draw((4, 2, 40), jnp.float32), draw((4, 2, 9), jnp.float32)
    params = {"sparse_mat": wide, "has_bias": False}
    got = rule.pullback(xs, {"weight": jnp.ones(4)}, gs, params)["weight"]
    want = jnp.einsum("tbi,tbo->io", xs, gs)[wide.rows, wide.cols]
    assert wide.nnz / 360 < 1 / 64
    assert jnp.allclose(got, want, atol=1e-5)


def test_batches_with_many_entries_go_through_dense_products():
    rule = bp.get_primitive_spec(bp.etp_sp_mm_p).trace_rule
    xs, factors = draw((8, 8, 6), jnp.float32), draw((8, 2, 8, 5), jnp.float32)

    def found(data):
        y, pull = jax.vjp(lambda x, d: bp.sparse_matmul(x, d, sparse_mat=PATTERN), xs[0], data)
        trace = rule.accumulate(xs, factors, {"weight": data}, {"sparse_mat": PATTERN, "has_bias": False})
        return y, *pull(factors[0, 0]), trace["weight"]

    g = factors[0, 0]
    own = PATTERN.rows, PATTERN.cols
    traced = jnp.einsum("tbi,tsbo->sbio", xs, factors)[..., *own]
    assert str(jax.make_jaxpr(found)(DATA)).count("dot_general") == 4
    for got, want in zip(found(DATA), (xs[0] @ MATRIX, g @ MATRIX.T, (xs[0].T @ g)[own], traced), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_pattern_is_a_value():
    same = bp.SparsityPattern(PATTERN.rows.tolist(), PATTERN.cols.tolist(), PATTERN.shape)
    assert same == PATTERN
    assert hash(same) == hash(PATTERN)
    assert same != bp.SparsityPattern(PATTERN.cols, PATTERN.rows, (5, 6))
    assert same != "pattern"
    with pytest.raises(ValueError, match="read-only"):
        same.rows[0] = 1
    traces = []
    call = jax.jit(lambda d, p: traces.append(1) or bp.sparse_matmul(X, d, sparse_mat=p), static_argnums=1)
    assert jnp.array_equal(call(DATA, PATTERN), call(DATA, same))
    assert len(traces) == 1


def test_the_callers_arrays_stay_writable():
    rows = np.array([0, 1], np.int32)
    pattern = bp.SparsityPattern(rows, [0, 0], (2, 1))
    rows[0] = 1
    assert pattern.rows.tolist() == [0, 1]


def test_misfits():
    for operands, text in {
        (6, 5): rf"data of shape \({PATTERN.nnz},\) for SparsityPattern\(6x5",
        (5, PATTERN.nnz): r"x of shape \(..., 6\)",
    }.items():
        with pytest.raises(bp.OperandError, match=text):
            bp.sparse_matmul(jnp.ones(operands[0]), jnp.ones(operands[1]), sparse_mat=PATTERN)
    with pytest.raises(bp.OperandError, match="bias"):
        bp.sparse_matmul(X, DATA, sparse_mat=PATTERN, bias=jnp.ones(6))


def test_malformed_patterns():
    with pytest.raises(bp.OperandError, match="cols leave the matrix"):
        bp.SparsityPattern([0], [2], (2, 2))
    with pytest.raises(bp.OperandError, match="rows leave the matrix"):
        bp.SparsityPattern([-1], [0], (2, 2))
    with pytest.raises(bp.OperandError, match="differ in length"):
        bp.SparsityPattern([0, 1], [0], (2, 2))
    with pytest.raises(bp.OperandTypeError, match="vector of integers"):
        bp.SparsityPattern([0.5], [0], (2, 2))
    with pytest.raises(bp.OperandTypeError, match="static"):
        jax.jit(lambda rows: bp.SparsityPattern(rows, rows, (2, 2)).nnz)(jnp.arange(2))
    for matrix in (np.eye(2), "eye", jax_sparse.BCOO.fromdense(np.ones((2, 2, 2)))):
        with pytest.raises(bp.OperandTypeError, match="not a sparse matrix"):
            bp.SparsityPattern.from_matrix(matrix)
