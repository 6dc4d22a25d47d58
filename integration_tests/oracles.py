"""Gradients that online learning is held to, in plain JAX and independent of braintrace.

A strict gradient of the weights of a group G is that of backpropagation through time in a *rewritten* model: h^{t-1}
of G is under `stop_gradient` where it enters an operation on the way back to G, h^{t-1} of every other group is under
it everywhere, and what reaches G through a second operation counts in its own step only (semantics, section 6).

A step is written once, as ``step(view, params, hidden, x) -> (hidden, out)``. The `View` says which cuts are made, and
with which matrix product; the model under test reads the very same step through marked operations without cuts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def _affine(x: jax.Array, w: jax.Array, b: jax.Array | None = None) -> jax.Array:
    return x @ w if b is None else x @ w + b


def _identity(w: jax.Array) -> jax.Array:
    return w


@dataclass(frozen=True)
class View:
    """How a step sees its operations and its past.

    Parameters
    ----------
    group : str, optional
        The group whose weights are asked for; ``"step"`` for those that are followed within a step only. None makes no
        cuts at all.
    carried : bool
        Whether this evaluation makes the state that is carried to the next step, or only the loss of this one.
    matmul, element_wise : callable
        The operations.
    """

    group: str | None = None
    carried: bool = False
    matmul: Callable[..., jax.Array] = _affine
    element_wise: Callable[[jax.Array], jax.Array] = _identity

    def memory(self, h: Tree, group: str) -> Tree:
        """h^{t-1} of `group`, read position by position or by an operation that does not lead back."""
        return h if self.group in (None, group) else jax.lax.stop_gradient(h)

    def recurrent(self, h: Tree) -> Tree:
        """h^{t-1}, read by an operation that leads back to its own group."""
        return h if self.group is None else jax.lax.stop_gradient(h)

    def crossing(self, value: Tree) -> Tree:
        """What one operation made, on its way through another one to the same group."""
        return jax.lax.stop_gradient(value) if self.group is not None and self.carried else value

    def use(self, weight: Tree, group: str) -> Tree:
        """A weight that several groups share, where `group` uses it."""
        return weight if self.group in (None, group) else jax.lax.stop_gradient(weight)


Step = Callable[[View, Mapping[str, Tree], Mapping[str, jax.Array], jax.Array], tuple[dict[str, jax.Array], Any]]


class Case(NamedTuple):
    """A model to learn online.

    Attributes
    ----------
    name : str
    params : dict
        Initial value of each parameter.
    states : dict
        Size of each hidden state of one sample.
    step : callable
    groups : dict
        Parameter -> groups in whose views its gradient is taken and summed; ``("step",)`` for a weight without memory.
    exact : bool
        Whether nothing is cut, so that the strict gradient is that of backpropagation through time.
    penalty : float
        Weight of a loss on the hidden states themselves.
    """

    name: str
    params: dict[str, Tree]
    states: dict[str, int]
    step: Step
    groups: dict[str, tuple[str, ...]]
    exact: bool = False
    penalty: float = 0.0

    def loss(self, out: Any, hidden: Mapping[str, jax.Array], target: Any) -> jax.Array:
        """Loss of one step."""
        value = jnp.mean((out - target) ** 2)
        return value + self.penalty * sum(jnp.mean(h**3) for h in hidden.values()) if self.penalty else value

    def initial(self, batch: tuple[int, ...], dtype: Any) -> dict[str, jax.Array]:
        """Hidden states at rest."""
        return {name: jnp.zeros((*batch, size), dtype) for name, size in self.states.items()}


class Data(NamedTuple):
    """Inputs and targets, time first; `batch` is () or (B,)."""

    xs: jax.Array
    ys: jax.Array
    batch: tuple[int, ...]


def make_data(case: Case, num_in: int, steps: int, batch: tuple[int, ...], dtype: Any, seed: int = 0) -> Data:
    """Random inputs, and targets of the shape of the model's output."""
    rng = np.random.default_rng(seed)
    xs = jnp.asarray(rng.normal(size=(steps, *batch, num_in)), dtype)
    params = cast(case.params, dtype)
    out = jax.eval_shape(lambda: case.step(View(), params, case.initial(batch, dtype), xs[0])[1])
    return Data(xs, jnp.asarray(rng.normal(size=(steps, *out.shape)), dtype), batch)


def cast(params: Tree, dtype: Any) -> Tree:
    """`params` as arrays of `dtype`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def sequence_loss(case: Case, view: View, params: Tree, data: Data, steps: slice = slice(None)) -> jax.Array:
    """Sum over time of the losses of the model that `view` shows."""

    def body(hidden: dict[str, jax.Array], xy: Any) -> Any:
        x, y = xy
        seen, out = case.step(view, params, hidden, x)
        carried, _ = case.step(carry, params, hidden, x)
        return carried, case.loss(out, seen, y)

    carry = View(view.group, True, view.matmul, view.element_wise)
    initial = case.initial(data.batch, data.xs.dtype)
    return jax.lax.scan(body, initial, (data.xs[steps], data.ys[steps]))[1].sum()


def gradients(case: Case, data: Data, groups: Iterable[str | None]) -> dict[str | None, dict[str, Tree]]:
    """For each group the gradient of its rewritten model, for all parameters."""

    def differentiate(params: Tree) -> Tree:
        return [jax.grad(lambda p, g=g: sequence_loss(case, View(g), p, data))(params) for g in groups]

    groups = tuple(dict.fromkeys(groups))
    compiled = jax.jit(differentiate, compiler_options={"xla_backend_optimization_level": 0})  # soon compiled
    return dict(zip(groups, compiled(cast(case.params, data.xs.dtype)), strict=True))


def gradient(case: Case, data: Data, group: str | None) -> dict[str, Tree]:
    """Gradient of the rewritten model of `group`, for all parameters; of the model itself for None."""
    return gradients(case, data, [group])[group]


def strict_gradient(case: Case, data: Data) -> dict[str, Tree]:
    """The strict online gradient: each parameter from the rewritten models of its own groups."""
    by_group = gradients(case, data, (g for groups in case.groups.values() for g in groups))
    return {
        name: jax.tree.map(lambda *parts: sum(parts), *(by_group[g][name] for g in groups))
        for name, groups in case.groups.items()
    }


def relative_error(found: Tree, expected: Tree) -> float:
    """Largest deviation of any leaf, relative to the largest entry of that leaf."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, (a.shape, b.shape)
        assert a.dtype == b.dtype, (a.dtype, b.dtype)
        worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    return worst
