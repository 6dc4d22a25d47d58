"""The stateful shell around the functional core: a module that steps a model and carries its traces."""

import inspect
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_compiler import CompilationReport, ETraceGraph, StateKind
from braintrace_compiler._tables import readable_bytes
from braintrace_primitives._jax_compat import under_trace

from ._checkpoint import Checkpoints
from ._checks import (
    check_arguments,
    check_choice,
    check_environment,
    check_fold,
    check_state_shapes,
    check_trace_dtype,
    check_window,
    warn_of_unseen_states,
)
from ._compare import Comparison
from ._data import unwrap
from ._errors import LearnerError, LearnerTypeError
from ._face import FunctionalLearner
from ._fold import online_step
from ._hold import put_in_place, require_in_place
from ._memory import MemoryUse
from ._once import differentiable_once
from ._plan import Operands, Perturbations, Plan, make_plan
from ._recording import Recording, active_recording
from ._sequence import DriverCache
from ._sizes import tree_bytes
from ._step import StepResult, run_step
from ._stream import Streaming
from ._truncation import CarryChoice, Truncation
from ._windows import run_window
from .carries import Carry, ModulatedTraceCarry, TraceCarry


class ETraceState(brainstate.ShortTermState):
    """Eligibility traces of a learner, by key."""


_ModuleType: Any = type(brainstate.nn.Module)


