"""Marked operations, and the way from their weight operands back to parameters."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from braintrace_primitives import ETPPrimitiveSpec, TraceRule, get_primitive_spec

from ._descent import LoopedOperation
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path
from ._flow import influence, is_marked
from ._jaxpr import (
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    build_jaxpr,
    build_producer_map,
    make_jaxpr_without_consts,
    needed,
    reads,
    source_line,
)
from ._module_info import ModuleInfo


class MarkedOperation(NamedTuple):
    """An ETP operation whose weights come from parameters by a chain that does not vary in time.

    Attributes
    ----------
    eqn : JaxprEqn
    spec : ETPPrimitiveSpec
    weight_vars : mapping
        Trainable name -> the operand, in the order of the operands.
    weight_paths : mapping
        Trainable name -> paths of the parameters behind that operand; none behind a constant.
    source : str
        The user's line.
    loop : LoopedOperation or None
        Where it was taken out of a loop.
    """

    eqn: JaxprEqn
    spec: ETPPrimitiveSpec
    weight_vars: Mapping[str, Var]
    weight_paths: Mapping[str, tuple[Path, ...]]
    source: str
    loop: LoopedOperation | None = None

    @property
    def weight_path(self) -> Path:
        """Path of the first parameter behind the operation."""
        return self.parameter_paths[0]

    def index_of(self, name: str) -> int:
        """Position of a trainable operand among the operands."""
        return self.spec.trainable_invars(self.eqn.params)[name]

    @property
    def parameter_paths(self) -> tuple[Path, ...]:
        """Paths of all parameters behind the operation."""
        return tuple(dict.fromkeys(path for paths in self.weight_paths.values() for path in paths))

    @property
    def x_var(self) -> Any:
        """The input operand, or None."""
        return None if self.spec.x_invar_index is None else self.eqn.invars[self.spec.x_invar_index]

    @property
    def y_var(self) -> Var:
        """The output."""
        return self.eqn.outvars[0]

    @property
    def operand_types(self) -> tuple[Any, dict[str, Any], Any]:
        """Shapes and dtypes of the input (or None), of the weights by name, and of the output."""
        weights = {name: _type_of(v) for name, v in self.weight_vars.items()}
        return None if self.x_var is None else _type_of(self.x_var), weights, _type_of(self.y_var)

    @property
    def addend(self) -> Any:
        """Shape and dtype of what may be added up of the input over time, see `TraceRule.addend`."""
        x, weights, _ = self.operand_types
        return jax.eval_shape(lambda x: self.spec.trace_rule.addend(x, weights), x)

    @property
    def adds_inputs(self) -> bool:
        """Whether what may be added up is the input itself."""
        rule, (x, weights, _) = self.spec.trace_rule, self.operand_types
        if type(rule).addend is TraceRule.addend:
            return True
        program, consts = make_jaxpr_without_consts(jax.make_jaxpr(lambda x: rule.addend(x, weights))(x))
        return not consts and program.outvars[0] is program.invars[0]

    @property
    def addend_key(self) -> Any:
        """The same for operations that add up the same of the same input."""
        return self.x_var, self.addend.shape, None if self.adds_inputs else self.spec.trace_rule


def _type_of(var: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)


def trace_var_to_param(
    var: Any, producers: Mapping[Var, JaxprEqn], invar_to_weight_path: Mapping[Var, Path]
) -> tuple[Path, tuple[JaxprEqn, ...]] | None:
    """Follow an operand back to the first parameter behind it.

    Parameters
    ----------
    var : Var
        Operand of a marked operation.
    producers : mapping
        Of `build_producer_map`.
    invar_to_weight_path : mapping
        Of `ModuleInfo`.

    Returns
    -------
    tuple or None
        Path of the parameter, and the equations between the parameter and the operand in evaluation order; None
        where no parameter stands behind `var`.
    """
    inputs, chain = _behind(var, producers)
    paths = [invar_to_weight_path[v] for v in inputs if v in invar_to_weight_path]
    if not paths:
        return None
    in_order = {id(eqn): eqn for eqn in producers.values()}
    return paths[0], tuple(eqn for key, eqn in in_order.items() if key in chain)


def _behind(var: Any, producers: Mapping[Var, JaxprEqn]) -> tuple[list[Var], set[int]]:
    """The inputs of the program behind `var`, first operands first, and the identities of the equations passed."""
    inputs: list[Var] = []
    chain: set[int] = set()
    stack, seen = [var], set()
    while stack:
        v = stack.pop()
        if isinstance(v, Literal) or v in seen:
            continue
        seen.add(v)
        if v in producers:
            chain.add(id(producers[v]))
            stack.extend(reversed(list(reads(producers[v]))))
        else:
            inputs.append(v)
    return inputs, chain


def find_marked_operations(
    minfo: ModuleInfo,
) -> tuple[tuple[MarkedOperation, ...], tuple[CompilationRecord, ...]]:
    """The marked operations that learn, in the order of the program, and records of those that do not trace.

    An operation whose weight depends on data or state, or on no parameter, is left to ordinary differentiation.
    """
    in_time, operations, records = _varying_in_time(minfo), [], []
    for operation in _all_operations(minfo):
        if not operation.parameter_paths:
            records.append(_without_parameter(operation.eqn))
        elif any(v in in_time for v in operation.weight_vars.values()):
            records.append(_time_varying(operation, in_time))
        else:
            operations.append(operation)
    return tuple(operations), tuple(records)


def time_varying_operations(minfo: ModuleInfo) -> tuple[MarkedOperation, ...]:
    """The operations with a parameter behind a weight that depends on data or state, in the order of the program."""
    in_time = _varying_in_time(minfo)
    return tuple(
        op for op in _all_operations(minfo) if op.parameter_paths and any(v in in_time for v in op.weight_vars.values())
    )


def _varying_in_time(minfo: ModuleInfo) -> Mapping[Var, int]:
    """The variables that depend on data or state."""
    return influence(minfo.jaxpr.eqns, dict.fromkeys(minfo.varying_invars, 1), derivative=False)


def _all_operations(minfo: ModuleInfo) -> Iterator[MarkedOperation]:
    producers = build_producer_map(minfo.jaxpr)
    parameter_of = minfo.invar_to_weight_path
    for eqn in filter(is_marked, minfo.jaxpr.eqns):
        spec = get_primitive_spec(eqn.primitive)
        operands = {name: eqn.invars[i] for name, i in spec.trainable_invars(eqn.params).items()}
        operands = {n: v for n, v in operands.items() if not isinstance(v, Literal)}
        inputs = {n: _behind(v, producers)[0] for n, v in operands.items()}
        paths = {n: tuple(dict.fromkeys(parameter_of[v] for v in vs if v in parameter_of)) for n, vs in inputs.items()}
        # Copies of a learner walk through dicts as pytrees, and give their entries back in alphabetical order.
        ordered = MappingProxyType(operands), MappingProxyType(paths)
        yield MarkedOperation(eqn, spec, *ordered, source_line(eqn), minfo.looped.get(eqn.outvars[0]))


def _without_parameter(eqn: JaxprEqn) -> CompilationRecord:
    return CompilationRecord(
        DiagnosticKind.RELATION_EXCLUDED_NO_PARAMSTATE,
        DiagnosticLevel.INFO,
        f"ETP primitive {eqn.primitive.name}: no parameter stands behind its weight. There is nothing to learn.",
        eqn.primitive,
        context={"source": source_line(eqn)},
    )


def _time_varying(operation: MarkedOperation, in_time: Mapping[Var, int]) -> CompilationRecord:
    steady = [
        f"its {name} {path}"
        for name, v in operation.weight_vars.items()
        for path in operation.weight_paths[name]
        if v not in in_time
    ]
    beside = f" Nor does one follow {' and '.join(steady)}; add it by element_wise to trace it." if steady else ""
    return CompilationRecord(
        DiagnosticKind.TIME_VARYING_WEIGHT,
        DiagnosticLevel.WARNING,
        f"ETP primitive {operation.spec.name} (weight={operation.weight_path}): its weight depends on data or state. "
        f"No trace follows it; through this operation the strict gradient of what is behind the weight covers the "
        f"current step only.{beside} Where data scale the weight, scale the operation's input or output instead.",
        operation.eqn.primitive,
        operation.weight_path,
        context={"source": operation.source},
    )


def make_weight_program(minfo: ModuleInfo, operations: Iterable[MarkedOperation]) -> Jaxpr:
    """The program ``(constants, parameter leaves) -> weight operands of all operations``, in order."""
    operands = [v for op in operations for v in op.weight_vars.values()]
    inputs = [*minfo.const_invars, *(v for s in minfo.parameters for v in s.invars)]
    eqns = needed([eqn for eqn in minfo.jaxpr.eqns if not eqn.effects], operands, set(inputs))
    return build_jaxpr(inputs, operands, eqns, like=minfo.jaxpr)


def output_bits(operations: Sequence[MarkedOperation]) -> dict[Var, int]:
    """Bit k for the output of the k-th operation, and for what stands for it inside a loop."""
    bits = {op.y_var: 1 << k for k, op in enumerate(operations)}
    return bits | {
        op.loop.echo: bits[op.y_var] for op in operations if op.loop is not None and op.loop.echo is not None
    }
