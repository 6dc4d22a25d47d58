"""A front end for pure functions: ``step(params, hidden, *args) -> (hidden, out)`` over pytrees."""

from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import numpy as np

from ._control_flow import ControlFlowPolicy
from ._errors import CompilationError
from ._module_info import ModuleInfo, extract_module_info

Step = Callable[..., tuple[Any, Any]]


class StepModule(brainstate.nn.Module):
    """A pure step function as a module, for any framework whose models are pytrees.

    Parameters
    ----------
    step : callable
        ``step(params, hidden, *args, **kwargs) -> (new hidden, output)``.
    params : pytree
        Array leaves become parameters; other leaves are static.
    hidden : pytree or callable
        Hidden states at rest, or ``hidden(batch_size)`` that makes them when the states are initialised.

    Attributes
    ----------
    params, hidden : dict
        One state for each array leaf, by its path in the pytree.

    Raises
    ------
    CompilationError
        If `step` does not give a pair whose first part has the structure of `hidden`, or runs before there are hidden
        states.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace_primitives import matmul
    >>> from braintrace_compiler import StepModule, compile_etrace_graph
    >>> def step(params, hidden, x):
    ...     h = jnp.tanh(0.9 * hidden + matmul(x, params["w"]))
    ...     return h, h
    >>> model = StepModule(step, {"w": jnp.ones((2, 3))}, jnp.zeros(3))
    >>> graph = compile_etrace_graph(model, jnp.zeros(2))
    >>> [r.weight_path for r in graph.hidden_param_op_relations]
    [('params', 'w')]
    """

    def __init__(self, step: Step, params: Any, hidden: Any):
        super().__init__()
        self._step, self._make_hidden = step, hidden
        self.params, self._join_params = _as_states(params, brainstate.ParamState)
        self.hidden: dict[str, Any] = {}
        self._join_hidden: Callable[[Any], Any] | None = None
        if not callable(hidden):
            self.init_state()

    def init_state(self, batch_size: int | None = None) -> None:
        """Put the hidden states at rest."""
        hidden = self._make_hidden(batch_size) if callable(self._make_hidden) else self._make_hidden
        self.hidden, self._join_hidden = _as_states(hidden, brainstate.HiddenState)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """One step: reads and writes the hidden states, gives the output."""
        if self._join_hidden is None:
            raise CompilationError(
                "The hidden states of a step are not there yet.",
                found="`hidden` is a function of the batch size, which has not been called",
                fix="call init_state(batch_size), or brainstate.nn.init_all_states; braintrace.compile does it",
            )
        before = self._join_hidden(self.hidden)
        result = self._step(self._join_params(self.params), before, *args, **kwargs)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise CompilationError(
                "A pure step function returns a pair.", found=type(result).__name__, expected="(new hidden, output)"
            )
        after, out = result
        found, expected = jax.tree.structure(after), jax.tree.structure(before)
        if found != expected:
            raise CompilationError(
                "A step changes the structure of the hidden states.", found=str(found), expected=str(expected)
            )
        new = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(after)}
        for name, state in self.hidden.items():
            state.value = new[name]
        return out


def extract_module_info_from_step(
    step: Step,
    params: Any,
    hidden: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    control_flow: ControlFlowPolicy | None = None,
) -> ModuleInfo:
    """Stage 1 for a pure function; see `StepModule` and `extract_module_info`.

    Parameters
    ----------
    step : callable
        ``step(params, hidden, *args) -> (new hidden, output)``.
    params, hidden : pytree
    *args
        Example inputs of one step.
    kwargs : mapping, optional
        Arguments that the step takes by keyword.
    control_flow : ControlFlowPolicy, optional

    Returns
    -------
    ModuleInfo

    Raises
    ------
    CompilationError, NotSupportedError
    """
    return extract_module_info(StepModule(step, params, hidden), *args, kwargs=kwargs, control_flow=control_flow)


def _as_states(tree: Any, kind: Callable[[Any], brainstate.State]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """One state for each array leaf, and the way back to the tree of their values."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named = [(_name(path), leaf) for path, leaf in leaves]
    states = {name: kind(leaf) for name, leaf in named if isinstance(leaf, (jax.Array, np.ndarray))}

    def join(states: dict[str, brainstate.State]) -> Any:
        return treedef.unflatten([states[name].value if name in states else leaf for name, leaf in named])

    return states, join


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"
