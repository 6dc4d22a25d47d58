"""Whether the methods of a trace rule fit their operation and each other in shape: traced, nothing is computed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._errors import BraintraceError, ConformanceError
from ._precision import computed_in
from ._trace_rule import TraceRule


def require_pullback(
    name: str, rule: TraceRule, x: Any, weights: Mapping[str, Any], y: Any, params: Mapping[str, Any]
) -> None:
    """Refuse a rule whose gradient within a window does not have the shapes of the weights.

    Parameters
    ----------
    name : str
        Of the primitive.
    x, weights, y : arrays, or their shapes
        As in `TraceRule.init`.

    Raises
    ------
    ConformanceError
    """
    weights = _abstract(weights)
    _Method(name, rule, "pullback")(
        weights, lambda xs, g, w: rule.pullback(xs, w, g, params), _longer(x, 1), _longer(y, 1), weights
    )


def require_trace(
    name: str,
    rule: TraceRule,
    x: Any,
    weights: Mapping[str, Any],
    y: Any,
    num_states: int,
    params: Mapping[str, Any],
) -> None:
    """Refuse a rule whose methods do not agree on the trace; see `require_pullback`."""
    S, weights = num_states, _abstract(weights)
    y = jax.ShapeDtypeStruct(y.shape, computed_in(y.dtype))
    trace = _Method(name, rule, "init")(None, lambda: rule.init(x, weights, y, S, params, y.dtype))
    _Method(name, rule, "accumulate")(
        trace, lambda xs, f, w: rule.accumulate(xs, f, w, params), _longer(x, 1), _longer(y, 1, S), weights
    )
    _Method(name, rule, "decay")(trace, lambda t, blocks: rule.decay(t, blocks, params), trace, _longer(y, S, S))
    _Method(name, rule, "contract")(
        weights, lambda t, s, w: rule.contract(t, s, w, params), trace, _longer(y, S), weights
    )


class _Method:
    """One method of a trace rule, called with shapes."""

    def __init__(self, name: str, rule: TraceRule, method: str):
        self.name, self.where = name, f"{type(rule).__name__}.{method}"

    def __call__(self, expected: Any, function: Callable[..., Any], *operands: Any) -> Any:
        given = ", ".join(_shapes(operand) for operand in operands if operand is not None)
        try:
            found = jax.eval_shape(function, *operands)
        except (BraintraceError, NotImplementedError):
            raise
        except Exception as error:
            raise self._error(f"{type(error).__name__} for {given}: {error}", expected) from error
        if expected is not None and jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, expected):
            raise self._error(_shapes(found) + f" for {given}" * bool(given), expected)
        return found

    def _error(self, found: str, expected: Any) -> ConformanceError:
        return ConformanceError(
            f"The trace rule of {self.name!r} does not fit the operation.",
            where=self.where,
            found=found,
            expected=None if expected is None else _shapes(expected),
            fix="braintrace_primitives.testing.check_primitive(primitive, *operands) holds rules against derivatives",
        )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), dict(tree))


def _longer(value: Any, *lead: int) -> Any:
    """The shape of `value` with more leading axes."""
    return None if value is None else jax.ShapeDtypeStruct((*lead, *value.shape), value.dtype)


def _shapes(tree: Any) -> str:
    """Shapes and dtypes, as ``{'weight': float32[4,5]}``."""
    named = jax.tree.map(lambda v: _Word(f"{jnp.dtype(v.dtype)}[{','.join(map(str, v.shape))}]"), tree)
    return str(named)


class _Word(str):
    """Text that prints without quotes."""

    __repr__ = str.__str__
