"""``python -m braintrace inspect``: what the compiler finds in any model."""

import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import brainstate
import jax.numpy as jnp

from braintrace_algos import compile
from braintrace_compiler import CompilationReport, CompilationWarning

from ._errors import TargetError

FORMS: dict[str, Callable[[CompilationReport], str]] = {
    "text": str,
    "json": CompilationReport.to_json,
    "mermaid": CompilationReport.to_mermaid,
}


def inspect_model(
    target: str,
    input_shape: Sequence[int],
    *,
    dtype: str = "float32",
    batch_size: int | None = None,
    algorithm: str = "d_rtrl",
    options: Mapping[str, Any] | None = None,
    form: str = "text",
) -> str:
    """The compilation report of a model that is named, not imported.

    Parameters
    ----------
    target : str
        ``module:factory``; the module is looked for in the working directory too.
    input_shape : sequence of int
        Shape of the input of one step, batch axis included where there is one.
    dtype : str
        Data type of the input.
    batch_size : int, optional
        Batch size for the model's states.
    algorithm : str
        Name of the algorithm.
    options : mapping, optional
        Of the algorithm.
    form : {"text", "json", "mermaid"}

    Returns
    -------
    str

    Raises
    ------
    TargetError
        If the module, the factory or the data type does not exist, or the factory gives no model.

    Examples
    --------
    >>> print(inspect_model("braintrace.nn:VanillaRNNCell", [3]))
    Traceback (most recent call last):
    ...
    braintrace._errors.TargetError: `braintrace.nn:VanillaRNNCell` cannot be called without arguments. [BT502]
    ...
    """
    model = _build(target)
    try:
        example = jnp.zeros(tuple(input_shape), dtype)
    except TypeError as error:
        raise TargetError("There is no such data type.", found=dtype, expected="float32, int32, …") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)  # the report says it all
        learner = compile(model, algorithm, example, batch_size=batch_size, **(options or {}))
    return FORMS[form](learner.report)


def _build(target: str) -> brainstate.nn.Module:
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise TargetError(
            "The target is not of the form module:factory.",
            found=target,
            fix="write, say, my_package.models:make",
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise TargetError(
            f"There is no module `{module_name}`.",
            where=target,
            fix="run from the folder that holds it, or install it",
        ) from error
    factory: Any = getattr(module, name, None)
    if isinstance(factory, brainstate.nn.Module):
        return factory
    if not callable(factory):
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise TargetError(
            f"`{module_name}` has no function or class `{name}`.",
            expected="one of " + ", ".join(public or ["none"]),
        )
    missing = _required(factory)
    if missing:
        raise TargetError(
            f"`{target}` cannot be called without arguments.",
            found="it needs " + ", ".join(missing),
            fix="name a function that builds the model and takes nothing",
        )
    model = factory()
    if not isinstance(model, brainstate.nn.Module):
        raise TargetError(f"`{target}` gives no model.", found=type(model).__name__, expected="brainstate.nn.Module")
    return model


def _required(factory: Callable[..., Any]) -> list[str]:
    """Arguments without a default; a class is asked by its ``__init__``, which a metaclass may hide."""
    is_class = isinstance(factory, type)
    parameters = inspect.signature(factory.__init__ if is_class else factory).parameters.values()
    return [
        p.name
        for p in list(parameters)[is_class:]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
