"""Stage 1: trace one step of a model, and name every input and output of the program."""

import enum
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import brainstate
import jax

from braintrace_primitives._jax_compat import Jaxpr, Var, make_jaxpr_without_consts

from ._arguments import Arguments, is_data
from ._canonicalize import canonicalize
from ._control_flow import ControlFlowPolicy
from ._descent import LoopedOperation
from ._diagnostics import CompilationRecord, Path
from ._environment import environment_reads
from ._errors import CompilationError
from ._positions_constants import Constants
from ._steady_biases import split_steady_biases

GLOBAL = "<global>"
_VALUE_WANTED = (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError)


class StateKind(enum.Enum):
    """What a state is to online learning; a hidden state of integers or booleans is an other one."""

    HIDDEN = "hidden"
    PARAMETER = "parameter"
    OTHER = "other"


class StateInfo(NamedTuple):
    """One state of the model: where it enters the step program and where it leaves it.

    Attributes
    ----------
    path : tuple
        Path in the model; that of a state outside the model (a global random key) starts with `GLOBAL`.
    kind : StateKind
    state : brainstate.State
    treedef : PyTreeDef
        Structure of the state's value.
    invars, outvars : tuple of Var
        One for each leaf. An output may be an input where the step leaves the state as it is.
    """

    path: Path
    kind: StateKind
    state: brainstate.State
    treedef: Any
    invars: tuple[Var, ...]
    outvars: tuple[Any, ...]

    @property
    def unchanged(self) -> bool:
        """Whether a step leaves the state as it is."""
        return self.invars == self.outvars

    @property
    def width(self) -> int | None:
        """How many states a hidden state holds along its last axis; None for one without such an axis."""
        return self.invars[0].aval.shape[-1] if isinstance(self.state, brainstate.HiddenGroupState) else None

    @property
    def varshape(self) -> tuple[int, ...]:
        """Shape of the positions of a hidden state."""
        shape = tuple(self.invars[0].aval.shape)
        return shape if self.width is None else shape[:-1]


class ModuleInfo(NamedTuple):
    """One step of a model as a program, ``(constants, arguments, states) -> (outputs, new states)``.

    Attributes
    ----------
    jaxpr : Jaxpr
        Without constants: its inputs are constants, then the leaves of the arguments, then those of the states;
        its outputs are the leaves of the model's output, then those of the new states.
    consts : tuple
        Values of the leading inputs.
    arguments : Arguments
        How the step is called.
    out_tree : PyTreeDef
        Structure of the model's output.
    arg_invars, out_outvars : tuple of Var
    states : tuple of StateInfo
        In the order in which the step first touches them.
    records : tuple of CompilationRecord
        What was done with control flow.
    looped : mapping
        Output of an operation that was taken out of a loop -> what is known of it.
    environment : mapping
        What the step read of ``brainstate.environ``, by key (``"dt"``, ``"fit"``): it is compiled for these values.
    """

    jaxpr: Jaxpr
    consts: tuple[Any, ...]
    arguments: Arguments
    out_tree: Any
    arg_invars: tuple[Var, ...]
    out_outvars: tuple[Any, ...]
    states: tuple[StateInfo, ...]
    records: tuple[CompilationRecord, ...] = ()
    looped: Mapping[Var, LoopedOperation] = MappingProxyType({})
    environment: Mapping[Any, Any] = MappingProxyType({})

    def of_kind(self, kind: StateKind) -> tuple[StateInfo, ...]:
        """The states of one kind."""
        return tuple(s for s in self.states if s.kind is kind)

    @property
    def hidden(self) -> tuple[StateInfo, ...]:
        """The hidden states that the step touches."""
        return self.of_kind(StateKind.HIDDEN)

    @property
    def parameters(self) -> tuple[StateInfo, ...]:
        """The parameters that the step reads."""
        return self.of_kind(StateKind.PARAMETER)

    @property
    def const_invars(self) -> tuple[Var, ...]:
        """The inputs that take `consts`."""
        return tuple(self.jaxpr.invars[: len(self.consts)])

    @property
    def varying_invars(self) -> tuple[Var, ...]:
        """The inputs that may differ from step to step: data and states."""
        states = (s for s in self.states if s.kind is not StateKind.PARAMETER)
        return (*self.arg_invars, *(v for s in states for v in s.invars))

    def constants(self) -> Constants:
        """What is known of the program's variables at compile time."""
        return Constants(self.jaxpr, dict(zip(self.const_invars, self.consts, strict=True)))

    @property
    def compiled_model_states(self) -> tuple[brainstate.State, ...]:
        """The states that the step touches."""
        return tuple(s.state for s in self.states)

    @property
    def hidden_path_to_invar(self) -> dict[Path, Var]:
        """Path of a hidden state -> the variable of h^{t-1}."""
        return {s.path: s.invars[0] for s in self.hidden}

    @property
    def hidden_path_to_outvar(self) -> dict[Path, Any]:
        """Path of a hidden state -> the variable of h^t."""
        return {s.path: s.outvars[0] for s in self.hidden}

    @property
    def weight_path_to_invars(self) -> dict[Path, tuple[Var, ...]]:
        """Path of a parameter -> its variables, one for each leaf."""
        return {s.path: s.invars for s in self.parameters}

    @property
    def invar_to_weight_path(self) -> dict[Var, Path]:
        """Variable of a parameter leaf -> the parameter's path."""
        return {v: s.path for s in self.parameters for v in s.invars}


