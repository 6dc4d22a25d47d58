"""From a model to a learner."""

import difflib
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from braintrace_compiler import (
    Arguments,
    CompilationError,
    ControlFlowPolicy,
    DiagnosticKind,
    ETraceGraph,
    NotSupportedError,
    OnMixing,
    StateKind,
    compile_etrace_graph,
)
from braintrace_primitives._errors import BraintraceError

from ._call_checks import check_model, check_options
from ._checks import describe, refuse_explicit_axes
from ._config import ConfiguredLearner, ETraceConfig
from ._errors import LearnerError, LearnerTypeError, UnknownAlgorithmError
from ._hold import place
from ._learner import OnlineLearner
from .algorithms import (
    BPTT,
    D_RTRL,
    DNI,
    OTTT,
    RTRL,
    TBPTT,
    UORO,
    EProp,
    OSTLFeedforward,
    OSTLRecurrent,
    SnAp,
    ThreeFactor,
    pp_prop,
)
from .carries import FactoredCarry, TraceCarry

_ALGORITHMS: dict[str, type[OnlineLearner]] = {
    "bptt": BPTT,
    "d_rtrl": D_RTRL,
    "dni": DNI,
    "eprop": EProp,
    "es_d_rtrl": pp_prop,
    "ostl_feedforward": OSTLFeedforward,
    "ostl_recurrent": OSTLRecurrent,
    "ottt": OTTT,
    "pp_prop": pp_prop,
    "rtrl": RTRL,
    "snap": SnAp,
    "tbptt": TBPTT,
    "three_factor": ThreeFactor,
    "uoro": UORO,
}


def compile(
    model: brainstate.nn.Module,
    algorithm: type[OnlineLearner] | str | ETraceConfig,
    *example_inputs: Any,
    batch_size: int | None = None,
    seed: int | None = None,
    verbose: int = 0,
    vmap: bool = False,
    on_mixing: OnMixing = "diagonal",
    control_flow: ControlFlowPolicy | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Make a learner: initialise the model's states, trace one step, compile its graph.

    Parameters
    ----------
    model : brainstate.nn.Module
    algorithm : class, str or ETraceConfig
        A class of this package such as ``D_RTRL``, its name in any case, or a point in the space of algorithms.
    *example_inputs
        Inputs of one time step, pytrees, batched where `batch_size` is given. Of arrays and numbers only shapes and
        dtypes matter; anything else (a bool, a string, None) is static.
    batch_size : int, optional
        Given to the model's ``init_state``; None initialises for a single sample.
    seed : int, optional
        Seeds brainstate's random numbers before the states are initialised.
    verbose : {0, 1, 2}
        1 prints the compilation report, 2 the diagnostics too.
    vmap : bool
        Map a single-sample model over `batch_size`; gradients are those of the batched model.
    on_mixing : {"diagonal", "error", "exact"}
        What is done where a state's memory mixes positions; see `compile_etrace_graph`. Algorithms with traces, which
        follow the diagonal, are refused by "exact".
    control_flow : ControlFlowPolicy, optional
        What is done with marked operations inside branches and loops.
    kwargs : mapping, optional
        Arguments that the model takes by keyword, such as ``{"training": True}``; ``learner(x, training=True)`` then
        takes them in the same way.
    **options
        Of the algorithm, such as ``vjp_method`` and ``window``.

    Returns
    -------
    OnlineLearner

    Raises
    ------
    UnknownAlgorithmError
        If the name is not known.
    CompilationError
        If no marked operation drives a hidden state, or the model has none.
    LearnerError
        If `batch_size` and the example inputs do not fit, or an option asks for what the algorithm does not do.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintrace_primitives import matmul
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
    ...     def init_state(self, batch_size=None):
    ...         self.h = brainstate.HiddenState(jnp.zeros((batch_size, 3)))
    ...     def update(self, x):
    ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
    ...         return self.h.value
    >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros((5, 2)), batch_size=5)
    >>> learner(jnp.ones((5, 2))).shape
    (5, 3)
    """
    cls = find_algorithm(algorithm)
    if isinstance(algorithm, ETraceConfig):
        options = {"config": algorithm, **options}
    if vmap and batch_size is None:
        raise LearnerTypeError("vmap=True maps a model over a batch.", expected="batch_size=<number of copies>")
    check_options(cls, options)
    if isinstance(model, OnlineLearner):
        raise LearnerTypeError(
            "This is a learner already.",
            where="compile(model, algorithm, ...)",
            found=f"a {type(model).__name__} of {type(model.model).__name__}",
            expected="a model",
            fix="pass learner.model",
        )
    check_model(model, example_inputs, kwargs or {})
    arguments, data = Arguments.split(example_inputs, kwargs or {})
    data = [jnp.asarray(x) for x in data]
    refuse_explicit_axes(data)
    examples, keywords = arguments.join([_one_of(x, batch_size) for x in data] if vmap else data)
    if seed is not None:
        brainstate.random.seed(seed)
    inputs, size = None, None if vmap else batch_size
    try:
        initialise(model, size)
        inputs = [describe(x) for x in jax.tree.leaves((examples, keywords)) if hasattr(x, "dtype")]
        graph = compile_etrace_graph(model, *examples, kwargs=keywords, on_mixing=on_mixing, control_flow=control_flow)
    except BraintraceError:
        raise
    except Exception as error:
        _add_context(error, model, size, inputs)
        raise
    require_learnable(graph)

    if vmap:
        assert batch_size is not None  # refused above
        refuse_shared_states(graph)
        copy_states(graph, batch_size)
    learner = cls(model, graph, batch_size=batch_size, mapped=vmap, **options)
    if on_mixing == "exact":
        require_whole_influence(learner)
    if verbose:
        print(learner.report)
    if verbose > 1:
        graph.explain()
    return learner


def _add_context(error: Exception, model: Any, batch_size: int | None, inputs: list[str] | None = None) -> None:
    """Note on an error of the model itself what it was given: JAX's message tells neither inputs nor states."""
    name = type(model).__name__
    if inputs is None:
        error.add_note(f"(while compile(...) initialised the states of {name}, batch_size={batch_size})")
        return
    states: Any = brainstate.graph.states(model, brainstate.HiddenState)
    held = [
        f"{'.'.join(map(str, path))} {', '.join(map(describe, jax.tree.leaves(state.value)))}"
        for path, state in states.items()
    ]
    error.add_note(
        f"(while compile(...) called one time step of {name}\n"
        f"  inputs:     {', '.join(inputs) or 'none'}\n"
        f"  states:     {'; '.join(held) or 'none'}\n"
        f"  batch_size: {batch_size})"
    )


