"""From functions that read and write brainstate states to pure functions."""

from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax

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