class _LearnerType(_ModuleType):
    """Learners are made of what their classes ask for: an algorithm's own options would hide what else is missing."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        try:
            inspect.signature(self.__init__).bind(None, *args, **options)
        except TypeError as error:
            raise _not_made(self, str(error)) from None
        return super().__call__(*args, **options)


def _not_made(cls: Any, found: str) -> LearnerTypeError:
    return LearnerTypeError(
        "A learner is made from a model and its compiled graph.",
        where=cls.__name__,
        found=found,
        fix=f"braintrace.compile(model, braintrace.{cls.__name__}, x, ...) compiles and makes it",
    )


class OnlineLearner(Streaming, Checkpoints, Comparison, MemoryUse, brainstate.nn.Module, metaclass=_LearnerType):
    """Base class of the online learners; made by `compile`.

    Calling a learner runs one time step of its model, compiled also where no ``jit`` surrounds the call. Under
    ``brainstate.transform.grad`` the parameters get the online gradient of that step: the exact derivative at fixed
    h^{t-1}, plus q · ε from the past. What it holds fixed a second derivative would leave out, so that one is refused.
    What stands before the learner, such as an encoder of its input, gets the credit of the same call alone: for more,
    make it part of the model. Hidden states that are read before a call are constants to its derivative (`etrace_grad`
    follows what its losses read), and traces do not see what is written to hidden states between calls.

    Parameters
    ----------
    model : brainstate.nn.Module
        With initialised states.
    graph : ETraceGraph
        Compiled from `model`.
    vjp_method : {"single-step", "multi-step"}
        Which credit crosses steps inside a window: only position-wise memory, or everything.
    window : int
        Steps in a window of the multi-step method.
    fold : int or "auto"
        Steps that are folded into the traces at once, a multi-step window at least; changes speed and memory only.
        Windows without traces or with whole ones (`TBPTT`, `D_RTRL`) are folded together, others one by one.
    trace_dtype : dtype, optional
        Of the traces; by default that of the operation's output, at least float32.
    batch_size : int, optional
        The batch size that the model's states were initialised with.
    mapped : bool
        Whether a single-sample model is mapped over the batch.
    absorb : bool
        Let traces take in linear memory behind them, such as that of a leaky readout, where the compiler proves that
        this is exact. Algorithms with a trace for each synapse do so when q^t = ∂l^t/∂h^{t-1} meets the trace; for the
        others the option changes nothing: where L^t = ∂l^t/∂h^t meets it (`EProp`, `OSTLRecurrent` in single steps),
        L^t passes the memory's new value already, which the trace of the memory would count again. Each absorbed state
        adds one to the states of the group's traces.
    carry : str, Truncate or mapping
        What is kept of each trace: "trace", all of it; ``Truncate(R)``, the factors of the last R steps, where they
        take less; "truncate", the same with R = 64. A mapping gives one of these for weights, by path
        (``"conv.weight"``), or for operations (``"etp_conv"``), and the other traces are kept whole. `truncation`
        bounds what is left out.
    name : str, optional

    Attributes
    ----------
    graph : ETraceGraph
    param_states, hidden_states : dict
        Path -> state, in the order of the model's states.
    running_index : brainstate.State
        Time steps since the last reset.
    """

    signal: str = "past"

    def __init__(
        self,
        model: brainstate.nn.Module,
        graph: ETraceGraph | None = None,
        *,
        vjp_method: str = "single-step",
        window: int | None = 1,
        fold: int | str = "auto",
        trace_dtype: Any = None,
        batch_size: int | None = None,
        mapped: bool = False,
        absorb: bool = True,
        carry: Any = "trace",
        name: str | None = None,
    ):
        initialise: Any = super().__init__  # of Module, which type checkers take for that of `object`
        initialise(name=name)
        if not isinstance(graph, ETraceGraph):
            raise _not_made(type(self), "no graph" if graph is None else type(graph).__name__)
        check_choice("vjp_method", vjp_method, ("single-step", "multi-step"))
        check_window(window, vjp_method)
        check_fold(fold)
        if not isinstance(absorb, (bool, np.bool)):
            raise LearnerTypeError("`absorb` is either true or false.", found=repr(absorb), expected="True or False")
        self.model = model
        self.vjp_method = vjp_method
        self.window = window
        self.fold = fold
        self.trace_dtype = trace_dtype
        self.batch_size = batch_size
        self.plan: Plan = make_plan(
            graph,
            strict=vjp_method == "single-step",
            batch=batch_size if mapped else None,
            carry=self._make_carry().keeping(CarryChoice.of(carry)),
            signal=self.signal if vjp_method == "single-step" else "past",
            absorb=absorb,
        )
        check_trace_dtype(self.plan, trace_dtype)
        if self.plan.signal == "state" and not isinstance(self.plan.carry, ModulatedTraceCarry):
            warn_of_unseen_states(self.plan)
        self._initial = [
            (s.state, s.state.value) for s in self.plan.states if isinstance(s.state, brainstate.ShortTermState)
        ]
        self._drivers = DriverCache()
        parameters: Any = brainstate.graph.states(model, brainstate.ParamState)
        hidden: Any = brainstate.graph.states(model, brainstate.HiddenState)
        self.param_states, self.hidden_states = dict(parameters), dict(hidden)
        self.etraces = ETraceState(self._zero_traces())
        self.running_index = brainstate.ShortTermState(jax.device_put(np.int32(0)))

    def __pretty_repr_item__(self, name: Any, value: Any) -> Any:
        """What a printed learner shows: its options, its model and its traces; `report` tells the rest."""
        inner = name in ("plan", "_initial", "_drivers", "_rule", "param_states", "hidden_states")
        return None if inner else super().__pretty_repr_item__(name, value)

    @property
    def graph(self) -> ETraceGraph:
        """The compiled graph."""
        return self.plan.graph

    @property
    def report(self) -> CompilationReport:
        """What the compiler understood of the model, what the strict gradient leaves out, and what is carried."""
        plan = self.plan
        report = self.graph.report(plan.batch or 1, plan.memories, plan.truncated, plan.step)
        remarks = plan.carry.remarks(plan)
        followed = sum(tree_bytes(self.etraces.value[f.key]) for f in plan.followed.values())
        traces = sum(o["trace_bytes"] for o in report.operations)
        told, held = readable_bytes(traces + followed), readable_bytes(tree_bytes(self.etraces.value))
        if held != told:
            remarks.append(f"What this learner keeps of the past takes {held}; D-RTRL's traces, as told above, {told}.")
        short = [] if under_trace() else [str(trace) for trace in self.truncation.traces]
        return report._replace(notes="\n".join(filter(None, [report.notes, *remarks, *short])))

    @property
    def truncation(self) -> Truncation:
        """The traces that are cut short (option `carry`), and what is known of the credit that they leave out."""
        return Truncation(self.plan.carry.truncated(self.plan, self.etraces.value))

    def _make_carry(self) -> Carry:
        """What this algorithm keeps of the past."""
        return TraceCarry()

    def functional(self) -> FunctionalLearner:
        """This learner as pure functions ``init``, ``step`` and ``fold`` on pytrees."""
        return FunctionalLearner(self)

    def get_etrace_of(self, weight: Any) -> dict[str, Any]:
        """The traces of one parameter.

        Parameters
        ----------
        weight : brainstate.ParamState or path
            A path as a tuple, or with dots: ``("rnn", "weight")`` or ``"rnn.weight"``.

        Returns
        -------
        dict
            Key -> trace, by trainable name; the states axis comes first (after the copies of a mapped model). A trace
            that is kept as factors holds these; one that has to do with states that follow from others, under "last"
            what reached these directly in the latest step.

        Raises
        ------
        LearnerError
            If no trace belongs to the parameter.
        """
        path = weight
        if isinstance(weight, brainstate.State):
            path = next((p for p, s in self.param_states.items() if s is weight), None)
        if isinstance(path, str):
            path = next((p for p in self.param_states if ".".join(map(str, p)) == path), path)
        couplings = self.plan.couplings
        keys = [c.trace for c in couplings if path in self.plan.operations[c.operation].parameter_paths]
        found = {key: self.etraces.value[key] for key in keys if key in self.etraces.value}
        if not found:
            raise LearnerError(
                "No eligibility trace belongs to this parameter.",
                where="get_etrace_of",
                found=str(path),
                expected=f"one of {sorted({self._path_of(c) for c in self.plan.traced_couplings}, key=str)}",
            )
        return found

    def _path_of(self, coupling: Any) -> Any:
        return self.plan.operations[coupling.operation].weight_path

    def _zero_traces(self) -> Any:
        return self.plan.carry.begin(self.plan, self.trace_dtype)

    def reset_state(self, batch_size: int | None = None) -> None:
        """Bring hidden and other short-term states back to their initial values, and clear traces and step counter.

        Parameters
        ----------
        batch_size : int, optional
            Must be that of `compile`, if given.

        Raises
        ------
        LearnerError
            If `batch_size` is another than the compiled one. Nothing is changed then.
        """
        if batch_size not in (None, self.batch_size):
            raise LearnerError(
                "The batch size of a learner is fixed.",
                where="reset_state",
                found=f"batch_size={batch_size}",
                expected=f"batch_size={self.batch_size}, or none",
                fix="compile the model again for another batch size",
            )
        put_in_place(self.model, self.plan)
        for state, value in self._initial:
            state.value = value
        self.etraces.value = self._zero_traces()
        self.running_index.value = jnp.zeros((), jnp.int32)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """One time step of the model, or a window of them.

        Parameters
        ----------
        *args, **kwargs
            Inputs of one step, shaped as in `compile`; or `MultiStepData` of K steps. Static arguments (bools, strings,
            None) must have the values that the model was compiled for.

        Returns
        -------
        pytree
            The model's output; the outputs of all steps, stacked, where a window is given.
        """
        args, kwargs, is_window = unwrap(args, kwargs)
        if is_window:
            return run_window(self, args, kwargs)
        return self._compiled("step", self._step, *check_arguments(self.plan, args, kwargs))

    def _step(self, *leaves: Any) -> Any:
        require_in_place(self.model, self.plan)
        check_environment(self.plan)
        check_state_shapes(self.plan)
        record = active_recording(self)
        result = self._online_step(list(leaves)) if record is None else self._recorded_step(record, list(leaves))
        for info, values in zip(self.plan.states, result.states, strict=True):
            if info.kind is not StateKind.PARAMETER:
                info.state.value = jax.tree.unflatten(info.treedef, values)
        if record is not None and record.entry is not None:
            record.entry.untouched.renew()
        self.running_index.value = self.running_index.value + 1
        return jax.tree.unflatten(self.graph.module_info.out_tree, result.outputs)

    def _state_leaves(self) -> list[list[Any]]:
        return [jax.tree.leaves(s.state.value) for s in self.plan.states]

    def _online_step(self, leaves: list[Any]) -> StepResult:
        plan, traces = self.plan, self.etraces.value
        states = [
            (differentiable_once if s.kind is StateKind.PARAMETER else jax.lax.stop_gradient)(values)
            for s, values in zip(plan.states, self._state_leaves(), strict=True)
        ]
        parameters = [
            leaf
            for s, values in zip(plan.states, states, strict=True)
            if s.kind is StateKind.PARAMETER
            for leaf in values
        ]
        weights = plan.weights(parameters)

        def run(of: Plan, weights: Operands, perturbations: Perturbations) -> tuple[StepResult, Any]:
            result = run_step(of, leaves, states, weights, perturbations)
            return result, of.carry.observe(of, result)

        result, self.etraces.value = online_step(plan, run, traces, weights, parameters)
        return result

    def _recorded_step(self, record: Recording, leaves: list[Any]) -> StepResult:
        record.require_direct()
        states, entry = self._state_leaves(), record.entry
        if entry is not None:
            states = entry.enter(leaves, states)
        result = run_step(record.plan, leaves, states, record.weights, record.perturbations, record.steps)
        record.tape.append(record.plan.carry.observe(record.plan, result))
        return result
