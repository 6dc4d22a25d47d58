"""Layers one after the other."""

from typing import Any

import brainstate

from braintrace_primitives import BraintraceError


class Sequential(brainstate.nn.Sequential):
    """Layers applied one after the other; `brainstate.nn.Sequential` with our errors left as they are.

    Parameters
    ----------
    first : brainstate.nn.Module
    *layers : brainstate.nn.Module or callable

    Raises
    ------
    BraintraceError
        Whatever a layer raises, with a note that says which layer it was.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace_nn as nn
    >>> model = nn.Sequential(nn.Linear(4, 8), jnp.tanh, nn.Linear(8, 2))
    >>> model(jnp.ones((3, 4))).shape
    (3, 2)
    """

    def update(self, x: Any) -> Any:
        """Pass `x` through all layers."""
        for index, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except BraintraceError as error:
                error.add_note(f"in layers[{index}] of a Sequential of {len(self.layers)}")
                raise
        return x
