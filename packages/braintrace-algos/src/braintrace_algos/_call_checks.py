"""Checks of calls: whether models, step functions, options and parameters fit what they are given with."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import brainstate

from ._errors import LearnerError, LearnerTypeError

_GIVEN = ("self", "model", "graph", "batch_size", "mapped")
"""What `compile` gives to an algorithm itself."""


def check_model(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a class in place of a model, and example inputs that the model cannot be called with."""
    where = "compile(model, algorithm, *example_inputs)"
    if isinstance(model, type):
        name = model.__name__
        raise LearnerTypeError(
            "A model is needed, not its class.",
            where=where,
            found=f"the class {name}",
            expected="an instance",
            fix=f"pass {name}(...)",
        )
    if not callable(model):
        raise LearnerTypeError(
            "This is no model.", where=where, found=type(model).__name__, expected="a brainstate.nn.Module"
        )
    is_module = isinstance(model, brainstate.nn.Module) and type(model).__call__ is brainstate.nn.Module.__call__
    problem = _misfit(model.update if is_module else model, args, kwargs)
    if problem:
        raise LearnerTypeError(
            "The model cannot be called with these example inputs.",
            where=where,
            found=problem,
            expected="the inputs of one time step, as the model takes them",
            fix="pass them after the algorithm, and those that go by keyword as kwargs={...}",
        )


def check_step_fn(step_fn: Any, slices: Sequence[Any]) -> None:
    """Refuse a step function that cannot be called with one slice of each sequence."""
    problem = _misfit(step_fn, slices, {}) if callable(step_fn) else f"{type(step_fn).__name__}"
    if problem:
        raise LearnerTypeError(
            "step_fn cannot be called with the slices of the sequences.",
            where="step_fn",
            found=problem,
            expected=f"a function of {len(slices)} argument{'s' * (len(slices) != 1)}, one for each sequence",
        )


def check_loss_function(loss: Any, targets: int) -> None:
    """Refuse a loss that cannot be called with an output and so many targets."""
    problem = _misfit(loss, [None] * (1 + targets), {}) if callable(loss) else f"{type(loss).__name__}"
    if problem:
        raise LearnerTypeError(
            "The loss cannot be called with an output and what follows the model's inputs.",
            where="functional().fold(params, state, *sequences, loss=...)",
            found=problem,
            expected=f"loss(output{', target' * targets}), one target for each sequence behind the model's inputs",
        )


def _misfit(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Why a function cannot be called with these arguments, or nothing."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions do not tell theirs
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        named = "".join(f", {name}" for name in kwargs)
        name = getattr(function, "__qualname__", type(function).__name__)
        return f"{len(args)} input{'s' * (len(args) != 1)}{named} for {name}{signature}: {error}"
    return ""


def check_options(cls: type, options: Mapping[str, Any]) -> None:
    """Refuse options that an algorithm does not have, and the lack of one that it needs."""
    own, complete = _options_of(cls)
    unknown = [name for name in options if name not in own] if complete else []
    where = f"compile(..., {cls.__name__})"
    if unknown:
        near = [n for name in unknown for n in difflib.get_close_matches(name, own, 1)]
        raise LearnerTypeError(
            "The algorithm has no such option.",
            where=where,
            found=", ".join(unknown),
            expected="one of " + ", ".join(sorted(own)),
            fix=f"did you mean {' and '.join(near)}?" if near else None,
        )
    missing = [n for n, is_needed in own.items() if is_needed and n not in options]
    if missing:
        raise LearnerTypeError(
            "The algorithm needs an option that was not given.",
            where=where,
            found=", ".join(options) or "no options",
            expected=", ".join(f"{name}=..." for name in missing),
            fix=f"help(braintrace.{cls.__name__}) says what it means",
        )


def _options_of(cls: type) -> tuple[dict[str, bool], bool]:
    """Names of options -> whether one must be given, and whether there are no others.

    A class that hands on what it does not know itself may fill in what its base needs, and take what nobody lists.
    """
    found: dict[str, bool] = {}
    complete = True
    for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        first, is_open = not found, any(p.kind is p.VAR_KEYWORD for p in parameters)
        for p in parameters:
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                found.setdefault(p.name, first and p.default is p.empty)
        complete = complete and (not is_open or base.__module__.startswith("braintrace_algos."))
        if not is_open:
            break
    return {n: needed for n, needed in found.items() if n not in _GIVEN}, complete


def check_weights(parameters: Mapping[Any, Any], weights: Any) -> Any:
    """The paths of the parameters to differentiate for; all of them by default."""
    chosen = parameters if weights is None else weights
    unknown = [path for path in chosen if path not in parameters]
    if unknown:
        raise LearnerError(
            "There is no parameter of this path.",
            where="weights",
            found=", ".join(map(repr, unknown)),
            expected="paths of learner.param_states: " + ", ".join(map(repr, parameters)),
        )
    return chosen
