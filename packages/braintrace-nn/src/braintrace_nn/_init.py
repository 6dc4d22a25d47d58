"""Initial values of parameters and hidden states, and the initialisers that serve as defaults."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from brainstate import environ
from brainstate.nn import init

from braintrace_primitives._jax_compat import under_trace

from ._errors import ConfigurationError

Initializer: TypeAlias = Callable[[tuple[int, ...]], Any] | jax.typing.ArrayLike
Size: TypeAlias = int | Sequence[int]

KAIMING_NORMAL = init.KaimingNormal()
XAVIER_NORMAL = init.XavierNormal()
LECUN_NORMAL = init.LecunNormal()
LECUN_UNIFORM = init.LecunUniform()
ORTHOGONAL = init.Orthogonal()
ZEROS = init.ZeroInit()


def is_count(value: Any) -> bool:
    """Whether `value` is a positive integer."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) > 0


def as_count(value: Any, name: str) -> int:
    """A positive integer."""
    if not is_count(value):
        raise ConfigurationError(f"`{name}` is not a count.", found=repr(value), expected="a positive integer")
    return int(value)


def as_size(value: Any, name: str) -> tuple[int, ...]:
    """A feature size as a tuple of positive integers."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not sizes or not all(map(is_count, sizes)):
        raise ConfigurationError(
            f"`{name}` is not a size.",
            found=repr(value),
            expected="a positive integer, or a tuple of positive integers whose last one counts the features",
        )
    return tuple(map(int, sizes))


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


def sizes_around(num_in: int, num_out: int, in_size: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of a layer from `num_in` to `num_out` features whose full `in_size` may have been given too."""
    sizes = (num_in,) if in_size is None else as_size(in_size, "in_size")
    if sizes[-1] != num_in:
        raise ConfigurationError(
            "`in_size` and the number of input features differ.",
            found=f"in_size={sizes}",
            expected=f"a last entry of {num_in}",
        )
    return sizes, (*sizes[:-1], num_out)


def draw(initializer: Callable, shape: tuple[int, ...]) -> Any:
    """Call an initialiser in the environment's precision, drawing half-precision values in float32."""
    dtype = environ.dftype()
    if initializer is ZEROS and not under_trace():
        return jax.device_put(np.zeros(shape, dtype))  # else XLA compiles a program for each shape
    if jnp.finfo(dtype).bits >= 32:
        return initializer(shape)
    with environ.context(precision=32):
        return initializer(shape).astype(dtype)


def require_broadcast(name: str, shape: tuple[int, ...], target: tuple[int, ...], problem: str = "") -> None:
    """Refuse the argument `name` unless an array of `shape` can be spread over `target`."""
    aligned = zip(shape[::-1], target[::-1], strict=False)
    if len(shape) > len(target) or any(n not in (1, m) for n, m in aligned):
        raise ConfigurationError(
            f"`{name}` {problem or 'has the wrong shape'}.",
            found=f"shape {shape}",
            expected=f"a shape that broadcasts to {target}",
        )


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
    if batch_size is not None:
        size = (as_count(batch_size, "batch_size"), *size)
    value = _value(initializer, size)
    require_broadcast(name, value.shape, size)
    return _spread(value, size)


def _value(initializer: Initializer, shape: tuple[int, ...]) -> Any:
    def floats(leaf: Any) -> jax.Array:
        keeps_type = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.asarray(leaf, None if keeps_type else environ.dftype())

    return jax.tree.map(floats, draw(initializer, shape) if callable(initializer) else initializer)


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
