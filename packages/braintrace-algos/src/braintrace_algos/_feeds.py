"""From the positions of a group to the elements of y that feed them, and back (semantics, section 3)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from braintrace_compiler import Feed, FeedKind


def feed_shape(feed: Feed, y_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the elements that carry a trace: those of y, or the positions where y is broadcast."""
    if feed.kind is not FeedKind.BROADCAST:
        return tuple(y_shape)
    assert feed.index is not None
    return feed.index.shape


def spread(feed: Feed, values: Any, lead: int) -> Any:
    """Take values given at positions, after `lead` leading axes, to the elements that carry a trace."""
    if feed.kind is not FeedKind.GATHER:
        return values
    assert feed.index is not None
    flat = values.reshape(*values.shape[:lead], -1)
    # An element that feeds no position has F = 0; which position it reads does not matter.
    return jnp.take(flat, np.maximum(feed.index, 0), axis=lead)


def collect(feed: Feed, values: Any, y_shape: tuple[int, ...]) -> Any:
    """Sum values given at the elements that carry a trace onto y, after one leading (time) axis."""
    if feed.kind is not FeedKind.BROADCAST:
        return values
    assert feed.index is not None
    size = int(np.prod(y_shape))
    flat = values.reshape(values.shape[0], -1)
    # -1 marks a position that nothing feeds; it is sent beyond the end, where additions are dropped.
    index = np.where(feed.index < 0, size, feed.index).reshape(-1)
    total = jnp.zeros((values.shape[0], size), values.dtype).at[:, index].add(flat, mode="drop")
    return total.reshape(values.shape[0], *y_shape)
