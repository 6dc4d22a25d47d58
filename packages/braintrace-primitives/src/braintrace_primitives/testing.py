"""Conformance checks for ETP primitives, ours and yours."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import ConformanceError as ConformanceError
from ._jax_compat import Primitive
from ._primitive import ETPPrimitiveSpec, get_primitive_spec, is_etp_primitive
from ._rule_shapes import require_pullback, require_trace
from ._trace_rule import GenericTraceRule, cast_like

Pairs = dict[str, tuple[Any, Any]]

# A check runs once: compiling it well takes longer than running it badly.
_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def check_primitive(
    primitive: Primitive,
    *operands: Any,
    num_states: int = 2,
    num_steps: int = 3,
    tolerance: float | None = None,
    **params: Any,
) -> dict[str, float]:
    """Check a primitive against plain JAX and automatic differentiation.

    Checked are the operation (`jit`, `vmap` over every operand, first and second derivatives, transposition, `scan`,
    `remat`, its identity where only the input is mapped) and its trace rule: `pullback` against `jax.vjp`, the trace
    against `jax.jacfwd` and the generic rule, `decay` against its adjoint, a window against its steps, a batch
    against its samples, shapes and sizes throughout.

    Parameters
    ----------
    primitive : ETPPrimitive
    *operands : arrays
        Example operands; small ones, for full Jacobians are formed.
    num_states, num_steps : int
        States per position and length of the window.
    tolerance : float, optional
        Largest deviation, relative to the largest expected value. By default a small multiple of the rounding error.
    **params
        Parameters of the equation.

    Returns
    -------
    dict
        Relative deviation by name of the check.

    Raises
    ------
    ConformanceError
        At the first check that fails.

    Examples
    --------
    >>> from braintrace_primitives import etp_mv_p
    >>> deviations = check_primitive(etp_mv_p, jnp.ones(3), jnp.ones((3, 2)), has_bias=False)
    >>> max(deviations.values()) < 1e-5
    True
    """
    spec = get_primitive_spec(primitive)
    operands = tuple(jnp.asarray(operand) for operand in operands)
    _check_identity(spec, operands, params)
    pairs = _jit(lambda *operands: _operation_pairs(spec, operands, params))(*operands)
    window = _Window(spec, operands, params, num_states, num_steps)
    pairs |= window.pairs()
    if spec.x_invar_index is not None:
        mapped, samples, mapped_params = _mapped(spec, operands, params)
        batch = _Window(mapped, samples, mapped_params, num_states, num_steps)
        pairs |= {f"batched {name}": pair for name, pair in batch.pairs().items()}
        pairs["batch against samples"] = batch.gradient(), window.sum_over_samples(batch)
    return {name: _deviation(f"{spec.name}, {name}", got, want, tolerance) for name, (got, want) in pairs.items()}


def _deviation(where: str, got: Any, want: Any, tolerance: float | None) -> float:
    worst = 0.0
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if one.shape != two.shape:
            raise ConformanceError("Shapes differ.", where=where, found=f"{one.shape}", expected=f"{two.shape}")
        wide = np.result_type(np.complex128 if jnp.iscomplexobj(one) else np.float64)
        exact = np.asarray(two).astype(wide)
        scale = np.abs(exact).max(initial=1e-30)
        deviation = float(np.abs(np.asarray(one).astype(wide) - exact).max(initial=0.0) / scale)
        eps = max(float(jnp.finfo(a.dtype).eps) for a in (one, two))
        allowed = min(256 * eps, eps**0.5) if tolerance is None else tolerance
        if not deviation <= allowed:
            raise ConformanceError(
                "The primitive deviates from its reference.",
                where=where,
                found=f"relative deviation {deviation:.1e}",
                expected=f"at most {allowed:.1e}",
            )
        worst = max(worst, deviation)
    return worst


def _check_identity(spec: ETPPrimitiveSpec, operands: tuple[Any, ...], params: Mapping[str, Any]) -> None:
    positions = list(spec.trainable_invars(params).values())
    function = _at(functools.partial(spec.primitive.bind, **params), operands, positions)
    weights = [operands[i] for i in positions]
    eqns = jax.make_jaxpr(lambda *weights: jax.jvp(function, weights, weights))(*weights).eqns
    if sum(is_etp_primitive(eqn.primitive) for eqn in eqns) != 1:
        raise ConformanceError("The primitive does not survive differentiation.", where=spec.name)


def _operation_pairs(spec: ETPPrimitiveSpec, operands: tuple[Any, ...], params: Mapping[str, Any]) -> Pairs:
    """The bound operation beside the plain one."""
    functions = [functools.partial(f, **params) for f in (spec.primitive.bind, spec.primitive.evaluate)]
    bound, plain = functions
    y = plain(*operands)
    pairs: Pairs = {"value": (bound(*operands), y)}

    everything = range(len(operands))
    for chosen in [*([i] for i in everything), list(everything)]:
        axes = tuple(-1 if i in chosen else None for i in everything)
        stacked = [jnp.stack([o, other(o)], -1) if i in chosen else o for i, o in enumerate(operands)]
        loop = [plain(*(s[..., k] if i in chosen else s for i, s in enumerate(stacked))) for k in range(2)]
        pairs[f"vmap over operands {chosen}"] = jax.vmap(bound, in_axes=axes)(*stacked), jnp.stack(loop)

    moving = [i for i in everything if jnp.issubdtype(operands[i].dtype, jnp.inexact)]
    values = [operands[i] for i in moving]
    tangents = [other(value) for value in values]

    def both(name: str, transform: Callable[[Callable[..., Any]], Any]) -> None:
        got, want = (transform(_at(f, operands, moving)) for f in functions)
        pairs[name] = got, want

    def energy(function):
        def scalar(*values):
            residual = function(*values) - 0.5 * y - 1
            return jnp.sum(residual * residual.conj()).real

        return scalar

    def slope(function):
        def scalar(*values):
            grads = jax.grad(energy(function), tuple(range(len(values))))(*values)
            return sum(jnp.sum(g * t).real for g, t in zip(grads, tangents, strict=True))

        return scalar

    arguments = tuple(range(len(moving)))
    both("jvp", lambda f: jax.jvp(f, values, tangents)[1])
    both("vjp", lambda f: jax.vjp(f, *values)[1](other(y)))
    both("forward over reverse", lambda f: jax.jvp(jax.grad(energy(f), arguments), values, tangents)[1])
    both("reverse over reverse", lambda f: jax.grad(slope(f), arguments)(*values))
    both("remat", lambda f: jax.grad(jax.checkpoint(energy(f)), arguments)(*values))
    both("scan", lambda f: jax.lax.scan(lambda _, v: (None, f(*v)), None, [jnp.stack([v, v]) for v in values])[1])

    for name, position in spec.trainable_invars(params).items():
        weight, step = operands[position], other(operands[position])
        one, two = (_at(f, operands, [position]) for f in functions)
        difference = (two(weight + step) - two(weight - step)) / 2
        pairs[f"derivative along {name}"] = jax.jvp(one, (weight,), (step,))[1], difference
        pairs[f"transpose by {name}"] = _transpose(spec, name, one, weight, y), jax.vjp(two, weight)[1](other(y))
    return pairs


def _transpose(spec, name, function, weight, y):
    try:
        return jax.linear_transpose(function, weight)(other(y))
    except Exception as error:
        raise ConformanceError(
            f"The operation is not linear in {name}: it has no transpose.", where=spec.name
        ) from error


class _Window:
    """A window of random inputs, factors and signals for one primitive."""

    def __init__(self, spec, operands, params, num_states, num_steps):
        self.spec, self.params = spec, params
        self.positions = spec.trainable_invars(params)
        self.weights = {name: operands[i] for name, i in self.positions.items()}
        self.x = None if spec.x_invar_index is None else operands[spec.x_invar_index]
        self.y = jax.eval_shape(functools.partial(spec.primitive.evaluate, **params), *operands)
        dtype = jnp.result_type(self.y.dtype, jnp.float32)
        self.xs = None if self.x is None else jnp.stack([other(self.x, t) for t in range(num_steps)])
        shape = (num_states, *self.y.shape)
        self.factors = draw((num_steps, *shape), dtype)
        self.blocks = draw((num_states, *shape), dtype)
        self.signal = draw(shape, dtype, 1)

    def plain(self, x, weights):
        slots = {self.spec.x_invar_index: x} | {i: weights[name] for name, i in self.positions.items()}
        return self.spec.primitive.evaluate(*(slots[i] for i in sorted(slots.keys() - {None})), **self.params)

    def step(self, t):
        return None if self.xs is None else self.xs[t]

    def pairs(self) -> Pairs:
        rule, name, num_states = self.spec.trace_rule, self.spec.name, self.factors.shape[1]
        abstract = self.x, self.weights, self.y
        require_pullback(name, rule, *abstract, self.params)
        require_trace(name, rule, *abstract, num_states, self.params)
        trace = jax.eval_shape(self.trace, self.weights)
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trace))
        found = rule.trace_size(*abstract, num_states, self.params)
        if found != size:
            raise ConformanceError(
                "trace_size is wrong.", where=f"{name}, trace_size", found=str(found), expected=str(size)
            )
        return _jit(self._pairs)(self.weights)

    def trace(self, weights, steps=slice(None)):
        xs = None if self.xs is None else self.xs[steps]
        return self.spec.trace_rule.accumulate(xs, self.factors[steps], weights, self.params)

    def _pairs(self, weights):
        rule, params, times = self.spec.trace_rule, self.params, range(self.factors.shape[0])
        gs = self.factors[:, 0].astype(self.y.dtype)
        vjps = [jax.vjp(lambda w, t=t: self.plain(self.step(t), w), weights)[1](gs[t])[0] for t in times]
        pairs: Pairs = {"pullback": (rule.pullback(self.xs, weights, gs, params), _total(vjps))}
        trace = self.trace(weights)
        pairs["steps"] = trace, _total([self.trace(weights, slice(t, t + 1)) for t in times])
        got = rule.contract(trace, self.signal, weights, params)
        generic = GenericTraceRule(lambda x, weights, params: self.plain(x, weights))
        reference = generic.accumulate(self.xs, self.factors, weights, params)
        pairs["trace"] = got, generic.contract(reference, self.signal, weights, params)
        for name, repeats in {"decay": 1, "decay into more states": 2}.items():
            blocks, signal = (jnp.concatenate([v] * repeats) for v in (self.blocks, self.signal))
            decayed = rule.contract(self.decayed(trace, blocks), signal, weights, params)
            pulled = jnp.einsum("sr...,s...->r...", blocks, signal)
            pairs[name] = decayed, rule.contract(trace, pulled, weights, params)
        complex_y = jnp.issubdtype(self.y.dtype, jnp.complexfloating)
        if all(jnp.iscomplexobj(w) == complex_y for w in weights.values()):
            pairs["jacobian"] = got, self.from_jacobians(weights, complex_y)
        return pairs

    def decayed(self, trace, blocks):
        """The trace through a transition, of as many states as `blocks` has rows."""
        where = f"{type(self.spec.trace_rule).__name__}.decay"
        expected = f"new[s] = sum_r blocks[s, r] · trace[r] for blocks of shape {blocks.shape}"
        try:
            new = self.spec.trace_rule.decay(trace, blocks, self.params)
        except (TypeError, ValueError) as error:
            raise ConformanceError(
                "The trace rule cannot decay.", where=where, found=str(error), expected=expected
            ) from error
        if any(len(leaf) != len(blocks) for leaf in jax.tree.leaves(new)):
            found = str([leaf.shape for leaf in jax.tree.leaves(new)])
            raise ConformanceError("The trace rule decays wrongly.", where=where, found=found, expected=expected)
        return new

    def from_jacobians(self, weights, holomorphic):
        def gradient(t):
            jacobians = jax.jacfwd(lambda w: self.plain(self.step(t), w), holomorphic=holomorphic)(weights)
            weighted = jnp.sum(self.signal * self.factors[t], 0)
            return {name: jnp.tensordot(weighted, jacobian, weighted.ndim) for name, jacobian in jacobians.items()}

        total = _total([gradient(t) for t in range(self.factors.shape[0])])
        return {name: cast_like(total[name], w) for name, w in weights.items()}

    def gradient(self):
        return _jit(self._gradient)(self.xs, self.factors, self.blocks, self.signal)

    def _gradient(self, xs, factors, blocks, signal):
        rule, params = self.spec.trace_rule, self.params
        trace = rule.decay(rule.accumulate(xs, factors, self.weights, params), blocks, params)
        return rule.contract(trace, signal, self.weights, params)

    def sum_over_samples(self, batch):
        arrays = batch.xs, batch.factors, batch.blocks, batch.signal
        axes = (1, 2, 2, 1)
        gradient = _jit(self._gradient)
        samples = range(batch.xs.shape[1])
        return _total([gradient(*(a.take(b, axis) for a, axis in zip(arrays, axes, strict=True))) for b in samples])


def _mapped(spec, operands, params):
    """Specification, operands and params of the primitive mapped over its input."""
    x = spec.x_invar_index
    stacked = jnp.stack([operands[x], other(operands[x])])
    eqns = jax.make_jaxpr(jax.vmap(_at(functools.partial(spec.primitive.bind, **params), operands, [x])))(stacked).eqns
    marked = [eqn for eqn in eqns if is_etp_primitive(eqn.primitive)]
    if len(marked) != 1:
        raise ConformanceError("The primitive does not survive vmap over its input.", where=spec.name)
    mapped = tuple(stacked if i == x else operand for i, operand in enumerate(operands))
    return get_primitive_spec(marked[0].primitive), mapped, dict(marked[0].params)


def _at(function, operands, positions):
    def restricted(*values):
        chosen = dict(zip(positions, values, strict=True))
        return function(*(chosen.get(i, operand) for i, operand in enumerate(operands)))

    return restricted


def _total(trees):
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def draw(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> jax.Array:
    """Normal random numbers, the same for the same arguments."""
    rng = np.random.default_rng([seed, *shape])
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return jnp.asarray(values, dtype)


def other(like: Any, seed: int = 0) -> jax.Array:
    """Another array of the same kind: random numbers, or the same integers in another order."""
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return draw(like.shape, like.dtype, seed + 2)
    return jnp.roll(like, seed + 1)
