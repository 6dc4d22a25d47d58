"""Inputs that say whether they are one time step or a window of several."""

from typing import Any, NamedTuple

import jax

from braintrace_compiler._arguments import is_data

from ._errors import LearnerTypeError


class SingleStepData(NamedTuple):
    """The input of one time step; the same as the input itself.

    Attributes
    ----------
    data : pytree
        Leaves shaped as in `compile`.

    Examples
    --------
    >>> SingleStepData(1.0).data
    1.0
    """

    data: Any


class MultiStepData(NamedTuple):
    """The inputs of K time steps, for one call of a learner.

    ``learner(MultiStepData(xs))`` returns the K outputs, stacked. Its gradient is that of K single calls with
    ``vjp_method="single-step"``; with ``"multi-step"`` the window is differentiated as a whole, and the past comes in
    at its entry.

    Attributes
    ----------
    data : pytree
        Leaves of shape (K, ...).

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_algos import compile
    >>> from braintrace_primitives import matmul
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
    ...         return self.h.value
    >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros(2), vjp_method="multi-step")
    >>> learner(MultiStepData(jnp.ones((4, 2))))[:, 0].tolist()
    [2.0, 3.0, 3.5, 3.75]
    """

    data: Any


def unwrap(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    """The bare arguments of a call, and whether they are a window of steps; static arguments are of every step.

    Raises
    ------
    LearnerTypeError
        If some arguments are windows and others are not.
    """
    given = [*args, *kwargs.values()]
    if not any(isinstance(arg, (SingleStepData, MultiStepData)) for arg in given):
        return args, kwargs, False
    is_window = any(isinstance(arg, MultiStepData) for arg in given)
    data = [arg for arg in given if any(map(is_data, jax.tree.leaves(arg)))]
    if is_window and not all(isinstance(arg, MultiStepData) for arg in data):
        raise LearnerTypeError(
            "Either all arguments of a call are windows of steps, or none is.",
            where="learner(*args)",
            found=", ".join(type(arg).__name__ for arg in data),
            expected="MultiStepData for each argument",
        )
    return tuple(map(_bare, args)), {name: _bare(arg) for name, arg in kwargs.items()}, is_window


def _bare(arg: Any) -> Any:
    return arg.data if isinstance(arg, (SingleStepData, MultiStepData)) else arg
