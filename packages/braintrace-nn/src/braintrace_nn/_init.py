"""Initial values of parameters and hidden states, and the initialisers that serve as defaults."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from brainstate import environ
from brainstate.nn import init

from ._errors import ConfigurationError

Initializer: TypeAlias = Callable[[tuple[int, ...]], Any] | jax.typing.ArrayLike
Size: TypeAlias = int | Sequence[int]

KAIMING_NORMAL = init.KaimingNormal()
XAVIER_NORMAL = init.XavierNormal()
LECUN_NORMAL = init.LecunNormal()
LECUN_UNIFORM = init.LecunUniform()
ORTHOGONAL = init.Orthogonal()
ZEROS = init.ZeroInit()


def as_size(value: Any, name: str) -> tuple[int, ...]:
    """A feature size as a tuple of positive integers."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    integers = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in sizes)
    if not sizes or not integers or min(sizes) < 1:
        raise ConfigurationError(
            f"`{name}` is not a size.",
            found=repr(value),
            expected="a positive integer, or a tuple of positive integers whose last one counts the features",
        )
    return tuple(int(n) for n in sizes)


def matching_sizes(in_size: Any, out_size: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output size of a layer that maps the last axis and leaves those before it alone."""
    sizes = as_size(in_size, "in_size"), as_size(out_size, "out_size")
    if sizes[0][:-1] != sizes[1][:-1]:
        raise ConfigurationError(
            "The layer maps the last axis only, but the axes before it differ.",
            found=f"in_size={sizes[0]}, out_size={sizes[1]}",
            expected="in_size[:-1] == out_size[:-1]",
        )
    return sizes


def draw(initializer: Callable, shape: tuple[int, ...]) -> Any:
    """Call an initialiser in the environment's precision, drawing half-precision values in float32."""
    dtype = environ.dftype()
    if jnp.finfo(dtype).bits >= 32:
        return initializer(shape)
    with environ.context(precision=32):
        return initializer(shape).astype(dtype)


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be spread over `target`."""
    aligned = zip(shape[::-1], target[::-1], strict=False)
    return len(shape) <= len(target) and all(n in (1, m) for n, m in aligned)


def parameter(initializer: Initializer, shape: tuple[int, ...], name: str) -> Any:
    """Initial value of a parameter of the given shape.

    Parameters
    ----------
    initializer : callable, array or number
        ``initializer(shape)``, an array of exactly that shape, or a number that fills it.
    shape : tuple of int
    name : str
        The constructor argument, for messages.

    Returns
    -------
    jax.Array or Quantity

    Raises
    ------
    ConfigurationError
        If the value has another shape.
    """
    value = _value(initializer, shape)
    if value.shape not in (shape, ()):
        raise ConfigurationError(
            f"`{name}` has the wrong shape.", found=f"shape {value.shape}", expected=f"shape {shape}"
        )
    return _spread(value, shape)


def initial_state(initializer: Initializer, size: tuple[int, ...], batch_size: int | None, name: str) -> Any:
    """Initial value of a hidden state: shape ``size``, or ``(batch_size, *size)``."""
    if batch_size is not None and (not isinstance(batch_size, (int, np.integer)) or batch_size < 1):
        raise ConfigurationError(
            "`batch_size` is not a batch size.", found=repr(batch_size), expected="None or a positive integer"
        )
    shape = size if batch_size is None else (int(batch_size), *size)
    value = _value(initializer, shape)
    if not broadcasts(value.shape, shape):
        raise ConfigurationError(
            f"`{name}` has the wrong shape.",
            found=f"shape {value.shape}",
            expected=f"a shape that broadcasts to {shape}",
        )
    return _spread(value, shape)


def _value(initializer: Initializer, shape: tuple[int, ...]) -> Any:
    if callable(initializer):
        return draw(initializer, shape)

    def array(leaf: Any) -> jax.Array:
        return jnp.asarray(leaf, environ.dftype() if isinstance(leaf, (int, float)) else None)

    return jax.tree.map(array, initializer)


def _spread(value: Any, shape: tuple[int, ...]) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), value)


def activation_function(activation: str | Callable) -> Callable:
    """The function itself, or the one of that name in `brainstate.nn`."""
    function = getattr(brainstate.nn, activation, None) if isinstance(activation, str) else activation
    if not callable(function) or isinstance(function, type):
        raise ConfigurationError(
            "There is no such activation.",
            found=repr(activation),
            expected="a function, or the name of one in brainstate.nn such as 'tanh', 'relu' or 'sigmoid'",
        )
    return function
