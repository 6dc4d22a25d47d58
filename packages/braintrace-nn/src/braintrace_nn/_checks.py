"""What a layer asks of its input, checked before anything is computed or written."""

from typing import Any

import jax
import jax.numpy as jnp

from ._errors import InputShapeError, InputTypeError, MissingStateError


def describe(module: Any) -> str:
    """Kind, name and sizes of a module, for messages."""
    name = f" '{module.name}'" if module.name else ""
    return f"{type(module).__name__}{name} (in_size={module.in_size}, out_size={module.out_size})"


def shape_text(x: Any) -> str:
    """Data type, shape and unit: ``float32[3,10] mV``."""
    unit = f" {x.unit}" if hasattr(x, "unit") else ""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]{unit}"


def floats(module: Any, x: Any) -> Any:
    """`x` as an array or quantity of floats, real or complex; booleans (spikes) count as numbers."""
    x = x if hasattr(x, "dtype") else jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype != jnp.bool_:
        raise InputTypeError(
            "The input holds no floating-point numbers.",
            where=describe(module),
            found=shape_text(x),
            expected="a floating-point type, or booleans",
            fix="convert it, for instance by x.astype('float32'); integer indices go through an Embedding",
        )
    return x


def features(module: Any, x: Any, *size: int) -> Any:
    """`x` as floating-point numbers whose last axes have the sizes `size`."""
    x = floats(module, x)
    if x.shape[-len(size) :] != size:
        raise InputShapeError(
            "The input has the wrong feature size.",
            where=describe(module),
            found=shape_text(x),
            expected=f"{x.dtype}[...,{','.join(map(str, size))}]",
            fix="pass features on the last axis, or build the layer with the in_size of the data",
        )
    return x


def step_input(module: Any, x: Any, batch_shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`x` as the input of one time step: plain, ``(*batch_shape, *in_size)``, in the type of the state."""
    x = floats(module, x)
    if hasattr(x, "unit"):
        if not x.is_unitless:
            raise InputTypeError(
                "The input carries a unit, and the cell works on plain numbers.",
                where=describe(module),
                found=shape_text(x),
                expected="a dimensionless input",
                fix="divide it by its unit",
            )
        x = x.to_decimal()
    if jnp.issubdtype(x.dtype, jnp.complexfloating) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise InputTypeError(
            "The input is complex and the hidden state is real.",
            where=describe(module),
            found=shape_text(x),
            expected=f"{dtype}[{','.join(map(str, (*batch_shape, *module.in_size)))}]",
            fix="pass the real and imaginary parts as features",
        )
    if x.shape != (*batch_shape, *module.in_size):
        _reject_step_shape(module, x, batch_shape)
    return x.astype(dtype)


def _reject_step_shape(module: Any, x: jax.Array, batch_shape: tuple[int, ...]) -> None:
    lead, tail = x.shape[: -len(module.in_size)], x.shape[-len(module.in_size) :]
    if tail != module.in_size:
        what, fix = "The input has the wrong feature size.", "build the cell with the in_size of the data"
    elif len(lead) > len(batch_shape):
        what = "The input has more axes than one time step of the cell."
        size = f"batch_size={lead[-1]}"
        fix = f"feed one time step at a time; for a batch {_initialise(size)}"
    else:
        what = "The input and the hidden state differ in their batch."
        batch = lead[0] if lead else None
        fix = _initialise(f"batch_size={batch}")
    raise InputShapeError(
        what,
        where=describe(module),
        found=shape_text(x),
        expected=f"{x.dtype}[{','.join(map(str, (*batch_shape, *module.in_size)))}]",
        fix=fix,
    )


def _initialise(size: str) -> str:
    return f"compile(..., {size}) or, without a learner, init_state({size})"


def require_states(module: Any, names: tuple[str, ...]) -> list[Any]:
    """The hidden states of these names, once ``init_state`` has made them."""
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise MissingStateError(
            "The hidden states do not exist yet.",
            where=describe(module),
            found=f"no {' and no '.join(missing)}",
            fix="call init_state(batch_size=...) on the module, or brainstate.nn.init_all_states(model, ...)",
        )
    return [getattr(module, name) for name in names]
