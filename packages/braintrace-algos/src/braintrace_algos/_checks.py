"""Checks of what users hand to a learner; all raise before any state is written."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import Arguments, CompilationWarning, NotSupportedError
from braintrace_compiler._arguments import DATA
from braintrace_compiler._diagnostics import users_level
from braintrace_primitives._jax_compat import Literal
from braintrace_primitives._sharding import explicit_spec

from ._errors import LearnerError, LearnerTypeError
from ._plan import Plan


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is not among `choices`."""
    if value not in choices:
        raise LearnerError(
            f"`{name}` has no such choice.", found=repr(value), expected=" or ".join(repr(c) for c in choices)
        )


def fixed(cls: type, options: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """`options` with the values that an algorithm fixes itself; others of these would do nothing, and are refused."""
    for name, value in values.items():
        if name in options and options[name] != value:
            raise LearnerError(
                "The algorithm fixes this option itself: another value would change nothing.",
                where=f"compile(..., {cls.__name__})",
                found=f"{name}={options[name]!r}",
                expected=f"{name}={value!r}, or no {name}",
            )
    return {**options, **values}


def is_count(value: Any) -> bool:
    """Whether a value is an integer of at least 1."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def check_steps(name: str, value: Any) -> None:
    """Refuse a value of option `name` that is no number of steps."""
    if not is_count(value):
        raise LearnerError(f"`{name}` must be a number of steps.", found=repr(value), expected="an int of at least 1")


def check_fold(fold: Any) -> None:
    """Refuse a fold that is neither a number of steps nor "auto"."""
    if fold != "auto" and not is_count(fold):
        raise LearnerError("`fold` must be a number of steps.", found=repr(fold), expected='an int ≥ 1, or "auto"')


def check_window(window: Any, vjp_method: str = "multi-step") -> None:
    """Refuse a window that is neither a number of steps nor None, for the whole sequence; single steps have none."""
    if window is not None:
        check_steps("window", window)
    if vjp_method == "single-step" and window != 1:
        raise LearnerError(
            "Single steps have no windows: the option would change nothing.",
            where="compile(..., window=...)",
            found=f'window={window}, vjp_method="single-step"',
            expected='vjp_method="multi-step", or no window',
            fix="for a step function that gets K steps at once, etrace_grad(..., chunk_size=K) is enough",
        )


def check_decay(name: str, value: Any) -> float:
    """Refuse a decay outside of [0, 1)."""
    numbers = (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, numbers) or not 0.0 <= value < 1.0:
        raise LearnerError(f"`{name}` must be a decay.", found=repr(value), expected="a number in [0, 1)")
    return float(value)


def refuse_explicit_axes(values: Any) -> None:
    """Refuse arrays that are sharded over mesh axes of type Explicit: traces start without a sharding in their type."""
    specs = (explicit_spec(leaf) for leaf in jax.tree.leaves(values))
    spec = next((s for s in specs if s is not None and any(axis is not None for axis in s)), None)
    if spec is not None:
        raise NotSupportedError(
            "A learner takes no arrays that are sharded over explicit mesh axes.",
            found=f"an array sharded {spec}",
            expected="mesh axes of type Auto or, inside jax.shard_map, Manual",
            fix="make the mesh with axis_types=(jax.sharding.AxisType.Auto, ...); results and placement are the same",
        )


def describe(value: Any) -> str:
    """Shape and dtype of an array, as ``f32[4,5]``."""
    dtype = jnp.dtype(value.dtype)
    short = f"{dtype.kind}{8 * dtype.itemsize}" if dtype.kind in "fiuc" else dtype.name
    return f"{short}[{','.join(map(str, value.shape))}]"


def broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to `target`."""
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(n in (1, m) for n, m in pairs)


def check_arguments(plan: Plan, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The data among the arguments of one step, if they are shaped as those the model was compiled with."""
    minfo, batch = plan.graph.module_info, plan.batch
    found, leaves = Arguments.split(args, kwargs)
    if found != minfo.arguments:
        _check_static(minfo.arguments, found)
    for i, (leaf, var) in enumerate(zip(leaves, minfo.arg_invars, strict=True)):
        aval = var.aval
        shape = tuple(aval.shape) if batch is None else (batch, *aval.shape)
        leaf = leaves[i] = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
        if leaf.shape == shape and leaf.dtype == aval.dtype:
            continue
        expected = jax.ShapeDtypeStruct(shape, aval.dtype)
        where = f"learner(*args), input {i}"
        if leaf.shape != shape:
            raise LearnerError(
                "An input of the step has another shape than the one the model was compiled with.",
                where=where,
                found=describe(leaf),
                expected=describe(expected),
                fix=_shape_advice(leaf.shape, shape),
            )
        if not _converts(leaf.dtype, expected.dtype):
            raise LearnerTypeError(
                "An input of the step has another dtype than the one the model was compiled with.",
                where=where,
                found=describe(leaf),
                expected=describe(expected),
                fix="pass x.real, or compile the model with a complex example input"
                if jnp.issubdtype(leaf.dtype, jnp.complexfloating)
                else f"convert it: x.astype({jnp.dtype(expected.dtype).name!r})",
            )
        leaves[i] = leaf.astype(expected.dtype)
    return leaves


def _converts(given: Any, expected: Any) -> bool:
    """Whether numbers are converted without a word: between precisions, and from real to complex."""
    whole = jnp.issubdtype(given, jnp.inexact) and jnp.issubdtype(expected, jnp.inexact)
    imaginary = jnp.issubdtype(given, jnp.complexfloating) and not jnp.issubdtype(expected, jnp.complexfloating)
    return whole and not imaginary


def _layout(arguments: Arguments) -> str:
    """The call, with a star in the place of each array: ``(*, {'a': *}, training=True)``."""
    args, kwargs = jax.tree.unflatten(arguments.tree, arguments.leaves)
    inside = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
    text = ", ".join(inside)
    return f"({text if len(text) <= 200 else text[:200] + ' ...'})"


def _check_static(expected: Arguments, found: Arguments) -> None:
    """Refuse arguments of another structure, or other static values, than the model was compiled with."""
    if found.tree != expected.tree:
        raise LearnerTypeError(
            "The arguments of the step do not have the structure the model was compiled with.",
            where="learner(*args)",
            found=_layout(found),
            expected=_layout(expected),
            fix="call the learner as the model was called in compile(model, algorithm, *example_inputs, kwargs={...})",
        )
    for i, (was, now) in enumerate(zip(expected.leaves, found.leaves, strict=True)):
        if was is now or (DATA not in (was, now) and was == now):
            continue
        raise LearnerTypeError(
            "A static argument of the step has another value than the one the model was compiled for.",
            where=f"learner(*args), {expected.names()[i]}",
            found="an array or a number" if now is DATA else repr(now),
            expected="an array or a number" if was is DATA else repr(was),
            fix="pass what was passed to compile: a bool is static, jnp.asarray(bool) is data"
            if DATA in (was, now)
            else "compile the model again with the other value: the new learner shares the model's parameters",
        )


def _shape_advice(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(found) == len(expected) + 1 and found[1:] == expected:
        return "pass one time step; for a sequence use etrace_grad, etrace_evolve or a loop"
    if len(found) == len(expected) and found[1:] == expected[1:]:
        return "the batch size is fixed by compile(..., batch_size=...): compile again for another one"
    return "compile the model with an example input of the shape it will get"


def check_trace_dtype(plan: Plan, dtype: Any) -> None:
    """Refuse a dtype that cannot hold the traces: they would lose all digits behind the point, or imaginary parts."""
    if dtype is None:
        return
    dtypes = [plan.operations[c.operation].y_var.aval.dtype for c in plan.couplings]
    has_imaginary = any(jnp.issubdtype(d, jnp.complexfloating) for d in dtypes)
    expected = jnp.complexfloating if has_imaginary else jnp.inexact
    try:
        fits = jnp.issubdtype(jnp.dtype(dtype), expected)
    except TypeError:
        fits = False
    if not fits:
        raise LearnerTypeError(
            "`trace_dtype` cannot hold the traces of this model.",
            where="compile(..., trace_dtype=...)",
            found=repr(dtype),
            expected="a complex dtype" if has_imaginary else "a floating dtype, such as jnp.bfloat16",
        )


def as_key(name: str, value: Any) -> Any:
    """A random key from a seed or a key."""
    if isinstance(value, int) and not isinstance(value, bool):
        return jax.random.key(value)
    dtype = getattr(value, "dtype", None)
    if dtype is None or not (dtype == jnp.uint32 or jnp.issubdtype(dtype, jax.dtypes.prng_key)):
        raise LearnerTypeError(
            f"`{name}` must be a random key.",
            found=repr(value),
            expected="a seed, or a key such as jax.random.key(0)",
        )
    return value


def check_state_shapes(plan: Plan) -> None:
    """Refuse states that were given other shapes since the model was compiled."""
    for info in plan.states:
        for leaf, var in zip(jax.tree.leaves(info.state.value), info.invars, strict=True):
            mapped = plan.batch is not None and info.path not in plan.parameters
            shape = (plan.batch, *var.aval.shape) if mapped else tuple(var.aval.shape)
            if tuple(leaf.shape) != shape or leaf.dtype != var.aval.dtype:
                expected = jax.ShapeDtypeStruct(shape, var.aval.dtype)
                learnt = info.path in plan.parameters
                raise LearnerError(
                    "A state of the model has another shape or dtype than when it was compiled.",
                    where=f"state {'.'.join(map(str, info.path))}",
                    found=describe(leaf),
                    expected=describe(expected),
                    fix=f"{'set it to a value of that form' if learnt else 'call learner.reset_state()'}, "
                    "or compile the model again",
                )


def check_environment(plan: Plan) -> None:
    """Refuse other values in brainstate's environment than those that the step was compiled for.

    A value that is no longer there is no other one: a model is often compiled inside of a context and called outside.
    """
    for key, was in plan.graph.module_info.environment.items():
        now = brainstate.environ.get(key, default=was)
        if now is not was and not _is_equal(now, was):
            raise LearnerError(
                "The step was compiled for another value of brainstate's environment.",
                where=f"brainstate.environ, {key!r}",
                found=repr(now),
                expected=repr(was),
                fix="compile the model again under the other value: the new learner shares the model's parameters. "
                "What changes from step to step, such as the time, is an input of the model or a state of it",
            )


def _is_equal(a: Any, b: Any) -> bool:
    try:
        return bool(np.all(a == b))
    except Exception:  # arrays inside of a trace, units that do not fit: nothing that is known to be equal
        return False


def warn_of_unseen_states(plan: Plan) -> None:
    """Warn where no output follows from a group's new states as they are stored.

    Signals of the form L^t = ∂l^t/∂h^t are those of readers of the stored value, in the same step; a model that returns
    a value and stores another made of it (a stack of several states, say) would learn nothing from its output, nor
    would neurons that others read only at the head of the next step.
    """
    program, perturb = plan.step.jaxpr, plan.graph.hidden_perturb
    outputs = set(program.outvars[: len(plan.graph.module_info.out_outvars)])
    delta_of = dict(zip(perturb.perturb_hidden_paths, perturb.perturb_vars, strict=True))
    deltas: dict[Any, list[Any]] = {}  # of one value; one of them is that of all states that hold it
    for group in plan.graph.hidden_groups:
        for path, v in zip(group.hidden_paths, group.hidden_outvars, strict=True):
            deltas.setdefault(v, []).append(delta_of[path])
    for index in plan.traced:
        group = plan.transitions[index].group
        drives = [perturb.operation_vars[c.operation] for c in plan.couplings if c.group == index]
        stored = [delta for v in group.hidden_outvars for delta in deltas[v]]
        if not outputs or outputs & _influenced(program, stored):
            continue
        states = [list(p) for p in group.hidden_paths]
        if outputs & _influenced(program, drives):
            told = (
                f"The output reads what drives {states}, but not their stored values: a learning signal at the states "
                "does not see it. Return the state's value after storing it."
            )
        else:
            weights = {plan.operations[c.operation].weight_path for c in plan.couplings if c.group == index}
            told = (
                f"No output follows from the new values of {states} in the same step, only later: no learning signal "
                f"L^t = ∂l^t/∂h^t reaches them, and the gradient of {sorted(map(list, weights))} stays zero unless the "
                "loss reads these states itself. Let the rest of the step read their new values, or take an algorithm "
                "whose signal meets the past, such as d_rtrl."
            )
        warnings.warn(told, CompilationWarning, stacklevel=users_level())


def _influenced(program: Any, sources: Sequence[Any]) -> set[Any]:
    found = set(sources)
    for eqn in program.eqns:
        if any(v in found for v in eqn.invars if not isinstance(v, Literal)):
            found.update(eqn.outvars)
    return found