def find_algorithm(algorithm: type[OnlineLearner] | str | ETraceConfig) -> type[OnlineLearner]:
    """The class that `algorithm` names."""
    if isinstance(algorithm, ETraceConfig):
        return ConfiguredLearner
    if isinstance(algorithm, type) and issubclass(algorithm, OnlineLearner):
        return algorithm
    known = sorted(_ALGORITHMS)
    if not isinstance(algorithm, str):
        raise LearnerTypeError(
            "The algorithm must be a class or a name.",
            where="compile(model, algorithm, ...)",
            found=type(algorithm).__name__,
            expected=f"an OnlineLearner class, or one of {known}",
        )
    name = algorithm.lower().replace("-", "_")
    if name not in _ALGORITHMS:
        near = [n for n in known if n.replace("_", "") == name.replace("_", "")]
        near = near or difflib.get_close_matches(name, known, n=1)
        raise UnknownAlgorithmError(
            "There is no algorithm of this name.",
            where="compile(model, algorithm, ...)",
            found=repr(algorithm),
            expected=f"one of {known}",
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    return _ALGORITHMS[name]


def initialise(model: brainstate.nn.Module, batch_size: int | None) -> None:
    """Initialise the states of a model.

    State objects and parameters that exist already stay: other learners of the same model hold them.
    """
    states: Any = brainstate.graph.states(model)
    before = dict(states)
    if batch_size is None:
        brainstate.nn.init_all_states(model)
    else:
        try:
            brainstate.nn.init_all_states(model, batch_size=batch_size)
        except TypeError as error:
            if "unexpected keyword argument 'batch_size'" not in str(error):
                raise
            raise LearnerTypeError(
                "A part of the model cannot be initialised for a batch.",
                where=f"compile(..., batch_size={batch_size})",
                found=str(error),
                expected="def init_state(self, batch_size=None): ..., with states of shape (batch_size, ...)",
                fix="or compile a single-sample model with vmap=True",
            ) from error
    states = brainstate.graph.states(model)
    for path, new in states.items():
        old = before.get(path)
        if old is None or old is new or type(old) is not type(new):
            continue
        if not isinstance(old, brainstate.ParamState):
            old.value = new.value
        place(model, path, old)


_NEAR_MISSES = (
    DiagnosticKind.RELATION_EXCLUDED_SHAPE_MISMATCH,
    DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT,
    DiagnosticKind.RELATION_EXCLUDED_NON_TEMPORAL,
    DiagnosticKind.RELATION_EXCLUDED_NO_PARAMSTATE,
    DiagnosticKind.TIME_VARYING_WEIGHT,
    DiagnosticKind.WEIGHT_IN_CONTROL_FLOW,
)
"""Why a marked operation has no trace."""


def require_learnable(graph: ETraceGraph) -> None:
    """Refuse a model that has nothing to learn online."""
    minfo = graph.module_info
    if not minfo.hidden:
        raise CompilationError(
            "The model has no hidden state that a step reads or writes.",
            found=f"states {[s.path for s in minfo.states]}",
            expected="at least one brainstate.HiddenState, created in init_state",
            fix="keep recurrent memory in brainstate.HiddenState",
        )
    if not graph.hidden_param_op_relations:
        plain = [r.weight_path for r in graph.diagnostics if r.kind is DiagnosticKind.PLAIN_PARAMETER_TEMPORAL]
        marked = [op.weight_path for op in graph.hidden_perturb.operations]
        reasons = [
            f"{r.message} ({r.context['source']})"
            for r in graph.diagnostics
            if r.kind in _NEAR_MISSES and "source" in r.context
        ]
        raise CompilationError(
            "No marked operation drives a hidden state, so there is nothing to trace.",
            found="\n".join(
                [f"marked weights {marked}; parameters that feed hidden states unmarked: {plain}", *reasons]
            ),
            expected="at least one ETP operation between a parameter and a hidden state, whatever the algorithm",
            fix="replace `x @ w` by braintrace.matmul(x, w), `w * h` by braintrace.element_wise(w) * h, or use "
            "braintrace.nn layers",
        )


def require_whole_influence(learner: OnlineLearner) -> None:
    """Refuse an algorithm that follows diagonals where positions mix, and ``on_mixing="exact"`` was asked for."""
    mixed = [r for r in learner.graph.diagnostics if r.kind is DiagnosticKind.POSITION_MIXING]
    if mixed and isinstance(learner.plan.carry, (TraceCarry, FactoredCarry)):
        raise LearnerError(
            'Positions are mixed, and traces follow the diagonal of that: not on_mixing="exact".',
            where=str(mixed[0].context.get("source", "the step")),
            found=f"the traces of {type(learner).__name__}; {mixed[0].message}",
            expected="an algorithm that keeps the whole influence (rtrl, uoro), or differentiates whole windows (bptt)",
            fix='take one of these, or on_mixing="diagonal", which warns',
        )


def refuse_shared_states(graph: ETraceGraph) -> None:
    """Refuse to map a model over states that live outside of it."""
    for info in graph.module_info.states:
        if info.path[0] == "<global>":
            raise NotSupportedError(
                "vmap=True cannot give each copy its own global random state.",
                found=f"state {info.path}",
                expected="random states inside the model",
                fix="use the batched model (vmap=False), or keep a brainstate.random.RandomState in the model",
            )


def copy_states(graph: ETraceGraph, batch_size: int) -> None:
    """Give each copy of a mapped model its own states; random keys are split."""
    for info in graph.module_info.states:
        if info.kind is StateKind.PARAMETER:
            continue
        if isinstance(info.state, brainstate.random.RandomState):
            info.state.value = jax.random.split(info.state.value, batch_size)
        else:
            info.state.value = jax.tree.map(
                lambda v: jnp.array(jnp.broadcast_to(v, (batch_size, *jnp.shape(v)))), info.state.value
            )


def _one_of(x: Any, batch_size: int | None) -> Any:
    if x.ndim == 0 or x.shape[0] != batch_size:
        raise LearnerError(
            "With vmap=True the example inputs carry the batch as their first axis.",
            found=describe(x),
            expected=f"an array of shape ({batch_size}, ...)",
        )
    return x[0]
