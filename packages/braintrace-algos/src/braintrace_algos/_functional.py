"""From functions that read and write brainstate states to pure functions."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from braintrace_primitives._jax_compat import Jaxpr, eval_jaxpr, make_jaxpr_without_consts

from ._state_values import set_values, values_of


class Traced(NamedTuple):
    """What a stateful function does.

    Attributes
    ----------
    program : Jaxpr
    outputs : list of lists
        The variables of each part of its output.
    states, new_states : lists of lists
        Those of each state's value before and after.
    """

    program: Jaxpr
    outputs: list[list[Any]]
    states: list[list[Any]]
    new_states: list[list[Any]]


def purify(
    function: Callable[..., Any], *args: Any
) -> tuple[Callable[..., tuple[Any, list[Any]]], tuple[brainstate.State, ...], tuple[bool, ...], Traced]:
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
    tuple of bool
        Which of them it writes.
    Traced
    """
    stateful = brainstate.transform.StatefulFunction(function, return_only_write=False, name="braintrace")
    try:
        stateful.make_jaxpr(*args)
    except jax.errors.JAXTypeError as error:
        error.add_note(
            "braintrace: a step is compiled, and values inside of it are not known yet. Compute with jax.numpy rather "
            "than NumPy, choose by jnp.where or jax.lax.cond rather than if, and return the loss as it is: "
            "etrace_grad(..., return_value=True) gives its value."
        )
        raise
    program, consts = make_jaxpr_without_consts(stateful.get_jaxpr(*args))
    states = tuple(stateful.get_states(*args))
    written = {id(state) for state in stateful.get_write_states(*args)}
    tree = jax.tree.structure(stateful.get_out_shapes(*args))

    def pure(values: Sequence[Any], *args: Any) -> tuple[Any, list[Any]]:
        leaves = eval_jaxpr(program, *consts, *jax.tree.leaves(args), *jax.tree.leaves(list(values)))
        output, new = jax.tree.unflatten(tree, leaves)
        return output, list(new)

    inputs, outputs = iter(program.invars[len(consts) + len(jax.tree.leaves(args)) :]), iter(program.outvars)
    of_outputs = [[next(outputs) for _ in range(part.num_leaves)] for part in tree.children()[0].children()]
    of_states = [[next(inputs) for _ in jax.tree.leaves(state.value)] for state in states]
    of_new_states = [[next(outputs) for _ in before] for before in of_states]
    traced = Traced(program, of_outputs, of_states, of_new_states)
    return pure, states, tuple(id(state) in written for state in states), traced


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
    traced : Traced
    states : tuple of brainstate.State
        That the function touches.
    others : list of brainstate.State
        Those of them that are no parameters.
    unchanged : list of bool
        Which of `others` have the value that they had before.
    """

    def __init__(self, function: Callable[..., Any], parameters: dict[Any, brainstate.State], *args: Any):
        self._pure, self.states, _, self.traced = purify(function, *args)
        self.parameters = parameters
        path_of = {id(state): path for path, state in parameters.items()}
        self._paths = [path_of.get(id(s)) for s in self.states]
        self.others = [s for s, path in zip(self.states, self._paths, strict=True) if path is None]
        known = zip(self.traced.states, self.traced.new_states, self._paths, strict=True)
        self.unchanged = [before == after for before, after, path in known if path is None]
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
        return [_shapes(*jax.tree.flatten(state.value)) for state in self.states]


def _shapes(leaves: list[Any], tree: Any) -> Any:
    arrays = (v if isinstance(v, jax.Array) else jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for v in leaves)
    return tree, [(v.shape, v.dtype) for v in arrays]


class CompiledCall:
    """A stateful function of arrays, compiled for calls outside of any JAX trace.

    Like one under ``brainstate.transform.jit``, but what it is compiled for is looked up by JAX alone, every state is
    read once, and what checks the function makes are made when it is traced.

    Parameters
    ----------
    function : callable
        Of arrays; what else it reads must be fixed, or a state.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self._traced: Any = None
        self._states: tuple[brainstate.State, ...] = ()
        self._written: list[brainstate.State] = []
        self._run = jax.jit(self._pure)

    def __call__(self, *args: Any) -> Any:
        if not self._states:
            self._traced, self._states, written, _ = purify(self._function, *args)
            self._written = list(itertools.compress(self._states, written))
        out, new = self._run(values_of(self._states), args)
        set_values(self._written, new)
        return out

    def _pure(self, values: Sequence[Any], args: Any) -> tuple[Any, list[Any]]:
        """Traced anew for each combination of shapes, dtypes and settings: what was traced serves the first one."""
        traced, self._traced = self._traced, None
        if traced is None:
            traced, *_ = purify(self._function, *args)
        out, new = traced(values, *args)
        written = {id(state) for state in self._written}
        return out, [value for state, value in zip(self._states, new, strict=True) if id(state) in written]

    def fits(self) -> bool:
        """Always: states of other shapes are traced anew."""
        return True
