"""Optimisers of two kinds behind one face: a pure update of parameters, with states that can be carried and saved."""

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ._errors import LearnerError, LearnerTypeError
from ._functional import purify

Parameters = dict[Any, brainstate.State]


class OptimizerState(brainstate.LongTermState):
    """State of an optimiser that a learner steps."""


class UpdateRule:
    """An optimiser as a pure function.

    Attributes
    ----------
    optimizer : object
        As the user gave it.
    paths : tuple
        Of the parameters that learn.
    states : sequence of brainstate.State
        What it remembers.
    """

    optimizer: Any
    paths: tuple[Any, ...]
    states: Sequence[brainstate.State]

    def serves(self, optimizer: Any, parameters: Parameters) -> bool:
        """Whether this is the rule of an optimiser for parameters."""
        return self.optimizer is optimizer and self.paths == tuple(parameters)

    def apply(
        self, grads: dict[Any, Any], theta: dict[Any, Any], values: list[Any]
    ) -> tuple[dict[Any, Any], list[Any]]:
        """New parameters by path, and new values of `states`.

        Parameters
        ----------
        grads : dict
            Path -> gradient, for the parameters that learn.
        theta : dict
            Path -> value, for all parameters.
        values : list
            Of `states`.
        """
        raise NotImplementedError


class TransformationRule(UpdateRule):
    """A gradient transformation in the manner of Optax: ``init(params)`` and ``update(grads, state, params)``.

    Parameters
    ----------
    optimizer : object
    parameters : dict
        Path -> state of the parameters that learn.
    state : OptimizerState, optional
        To go on with; initialised by default.
    """

    states: tuple[OptimizerState]

    def __init__(self, optimizer: Any, parameters: Parameters, state: OptimizerState | None = None):
        self.optimizer, self.paths = optimizer, tuple(parameters)
        if state is None:
            state = OptimizerState(self._initial(parameters))
        else:
            _require_same(jax.eval_shape(lambda: self._initial(parameters)), state.value)
        self.states = (state,)

    def restart(self, parameters: Parameters) -> None:
        """Forget what the optimiser remembers, in place: what was compiled for it goes on to serve."""
        self.states[0].value = self._initial(parameters)

    def _initial(self, parameters: Parameters) -> Any:
        return jax.tree.map(jnp.asarray, self.optimizer.init({path: s.value for path, s in parameters.items()}))

    def apply(self, grads, theta, values):
        learning = {path: theta[path] for path in grads}
        updates, state = self.optimizer.update(grads, values[0], learning)
        new = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), learning, updates)
        return {**theta, **new}, [state]


class StatefulRule(UpdateRule):
    """An optimiser that holds its parameters, in the manner of braintools: ``register_trainable_weights``, ``update``.

    Parameters
    ----------
    optimizer : object
    parameters : dict
        Path -> state of the parameters that learn; registered where the optimiser holds none yet.
    """

    def __init__(self, optimizer: Any, parameters: Parameters):
        self.optimizer, self.paths = optimizer, tuple(parameters)
        if getattr(optimizer, "opt_state", None) is None:
            optimizer.register_trainable_weights(parameters)
        path_of = {id(state): path for path, state in parameters.items()}
        update, states, *_ = purify(optimizer.update, {path: s.value for path, s in parameters.items()})
        self._update, self._slots = update, [path_of.get(id(state)) for state in states]
        self.states = tuple(s for s, path in zip(states, self._slots, strict=True) if path is None)

    def apply(self, grads, theta, values):
        own = iter(values)
        _, new = self._update([next(own) if path is None else theta[path] for path in self._slots], grads)
        pairs = list(zip(self._slots, new, strict=True))
        changed = {path: value for path, value in pairs if path is not None}
        return {**theta, **changed}, [value for path, value in pairs if path is None]


def update_rule(optimizer: Any, parameters: Parameters, state: OptimizerState | None = None) -> UpdateRule:
    """The rule of an optimiser; `state` is gone on with where the learner keeps it."""
    if callable(getattr(optimizer, "register_trainable_weights", None)):
        return StatefulRule(optimizer, parameters)
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return TransformationRule(optimizer, parameters, state)
    raise LearnerTypeError(
        "This is no optimiser.",
        where="optimizer",
        found=type(optimizer).__name__,
        expected="an Optax gradient transformation, or an optimiser of braintools.optim",
        fix="for example optimizer=optax.adam(1e-3)",
    )


def _require_same(expected: Any, found: Any) -> None:
    """Refuse the state of another optimiser, or of another set of parameters."""

    def shapes(tree):
        return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    expected, found = shapes(expected), shapes(found)
    if expected != found:
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        raise LearnerError(
            "The learner keeps the state of another optimiser, or of other parameters.",
            where="optimizer",
            found=f"differences at {', '.join(differing[:8])}",
            fix="call learner.init_optimizer(optimizer) to start the new one afresh",
        )
