"""From functions that read and write brainstate states to pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_primitives._jax_compat import eval_jaxpr, make_jaxpr_without_consts


def purify(
    function: Callable[..., Any], *args: Any
) -> tuple[Callable[..., tuple[Any, list[Any]]], tuple[brainstate.State, ...]]:
    """Trace a stateful function once.

    Parameters
    ----------
    function : callable
    *args
        Example arguments; only structure, shapes and dtypes matter.

    Returns
    -------
    callable
        ``pure(values, *args) -> (output, new values)`` where `values` holds one pytree for each state.
    tuple of brainstate.State
        The states that the function touches.
    """
    stateful = brainstate.transform.StatefulFunction(function, return_only_write=False, name="braintrace")
    stateful.make_jaxpr(*args)
    program, consts = make_jaxpr_without_consts(stateful.get_jaxpr(*args))
    states = tuple(stateful.get_states(*args))
    tree = jax.tree.structure(stateful.get_out_shapes(*args))

    def pure(values: Sequence[Any], *args: Any) -> tuple[Any, list[Any]]:
        leaves = eval_jaxpr(program, *consts, *jax.tree.leaves(args), *jax.tree.leaves(list(values)))
        output, new = jax.tree.unflatten(tree, leaves)
        return output, list(new)

    return pure, states


class StatefulProgram:
    """A stateful function as a pure function of parameters and of the values of all other states.

    Parameters
    ----------
    function : callable
    parameters : dict
        Path -> state.
    *args
        Example arguments.

    Attributes
    ----------
    parameters : dict
    others : list of brainstate.State
        The states, parameters excepted, that the function touches.
    """

    def __init__(self, function: Callable[..., Any], parameters: dict[Any, brainstate.State], *args: Any):
        self._pure, self._states = purify(function, *args)
        self.parameters = parameters
        path_of = {id(state): path for path, state in parameters.items()}
        self._paths = [path_of.get(id(s)) for s in self._states]
        self.others = [s for s, path in zip(self._states, self._paths, strict=True) if path is None]
        self._shapes = self._present_shapes()

    def __call__(self, theta: dict[Any, Any], values: Sequence[Any], *args: Any) -> tuple[Any, list[Any]]:
        """The function's output and the new values of `others`, from parameters by path and values of `others`."""
        own = iter(values)
        output, new = self._pure([next(own) if path is None else theta[path] for path in self._paths], *args)
        return output, [v for v, path in zip(new, self._paths, strict=True) if path is None]

    def read(self) -> tuple[dict[Any, Any], list[Any]]:
        """Parameters by path, and values of `others`, as they are now."""
        return {path: state.value for path, state in self.parameters.items()}, [s.value for s in self.others]

    def write(self, values: Sequence[Any]) -> None:
        """Give `others` new values."""
        for state, value in zip(self.others, values, strict=True):
            state.value = value

    def fits(self) -> bool:
        """Whether the states still have the shapes that the function was traced with."""
        return self._shapes == self._present_shapes()

    def _present_shapes(self) -> Any:
        return [
            (jax.tree.structure(s.value), [(jnp.shape(v), jnp.result_type(v)) for v in jax.tree.leaves(s.value)])
            for s in self._states
        ]
