"""Eligibility traces of one operation: how they start, grow, decay and turn into weight gradients.

An ETP op ``y = A(x, w)`` feeds hidden states position by position. Its trace is the derivative of those
states with respect to `w`. With S states per position, ``F`` the derivative of the states with respect to `y`
and ``D`` their S × S transition blocks,

    trace[s]  <-  sum_r D[s, r] trace[r]  +  F[s] · ∂y/∂w            (`decay`, then `accumulate`)
    dw         =  sum over s and y of signal[s] · trace[s]           (`contract`)

Conventions: the states axis S leads every trace, factor and signal; a time axis T leads whatever is summed
over time; weights, traces and gradients are dicts keyed by the trainable names of the primitive. Nothing is
conjugated: complex numbers follow the convention of `jax.vjp`. Blocks, factors and signals come in one precision,
single or more; a trace may be kept in less.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ._precision import narrowed, of_bits, widened
from ._sharding import explicit_sharding, explicit_specs, in_auto_axes, sum_over_replicas, varying_like

Arrays = dict[str, Any]

_LARGE = 2**16
"""Elements of a trace from which on it is better not copied."""


class TraceRule:
    """What an online learner asks of an operation.

    The gradient within a window (`pullback`) follows from the op itself. A trace exists only where credit
    must be carried across windows; subclasses choose its layout through `init`, `accumulate`, `decay` and
    `contract`, four methods that must agree with each other.

    Parameters
    ----------
    fn : callable
        ``fn(x, weights, params) -> y`` in plain JAX; `x` is None where the op has no input.

    Notes
    -----
    A rule holds no state. In the shapes below ``*x``, ``*y`` and ``*w`` are the shapes of the op's input,
    output and weight. `weights` may be abstract (`jax.ShapeDtypeStruct`) in `init` and `trace_size`; an op that is
    not linear but multilinear in its weights (LoRA) is taken at the values given.
    """

    def __init__(self, fn: Callable[[Any, Mapping[str, Any], Mapping[str, Any]], Any]):
        self.fn = fn

    def _lacks(self, method: str) -> NotImplementedError:
        return NotImplementedError(
            f"{type(self).__name__} has no `{method}`: a trace rule needs init, accumulate, decay and contract, "
            "which `braintrace_primitives.testing.check_primitive` then holds against derivatives."
        )

    def expanded(self, index: Any) -> "TraceRule":
        """The rule of this op followed by ``y.ravel()[index]``, for a y that is broadcast over positions.

        Parameters
        ----------
        index : array of int
            For each position the flat element of y that feeds it, -1 where none does (its factor is zero).
        """
        return GenericTraceRule(lambda x, weights, params: take(self.fn(x, weights, params), index))

    def pullback(self, xs: Any, weights: Mapping[str, Any], gs: Any, params: Mapping[str, Any]) -> Arrays:
        """Weight gradient of a window: the sum over time of ``gs[t] · ∂y[t]/∂w``, in one contraction.

        Parameters
        ----------
        xs : array of shape ``(T, *x)``, or None
        weights : dict of arrays
        gs : array of shape ``(T, *y)``
            Cotangent of the op's output at every time step.
        params : dict
            Parameters of the equation.

        Returns
        -------
        dict of arrays
            Shapes and dtypes of `weights`.
        """

        def outputs(weights: Mapping[str, Any]) -> Any:
            if xs is None:
                return jnp.broadcast_to(self.fn(None, weights, params), gs.shape)
            return jax.vmap(lambda x: self.fn(x, weights, params))(xs)

        ys, transpose = jax.vjp(outputs, dict(weights))
        return transpose(gs.astype(ys.dtype))[0]

    def init(
        self, x: Any, weights: Mapping[str, Any], y: Any, num_states: int, params: Mapping[str, Any], dtype: Any
    ) -> Arrays:
        """Zero trace for abstract `x`, `y` and `weights` and S = `num_states`."""
        raise self._lacks("init")

    def accumulate(self, xs: Any, factors: Any, weights: Mapping[str, Any], params: Mapping[str, Any]) -> Arrays:
        """What a window adds to the trace: the sum over time of ``factors[t] · ∂y[t]/∂w``.

        Parameters
        ----------
        xs : array of shape ``(T, *x)``, or None
        factors : array of shape ``(T, S, *y)``
            Derivative of the states at the end of the window with respect to ``y[t]``.
        """
        raise self._lacks("accumulate")

    def decay(self, trace: Arrays, blocks: Any, params: Mapping[str, Any]) -> Arrays:
        """Carry the trace through a transition, by position: ``new[s] = sum_r blocks[s, r] · trace[r]``.

        Parameters
        ----------
        blocks : array of shape ``(S, S, *y)``, or ``(R, S, *y)``
            Where some states follow from others alone, those S states are given and all R asked for.
        """
        raise self._lacks("decay")

    def advance(
        self,
        trace: Arrays,
        blocks: Any,
        xs: Any,
        factors: Any,
        weights: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> Arrays:
        """The trace at the end of a window: what `decay` leaves of it, and what `accumulate` adds.

        It is rounded once, to the dtype in which it is kept: `decay` gets it in single precision at least.
        """
        wide = {name: widened(old) for name, old in trace.items()}
        kept, added = self.decay(wide, blocks, params), self.accumulate(xs, factors, weights, params)
        return {name: narrowed(old + added[name], trace[name].dtype) for name, old in kept.items()}

    def advance_in_place(
        self,
        trace: Arrays,
        blocks: Any,
        xs: Any,
        factors: Any,
        weights: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> Arrays:
        """`advance`, for a trace that nothing reads any more: in its memory, where XLA would not do so by itself.

        Parameters
        ----------
        blocks : array of shape ``(S, S, *y)``
            That wait for whatever reads the trace before.
        """
        return self.advance(trace, blocks, xs, factors, weights, params)

    def contract(self, trace: Arrays, signal: Any, weights: Mapping[str, Any], params: Mapping[str, Any]) -> Arrays:
        """Weight gradient from a learning signal: the sum over states and positions of ``signal · trace``.

        Parameters
        ----------
        signal : array of shape ``(S, *y)``
        """
        raise self._lacks("contract")

    def turn(
        self,
        trace: Arrays,
        signal: Any,
        blocks: Any,
        xs: Any,
        factors: Any,
        weights: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> tuple[Arrays, Arrays]:
        """`contract` and `advance` of the same trace.

        A large trace is summed before it goes on: XLA, which would else have to copy it first, writes it in place.
        """
        gradient = self.contract(trace, signal, weights, params)
        leaves = jax.tree.leaves(trace)
        if sum(leaf.size for leaf in leaves) >= _LARGE and all(explicit_sharding(leaf) is None for leaf in leaves):
            in_turn = after(blocks, gradient)
            return gradient, self.advance_in_place(trace, in_turn, xs, factors, weights, params)
        return gradient, self.advance(trace, blocks, xs, factors, weights, params)

    def steps_at_once(self, trace: Arrays, params: Mapping[str, Any]) -> int:
        """Steps that a large trace is better written for at once, where each of them reads it.

        More than one only where what a step adds does not depend on the values of the weights.
        """
        return 1

    def packed(self, trace: Arrays) -> Arrays:
        """A trace as a loop reads it fastest, where `steps_at_once` says that it is read so; `unpacked` undoes it.

        The other methods take it as they take the trace.
        """
        return trace

    def trace_size(self, x: Any, weights: Mapping[str, Any], y: Any, num_states: int, params: Mapping[str, Any]) -> int:
        """Number of elements of the trace."""
        trace = jax.eval_shape(lambda: self.init(x, weights, y, num_states, params, jnp.float32))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trace))

    def uncarried(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the weights that the trace leaves out: their credit ends with the window."""
        return ()

    def acts_beside_input(self, weights: Mapping[str, Any]) -> bool:
        """Whether the op may give anything but zero where its input, by `addend`, is zero, as with a bias."""
        return True

    def fan_in(self, name: str, weights: Mapping[str, Any], params: Mapping[str, Any]) -> float:
        """Number of elements of a weight that an element of the output sums up, on average; `weights` may be abstract.

        By default the last axis of a weight is that of the outputs.
        """
        return math.prod(weights[name].shape[:-1])

    def addend(self, x: Any, weights: Mapping[str, Any]) -> Any:
        """The input as what may be weighed and added up over time; the op is affine in it, by `pullback_of_sums`."""
        return x

    def pullback_of_sums(self, sums: Any, weights: Mapping[str, Any], gs: Any, params: Mapping[str, Any]) -> Arrays:
        """`pullback` where the inputs are sums of what `addend` gives."""
        return self.pullback(sums, weights, gs, params)

    def remark(self, params: Mapping[str, Any]) -> str:
        """What a report should say of the trace, a sentence or nothing."""
        return ""


