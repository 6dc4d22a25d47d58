"""Norms of products of D: how much is left of credit that is some steps old."""

from typing import Any

import jax
import jax.numpy as jnp

from braintrace_algos._factored_rules import Norms

from ._recursion import backwards


def window_norms(D: Any) -> Norms:
    """Norms of the products of D, (K, S, S, *positions)."""
    nothing = jnp.zeros((D.shape[0], *D.shape[2:]), D.dtype)
    suffixes, M = backwards(D, nothing, nothing[0], lambda M, _: spectral_bound(M[1:]), None)
    return Norms(suffixes, spectral_bound(M[1:]), jax.vmap(spectral_bound)(D).max())


def spectral_bound(A: Any) -> Any:
    """The largest of √(‖A‖₁ ‖A‖∞) over positions, of A (S, S, *positions).

    This bounds the spectral norm, is the largest entry of a diagonal A, and that of a product is at most the product
    of those of its factors.
    """
    size = jnp.abs(A).astype(jnp.float32)
    return (jnp.sqrt(size.sum(0).max(0)) * jnp.sqrt(size.sum(1).max(0))).max()
