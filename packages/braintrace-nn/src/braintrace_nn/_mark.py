"""Marking parameters that act position by position."""

from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives import element_wise


def per_position(weight: Any, shape: tuple[int, ...]) -> Any:
    """Mark a weight that acts on a state of the given shape, one entry per position of the state.

    The weight is spread over the batch *before* it is marked: every marked entry then feeds exactly one
    position, so its trace is as large as the state, and the gradient sums over the batch on its way back to
    the parameter.
    """
    return element_wise(jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), weight))
