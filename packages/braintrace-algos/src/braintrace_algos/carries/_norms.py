"""Norms of products of D: how much is left of credit that is some steps old."""

from typing import Any

import jax
import jax.numpy as jnp

from braintrace_algos._entries import Rows, matrix
from braintrace_algos._factored_rules import Norms

from ._recursion import Recursion


def window_norms(recursion: Recursion) -> Norms:
    """Norms of the products of D that a recursion without signals makes, and of D itself."""
    shape, dtype = recursion.positions, recursion.dtype

    def norm(rows: Rows) -> Any:
        return spectral_bound(matrix(rows, shape, dtype))

    suffixes, M = recursion.run(lambda row, _: row)
    single = jax.vmap(lambda step, _: norm(recursion.blocks(step)[0] or recursion.D))(
        recursion.steps, jnp.arange(recursion.K)
    )
    return Norms(jax.vmap(norm)(tuple(suffixes[1:])), norm(M[1:]), single.max())


def spectral_bound(A: Any) -> Any:
    """The largest of √(‖A‖₁ ‖A‖∞) over positions, of A (S, S, *positions).

    This bounds the spectral norm, is the largest entry of a diagonal A, and that of a product is at most the product
    of those of its factors.
    """
    size = jnp.abs(A).astype(jnp.float32)
    return (jnp.sqrt(size.sum(0).max(0)) * jnp.sqrt(size.sum(1).max(0))).max()
