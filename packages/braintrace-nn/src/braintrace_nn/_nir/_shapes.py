"""Nodes that only rearrange or average."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np


class Flattened(brainstate.nn.Module):
    """One axis in place of those from `start_dim` to `end_dim` of a sample."""

    def __init__(self, in_size: tuple[int, ...], start_dim: int, end_dim: int):
        super().__init__()
        self.sample_shape, self.start_dim, self.end_dim = in_size, start_dim, end_dim
        first, last = start_dim % len(in_size), end_dim % len(in_size)
        self.in_size = in_size
        self.flat_shape = self.out_size = (
            *in_size[:first],
            int(np.prod(in_size[first : last + 1])),
            *in_size[last + 1 :],
        )

    def update(self, x: Any) -> Any:
        """Reshape one sample or a batch of them."""
        return jnp.reshape(x, (*x.shape[: x.ndim - len(self.sample_shape)], *self.flat_shape))


class Pooled(brainstate.nn.Module):
    """Mean or sum over windows of the last two axes of a sample (C, height, width), zeros beyond the edge included."""

    def __init__(self, kernel_size: Any, stride: Any, padding: Any, mean: bool):
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.mean = kernel_size, stride, padding, mean

    def update(self, x: Any) -> Any:
        """Pool samples of shape (C, height, width) or (B, C, height, width)."""
        lead = (1,) * (x.ndim - 2)
        window, stride, pads = (
            tuple(int(n) for n in np.broadcast_to(value, 2)) for value in (self.kernel_size, self.stride, self.padding)
        )
        margins = ((0, 0),) * len(lead) + tuple((n, n) for n in pads)
        zero = jnp.zeros((), x.dtype)
        total = jax.lax.reduce_window(x, zero, jax.lax.add, lead + window, lead + stride, margins)
        return total / np.prod(window) if self.mean else total
