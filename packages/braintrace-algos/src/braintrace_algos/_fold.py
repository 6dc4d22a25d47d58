"""The fold: a window of K steps at a time (semantics, section 4).

For a group with transition blocks D^t (S x S per position) and past signals q^t, all that a window asks for is the
recursion, backwards over the window,

    M^{t-1} = M^t D^t + [q^t ; 0],      M^K = [0 ; I]

of S + 1 rows for each position. Row 0 is kappa^t, the cotangent that later steps of the window send back to h^t; the
other rows are the suffix products P^t = D^K ... D^{t+1}. Multiplied by F^t, row 0 adds to the cotangent of the
operation's output, and the others say what the step leaves at the exit of the window. Nothing is divided, so exact
zeros in D (hard resets) are safe.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._feeds import collect, spread
from ._plan import Coupling, Operands, Plan
from ._step import Derivatives


class Window(NamedTuple):
    """A tape of K steps; every leaf has a leading time axis.

    Attributes
    ----------
    derivatives : Derivatives
        D^t, F^t and x^t.
    b : sequence
        Cotangent of each operation's output, dl^t/dy.
    q : dict
        Group -> (K, S, *positions), dl^t/dh^{t-1}. Empty where `b` is complete and the past enters as one `entry`.
    """

    derivatives: Derivatives
    b: Sequence[Any]
    q: dict[int, Any]


def fold(
    plan: Plan, window: Window, traces: Any, weights: Operands, entry: dict[int, Any] | None = None
) -> tuple[Operands, Any]:
    """Turn a window into weight gradients and new traces.

    Parameters
    ----------
    plan : Plan
    window : Window
    traces : pytree
        The carry at the entry of the window.
    weights : Operands
    entry : dict, optional
        Group -> (S, *positions): cotangent of the state at entry, where it is known as a whole (multi-step).

    Returns
    -------
    Operands
        Gradient of the weights.
    pytree
        The carry at the exit.
    """

    def single(window, traces, entry):
        return _fold_single(plan, window, traces, weights, entry)

    if plan.batch is None:
        g, past, new = single(window, traces, entry)
    else:
        g, past, new = jax.vmap(single, in_axes=(1, 0, 0), out_axes=(1, 0, 0))(window, traces, entry)
        past = jax.tree.map(lambda dw: dw.sum(0), past)
    gradients = []
    for k, operation in enumerate(plan.operations):
        x, gy = window.derivatives.x[k], g[k]
        if plan.batch is not None:  # copies are so many more time steps to the pullback
            x, gy = (None if v is None else v.reshape(-1, *v.shape[2:]) for v in (x, gy))
        dw = operation.spec.trace_rule.pullback(x, weights[k], gy, operation.eqn.params)
        gradients.append({name: dw[name] + past[k].get(name, 0) for name in dw})
    return tuple(gradients), new


def _fold_single(plan: Plan, window: Window, traces: Any, weights: Operands, entry: dict[int, Any] | None):
    """Cotangents of the operations' outputs, gradient by way of the entry, and the carry at the exit."""
    derivatives = window.derivatives
    g = list(window.b)
    P, PF, signals = {}, {}, {}
    for index in plan.traced:
        M, M0 = _rows(plan, index, window)
        signals[index] = M0[0] if entry is None else entry[index]
        if index in derivatives.D:
            P[index] = M0[1:]
        for c in (c for c in plan.couplings if c.group == index):
            R = _through_F(c, M, derivatives.F[c.key])
            PF[c.key] = R[:, 1:]
            if index in window.q:
                sent = collect(c.feed, R[:, 0], plan.operations[c.operation].y_var.aval.shape)
                g[c.operation] = g[c.operation] + sent.astype(g[c.operation].dtype)
    past = plan.carry.entry_gradient(plan, traces, signals, weights)
    return g, past, plan.carry.exit(plan, traces, P, PF, derivatives.x, weights)


def _rows(plan: Plan, index: int, window: Window) -> tuple[Any, Any]:
    """M^t for t = 1 ... K, of shape (K, S + 1, S, *positions), and M^0."""
    group = plan.transitions[index].group
    S, positions, dtype = group.num_state, group.varshape, group.hidden_invars[0].aval.dtype
    K = jax.tree.leaves(window)[0].shape[0]
    D, q = window.derivatives.D.get(index), window.q.get(index)
    if q is None:
        q = jnp.zeros((K, S, *positions), dtype)
    nothing = jnp.zeros((S, *positions), dtype)
    eye = jnp.broadcast_to(jnp.eye(S, dtype=dtype).reshape(S, S, *(1,) * len(positions)), (S, S, *positions))
    last = jnp.concatenate([nothing[None], eye])
    if D is None:
        before = jnp.concatenate([q[:, None], jnp.zeros((K, S, S, *positions), dtype)], axis=1)
        return jnp.concatenate([before[1:], last[None]]), before[0]

    def back(M, step):
        D, q = step
        before = sum(M[:, s, None] * D[s] for s in range(S))
        return before.at[0].add(q), M

    M0, M = jax.lax.scan(back, last, (D, q), reverse=True)
    return M, M0


def _through_F(c: Coupling, M: Any, F: Any) -> Any:
    """M^t F^t at the elements that carry the trace: (K, S + 1, *elements)."""
    at = spread(c.feed, M, 3)
    return sum(at[:, :, s] * F[:, None, s] for s in range(F.shape[1]))


def advance(plan: Plan, derivatives: Derivatives, traces: Any, weights: Operands) -> Any:
    """The carry after one more step: e^t = D^t e^{t-1} + F^t dy/dw."""

    def single(derivatives, traces):
        PF, x = jax.tree.map(lambda v: v[None], (derivatives.F, derivatives.x))
        return plan.carry.exit(plan, traces, derivatives.D, PF, x, weights)

    return (single if plan.batch is None else jax.vmap(single))(derivatives, traces)


def recall(plan: Plan, traces: Any, weights: Operands) -> list[Any]:
    """Zero perturbations of the previous states, whose cotangent q becomes the gradient q e of the weights.

    This is how the past enters ordinary differentiation: as a function of the weights whose value is zero and whose
    derivative is the trace.
    """

    lead = 0 if plan.batch is None else 1

    @jax.custom_vjp
    def past(traces, weights):
        return plan.copies(plan.zero_previous())

    def forward(traces, weights):
        return past(traces, weights), (traces, weights)

    def backward(saved, q):
        traces, weights = saved

        def single(traces, signals):
            return plan.carry.entry_gradient(plan, traces, signals, weights)

        gradient = (single if plan.batch is None else jax.vmap(single))(traces, plan.by_group(q, lead))
        if plan.batch is not None:
            gradient = jax.tree.map(lambda dw: dw.sum(0), gradient)
        filled = tuple(
            {n: dw.get(n, jnp.zeros_like(v)) for n, v in w.items()} for w, dw in zip(weights, gradient, strict=True)
        )
        return jax.tree.map(jnp.zeros_like, traces), filled

    past.defvjp(forward, backward)
    return past(jax.lax.stop_gradient(traces), weights)