class GenericTraceRule(TraceRule):
    """Full Jacobian trace of shape ``(S, *y, *w)`` per weight, for any op that is linear in its weights.

    Right for every operation and large for most; families replace it where ``∂y/∂w`` has structure.

    Examples
    --------
    A row-wise scaling, two time steps, one state per position:

    >>> rule = GenericTraceRule(lambda x, weights, params: x * weights["gain"])
    >>> xs, factors = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 1, 2))
    >>> trace = rule.accumulate(xs, factors, {"gain": jnp.ones(2)}, {})
    >>> trace["gain"].shape
    (1, 2, 2)
    >>> rule.contract(trace, jnp.ones((1, 2)), {"gain": jnp.ones(2)}, {})["gain"].tolist()
    [4.0, 6.0]
    """

    def init(self, x, weights, y, num_states, params, dtype):
        return {name: jnp.zeros((num_states, *y.shape, *w.shape), dtype) for name, w in weights.items()}

    def accumulate(self, xs, factors, weights, params):
        # The trace is each device's own: inside shard_map the derivative by a shared weight would be their sum.
        seen = (factors,) if xs is None else (factors, xs)
        weights = {n: varying_like(w.astype(jnp.result_type(w, factors)), *seen) for n, w in weights.items()}
        states, shape = factors.shape[1], factors.shape[2:]
        size = math.prod(shape)
        basis = jnp.tile(jnp.eye(size, dtype=factors.dtype).reshape(size, *shape), (states, *(1,) * len(shape)))

        def step(x, factor):
            def row(one_hot, of_state):
                return self.pullback(None if x is None else x[None], weights, (one_hot * of_state)[None], params)

            return jax.vmap(row)(basis, jnp.repeat(factor, size, 0))

        # One step after the other, and one axis for all rows: so few axes keep clear of what `over_states` tells.
        rows = step(None, sum_leading(factors, 1)) if xs is None else over_time(step, xs, factors)
        return {name: rows[name].reshape(states, *shape, *w.shape) for name, w in weights.items()}

    def decay(self, trace, blocks, params):
        def step(old):
            aligned = blocks.reshape(*blocks.shape, *(1,) * (old.ndim + 1 - blocks.ndim))
            return mix(aligned, old).astype(old.dtype)

        return {name: step(old) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        def over_positions(trace, signal, weights):
            return {name: cast_like(jnp.tensordot(signal, trace[name], signal.ndim), w) for name, w in weights.items()}

        return in_auto_axes(over_positions, explicit_specs(weights), trace, signal, dict(weights))


def after(value: Any, done: Any) -> Any:
    """`value`, so that XLA cannot use it before the arrays `done` are known; barriers are gone when it plans copies."""
    mark = functools.reduce(operator.add, (leaf.reshape(-1)[0].real for leaf in jax.tree.leaves(done)))
    return value + (0 * jnp.where(jnp.isfinite(mark), mark, 1)).astype(value.dtype)


def take(y: Any, index: Any) -> Any:
    """``y.ravel()[index]``; an index of -1 takes any element."""
    return jnp.take(y.reshape(-1), jnp.maximum(index, 0))


def mix(blocks: Any, trace: Any) -> Any:
    """``sum_r blocks[:, r] · trace[r]`` for blocks (R, S, ...) that broadcast against trace (S, ...)."""
    # S is small: unrolled, the sum fuses into one pass over the trace, which a batched product does not.
    return functools.reduce(operator.add, (blocks[:, r] * trace[r] for r in range(trace.shape[0])))


def over_states(values: Any, axis: int) -> Any:
    """Sum over the axis of states."""
    # Unrolled: where a float32 product of seven or eight axes is summed over one that is not the last, XLA gives
    # rubbish on CPU, or crashes (jaxlib 0.10.2 and 0.11.0, github.com/jax-ml/jax/issues/39257 and 40412). With jaxlib
    # 0.12, or XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= in the environment, a plain sum is right:
    #     jax.jit(lambda a, b: (a * b).sum(2))(jnp.ones((5, 7, 2, 2, 3, 8, 8)), jnp.ones((2, 2, 3, 8, 8)))
    return functools.reduce(
        operator.add, (jax.lax.index_in_dim(values, s, axis, keepdims=False) for s in range(values.shape[axis]))
    )


_FEW, _MANY_AXES = 2**13, 5
"""Terms that XLA sums as fast in any way, and from how many axes on the fault above is kept clear of."""


def sum_leading(terms: Any, count: int) -> Any:
    """Sum over the first `count` axes; as safe as `over_states` on CPU."""
    few = terms.size <= _FEW and terms.ndim < _MANY_AXES
    if count == 0 or few or explicit_sharding(terms) is not None:
        return terms.sum(tuple(range(count)))
    # XLA's reduction over leading axes is an order of magnitude slower than a product with ones on CPU, which takes
    # longer to compile.
    return jax.lax.platform_dependent(
        terms,
        cpu=lambda terms: jnp.tensordot(jnp.ones(terms.shape[:count], terms.dtype), terms, count),
        default=lambda terms: terms.sum(tuple(range(count))),
    )


def over_time(term: Callable[..., Any], xs: Any, gs: Any) -> Any:
    """``sum_t term(xs[t], gs[t])`` in the memory of one step."""
    if not len(xs):
        return jax.tree.map(jnp.zeros_like, term(*(jnp.zeros(a.shape[1:], a.dtype) for a in (xs, gs))))

    def add(total, pair):
        return jax.tree.map(operator.add, total, term(*pair)), None

    return jax.lax.scan(add, term(xs[0], gs[0]), (xs[1:], gs[1:]))[0]


def unpacked(packed: Any, trace: Any) -> Any:
    """The trace that a rule has `packed`, with the dtypes of `trace`."""
    return jax.tree.map(lambda leaf, like: of_bits(leaf, like.dtype), packed, trace)


def cast_like(value: Any, weight: Any) -> Any:
    """A gradient of `weight`: in its dtype (real part for a real weight), replicated where `weight` is."""
    value = sum_over_replicas(value, weight)
    if jnp.iscomplexobj(value) and not jnp.issubdtype(weight.dtype, jnp.complexfloating):
        value = value.real
    return value.astype(weight.dtype)


def in_precision_of(factors: Any, xs: Any) -> Any:
    """`xs` in the precision of `factors`; complex input stays complex."""
    return xs.astype(jnp.result_type(factors, xs) if jnp.iscomplexobj(xs) else factors.dtype)