def extract_module_info(
    model: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    control_flow: ControlFlowPolicy | None = None,
) -> ModuleInfo:
    """Trace one step of `model` and classify its states.

    Parameters
    ----------
    model : brainstate.nn.Module
        A model whose states are initialised; it is called as ``model(*args, **kwargs)``.
    *args
        Example inputs of one step, pytrees. Of arrays and numbers only shapes and dtypes matter; anything else (a bool,
        a string, None) is static.
    kwargs : mapping, optional
        Arguments that the model takes by keyword.
    control_flow : ControlFlowPolicy, optional
        What is done with marked operations inside branches and loops.

    Returns
    -------
    ModuleInfo

    Raises
    ------
    NotSupportedError
        If a marked operation stands inside control flow that the policy does not open.
    CompilationError
        If a step changes the shape or dtype of a hidden state, or gives something that is no array.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> class Leaky(brainstate.nn.Module):
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros(3))
    ...     def update(self, x):
    ...         self.h.value = 0.9 * self.h.value + x
    ...         return self.h.value
    >>> model = brainstate.nn.init_all_states(Leaky())
    >>> info = extract_module_info(model, jnp.zeros(3))
    >>> list(info.hidden_path_to_invar)
    [('h',)]
    """
    states_in_model: Any = brainstate.graph.states(model)
    in_model = {id(state): path for path, state in states_in_model.items()}
    arguments, data = Arguments.split(args, kwargs or {})

    def step(*data: Any) -> Any:
        args, kwargs = arguments.join(data)
        out = model(*args, **kwargs)
        _require_arrays(out)
        return out

    function = brainstate.transform.StatefulFunction(step, return_only_write=False, name="braintrace step")
    try:
        with environment_reads() as environment:
            function.make_jaxpr(*data)
    except _VALUE_WANTED as error:
        error.add_note(
            "braintrace: arrays and numbers among the arguments of a step are data, and have no value while it is "
            "compiled; bools, strings, None and other objects are static. Keep a number that shapes the program in the "
            "model, or bind it by functools.partial."
        )
        raise
    except jax.errors.TracerArrayConversionError as error:
        error.add_note("braintrace: a step is compiled. Compute with jax.numpy rather than NumPy.")
        raise
    closed = function.get_jaxpr(*data)
    states = function.get_states(*data)
    out_shape, _ = function.get_out_shapes(*data)

    program, consts, records, looped = canonicalize(*make_jaxpr_without_consts(closed), control_flow)
    out_leaves, out_tree = jax.tree.flatten(out_shape)
    inputs, outputs = iter(program.invars[len(consts) :]), iter(program.outvars)
    arg_invars = tuple(next(inputs) for _ in data)
    out_outvars = tuple(next(outputs) for _ in out_leaves)
    infos = [
        _state_info(state, in_model.get(id(state), (GLOBAL, state.name or type(state).__name__, i)), inputs, outputs)
        for i, state in enumerate(states)
    ]
    for info in infos:
        if info.kind is StateKind.HIDDEN:
            _require_constant_shape(info, arg_invars)
    minfo = ModuleInfo(
        program, tuple(consts), arguments, out_tree, arg_invars, out_outvars, tuple(infos), records, looped, environment
    )
    return minfo._replace(jaxpr=split_steady_biases(program, minfo.varying_invars, looped))


def _state_info(state: brainstate.State, path: Path, inputs: Any, outputs: Any) -> StateInfo:
    leaves, treedef = jax.tree.flatten(state._read_value())
    kind = StateKind.OTHER
    if isinstance(state, brainstate.ParamState):
        kind = StateKind.PARAMETER
    elif isinstance(state, brainstate.HiddenState) and any(map(_has_derivatives, leaves)):
        kind = StateKind.HIDDEN
    return StateInfo(
        path, kind, state, treedef, tuple(next(inputs) for _ in leaves), tuple(next(outputs) for _ in leaves)
    )


def _has_derivatives(leaf: Any) -> bool:
    return jax.numpy.issubdtype(jax.numpy.result_type(leaf), jax.numpy.inexact)


def _require_arrays(out: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(out):
        if not (is_data(leaf) or isinstance(leaf, bool)):
            raise CompilationError(
                "A step gives something that is no array.",
                where=f"the model's output{jax.tree_util.keystr(path)}",
                found=f"{type(leaf).__name__} {leaf!r}",
                expected="a pytree of arrays and numbers, or None",
                fix="return arrays only; what is fixed can be read from the model",
            )


def _require_constant_shape(info: StateInfo, arg_invars: Sequence[Var]) -> None:
    for before, after in zip(info.invars, info.outvars, strict=True):
        if before.aval.shape == after.aval.shape and before.aval.dtype == after.aval.dtype:
            continue
        inputs = ", ".join(v.aval.str_short() for v in arg_invars) or "no inputs"
        raise CompilationError(
            "A step changes the shape or dtype of a hidden state.",
            where=f"state {'.'.join(map(str, info.path))}",
            found=f"{after.aval.str_short()} after a step from {before.aval.str_short()}, with {inputs}",
            expected=before.aval.str_short(),
            fix="initialise the states for the inputs they will meet: batch_size in init_state, or in compile(...)",
        )
