"""Operations with an axis of iterations: one weight that meets many inputs within one time step."""

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp

from ._errors import RegistrationError
from ._primitive import ETPPrimitive, get_primitive_spec, register_primitive
from ._trace_rule import TraceRule


class RepeatedTraceRule(TraceRule):
    """The trace rule of an op that is evaluated once for each of n iterations: all of them add to one trace.

    Inputs are ``(n, *x)``, outputs ``(n, *y)``. To the sums over time the iterations are so many more time steps, and
    the trace is that of a single evaluation. Every iteration must feed the same positions in the same way.

    Parameters
    ----------
    fn : callable
        Of the repeated op.
    rule : TraceRule
        Of a single evaluation.
    """

    def __init__(self, fn: Any, rule: TraceRule):
        super().__init__(fn)
        self.rule = rule

    def pullback(self, xs, weights, gs, params):
        return self.rule.pullback(_flat(xs), weights, _flat(gs), params)

    def init(self, x, weights, y, num_states, params, dtype):
        return self.rule.init(_single(x), weights, _single(y), num_states, params, dtype)

    def accumulate(self, xs, factors, weights, params):
        return self.rule.accumulate(_flat(xs), _flat(jnp.moveaxis(factors, 2, 1)), weights, params)

    def decay(self, trace, blocks, params):
        return self.rule.decay(trace, blocks[:, :, 0], params)

    def contract(self, trace, signal, weights, params):
        return self.rule.contract(trace, signal[:, 0], weights, params)

    def uncarried(self, params):
        return self.rule.uncarried(params)

    def acts_beside_input(self, weights):
        return self.rule.acts_beside_input(weights)

    def fan_in(self, name, weights, params):
        return self.rule.fan_in(name, weights, params)

    def addend(self, x, weights):
        return self.rule.addend(x, weights)

    def pullback_of_sums(self, sums, weights, gs, params):
        return self.rule.pullback_of_sums(_flat(sums), weights, _flat(gs), params)

    def remark(self, params):
        return self.rule.remark(params)


def _flat(values: Any) -> Any:
    """Time and iterations as one axis."""
    return values.reshape(values.shape[0] * values.shape[1], *values.shape[2:])


def _single(stacked: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(stacked.shape[1:], stacked.dtype)


_lock = threading.Lock()


def repeated(primitive: ETPPrimitive) -> ETPPrimitive:
    """The primitive of ``y[i] = A(x[i], w)`` for the `primitive` of ``y = A(x, w)``: one trace for all iterations.

    Parameters
    ----------
    primitive : ETPPrimitive
        Registered, with an input.

    Returns
    -------
    ETPPrimitive
        Registered under the name of `primitive` with ``_repeated`` behind it; operands and params are the same, with
        one more leading axis on the input.

    Raises
    ------
    RegistrationError
        If `primitive` is not registered or has no input.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace_primitives import etp_mv_p, repeated
    >>> y = repeated(etp_mv_p)(jnp.ones((5, 2)), jnp.ones((2, 3)), has_bias=False)
    >>> y.shape
    (5, 3)
    """
    with _lock:  # a primitive is registered once, whichever thread comes first
        return _repeated(primitive)


@functools.cache
def _repeated(primitive: ETPPrimitive) -> ETPPrimitive:
    spec = get_primitive_spec(primitive)
    x = spec.x_invar_index
    if x is None:
        raise RegistrationError(
            f"{spec.name} has no input that could differ between iterations.",
            fix="evaluate it once, before the iterations",
        )

    def implementation(*operands: Any, **params: Any) -> Any:
        axes = tuple(0 if i == x else None for i in range(len(operands)))
        return jax.vmap(functools.partial(primitive.evaluate, **params), in_axes=axes)(*operands)

    return register_primitive(
        f"{spec.name}_repeated",
        implementation,
        trainable_invars=spec.trainable_invars,
        x_invar_index=x,
        trace_rule=lambda fn: RepeatedTraceRule(fn, spec.trace_rule),
    )
