"""ETP primitives: marked operations that survive tracing, and the registry that describes them."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import BraintraceError, OperandError, OperandTypeError, RegistrationError
from ._jax_compat import Primitive, ad, batching, mlir
from ._trace_rule import GenericTraceRule, TraceRule
from ._units import is_quantity

TrainableInvars = Callable[[Mapping[str, Any]], dict[str, int]]
MappedForm = Callable[[Sequence[Any], Sequence[int | None], Mapping[str, Any]], tuple[Any, int]]


class ETPPrimitive(Primitive):
    """A JAX primitive that marks a trainable operation, derived from one implementation function.

    Evaluation, abstract evaluation, lowering, differentiation and transposition are those of the
    implementation. The forward pass keeps the primitive under `jax.jvp` and `jax.grad`; tangents are plain
    JAX. Under `jax.vmap` it is kept where only the input is mapped; where a weight is mapped, `of_mapped_weights`
    takes over, or plain JAX.

    Made by `register_primitive`; calling it binds it.

    Parameters
    ----------
    name : str
    implementation : callable
        ``implementation(*operands, **params) -> array`` in plain JAX.
    operand_count : callable
        Number of operands for given params.
    x_invar_index : int or None
        Position of the input among the operands.
    batched_form : ETPPrimitive, optional
        The primitive that results from mapping the input (``etp_mv`` → ``etp_mm``).
    leading_axes : bool
        Whether the implementation takes any number of leading axes on its input. Otherwise mapped axes are
        counted by the equation parameter ``batch_axes``.
    of_mapped_weights : callable, optional
        ``(operands, their mapped axes or None, params) -> (result, mapped axis)`` where a weight is mapped.
    differentiated : callable, optional
        What stands for `implementation` in derivatives.
    """

    def __init__(
        self,
        name: str,
        implementation: Callable[..., Any],
        operand_count: Callable[[Mapping[str, Any]], int],
        *,
        x_invar_index: int | None,
        batched_form: "ETPPrimitive | None" = None,
        leading_axes: bool = False,
        of_mapped_weights: MappedForm | None = None,
        differentiated: Callable[..., Any] | None = None,
    ):
        super().__init__(name)
        self.implementation = implementation
        self._operand_count = operand_count
        self._x_invar_index = x_invar_index
        self._batched_form = batched_form or (self if leading_axes else None)
        self._of_mapped_weights = of_mapped_weights
        self._differentiated = differentiated or implementation
        self.def_impl(self.evaluate)
        self.def_abstract_eval(self._abstract_eval)
        mlir.register_lowering(self, mlir.lower_fun(self.evaluate, multiple_results=False))
        ad.primitive_jvps[self] = self._jvp
        ad.primitive_transposes[self] = self._transpose
        batching.primitive_batchers[self] = self._batch

    def __call__(self, *operands: Any, **params: Any) -> Any:
        """Bind the primitive on arrays."""
        for position, operand in enumerate(operands):
            if is_quantity(operand):
                raise OperandTypeError(
                    f"{self.name} takes plain arrays; operand {position} carries a unit.",
                    found=f"operand in {operand.unit}",
                    expected="an array",
                    fix="strip units before the call and put the unit of the result back after it",
                )
        return self.bind(*operands, **params)

    def evaluate(self, *operands: Any, **params: Any) -> Any:
        """The operation in plain JAX."""
        return self._evaluate(self.implementation, operands, params)

    def _evaluate(self, implementation, operands, params):
        params = dict(params)
        batch_axes = params.pop("batch_axes", 0)
        expected = self._operand_count(params)
        if len(operands) != expected:
            raise OperandError(
                f"{self.name} was given the wrong number of operands.",
                found=f"{len(operands)} operands, params {params}",
                expected=f"{expected} operands",
            )
        function = functools.partial(implementation, **params)
        axes = tuple(0 if i == self._x_invar_index else None for i in range(expected))
        for _ in range(batch_axes):
            function = jax.vmap(function, in_axes=axes)
        return _one_array(function(*operands), self.name, implementation, OperandTypeError)

    def _abstract_eval(self, *avals, **params):
        return jax.make_jaxpr(functools.partial(self.evaluate, **params))(*avals).out_avals[0]

    def _at(self, operands, positions, params):
        """The operation, as derivatives see it, as a function of the operands at `positions`."""

        def function(*moved):
            values = list(operands)
            for position, value in zip(positions, moved, strict=True):
                values[position] = value
            return self._evaluate(self._differentiated, values, params)

        return function

    def _jvp(self, primals, tangents, **params):
        moving = [i for i, t in enumerate(tangents) if not _is_zero(t)]
        function = self._at(primals, moving, params)
        _, tangent = jax.jvp(function, [primals[i] for i in moving], [tangents[i] for i in moving])
        return self.bind(*primals, **params), tangent

    def _transpose(self, cotangent, *operands, **params):
        moving = [i for i, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
        result: list[Any] = [None] * len(operands)
        if type(cotangent) is not ad.Zero:
            function = self._at(operands, moving, params)
            pulled = jax.linear_transpose(function, *(operands[i].aval for i in moving))(cotangent)
            for position, value in zip(moving, pulled, strict=True):
                result[position] = value
        return result

    def _batch(self, operands, axes, **params):
        x = self._x_invar_index
        if x is None or axes[x] is None or any(a is not None for i, a in enumerate(axes) if i != x):
            if self._of_mapped_weights is not None:
                return self._of_mapped_weights(operands, axes, params)
            return jax.vmap(functools.partial(self.evaluate, **params), in_axes=tuple(axes))(*operands), 0
        operands = list(operands)
        operands[x] = jnp.moveaxis(operands[x], axes[x], 0)
        if self._batched_form is not None:
            return self._batched_form.bind(*operands, **params), 0
        params["batch_axes"] = params.get("batch_axes", 0) + 1
        return self.bind(*operands, **params), 0


@dataclass(frozen=True)
class ETPPrimitiveSpec:
    """What a compiler and a learner need to know of an ETP primitive.

    Attributes
    ----------
    name : str
    primitive : ETPPrimitive
    weight_invar_index : int
        Position of the (first) weight among the equation's inputs.
    x_invar_index : int or None
        Position of the input; None where the operation has none.
    trainable_invars : callable
        ``trainable_invars(params) -> {trainable name: position}`` for the params of an equation.
    batched : bool
        Whether the first axis of input and output enumerates independent samples.
    trace_rule : TraceRule
    """

    name: str
    primitive: ETPPrimitive
    weight_invar_index: int
    x_invar_index: int | None
    trainable_invars: TrainableInvars
    batched: bool
    trace_rule: TraceRule


ETP_PRIMITIVES: set[Primitive] = set()
_SPECS: dict[Primitive, ETPPrimitiveSpec] = {}


def is_etp_primitive(primitive: Primitive) -> bool:
    """Whether `primitive` is an ETP primitive (identity, never the name)."""
    return primitive in ETP_PRIMITIVES


def get_primitive_spec(primitive: Primitive) -> ETPPrimitiveSpec:
    """The registered description of an ETP primitive.

    Raises
    ------
    RegistrationError
        If `primitive` is not an ETP primitive.

    Examples
    --------
    >>> from braintrace_primitives import etp_mm_p
    >>> spec = get_primitive_spec(etp_mm_p)
    >>> spec.x_invar_index, spec.trainable_invars({"has_bias": True})
    (0, {'weight': 1, 'bias': 2})
    """
    if primitive not in _SPECS:
        known = ", ".join(sorted(spec.name for spec in _SPECS.values()))
        raise RegistrationError(
            f"{primitive} is not an ETP primitive.",
            expected=f"one of {known}",
            fix="register it with register_primitive",
        )
    return _SPECS[primitive]


def register_primitive(
    name: str,
    fn: Callable[..., Any],
    *,
    trainable_invars: TrainableInvars | Mapping[str, int] | None = None,
    x_invar_index: int | None = 0,
    trace_rule: Callable[[Callable[..., Any]], TraceRule] = GenericTraceRule,
    batched: bool = False,
    batched_form: ETPPrimitive | None = None,
    leading_axes: bool = False,
    of_mapped_weights: MappedForm | None = None,
    differentiated: Callable[..., Any] | None = None,
    check_linear: tuple[Any, ...] | None = None,
) -> ETPPrimitive:
    """Turn a function into an ETP primitive: traceable, batchable, differentiable and trainable online.

    Parameters
    ----------
    name : str
        Unique name, shown in jaxprs and reports.
    fn : callable
        ``fn(x, weight, ..., *, static=...) -> y`` in plain JAX, linear in its weights, one array out.
        Positional parameters without default are operands: the first is the input, the others are weights
        under their own names. A function of one operand has no input, only a weight. Other parameters are
        static and must be hashable.
    trainable_invars : dict or callable, optional
        ``{trainable name: operand position}``, or a function from equation params to it (which must accept
        ``{}``), where the signature of `fn` does not tell.
    x_invar_index : int or None
        Position of the input; used with `trainable_invars`.
    trace_rule : callable
        Makes the trace rule from ``apply(x, weights, params)``; a `TraceRule` subclass.
    batched : bool
        Whether the first axis of input and output enumerates independent samples.
    batched_form : ETPPrimitive, optional
        The primitive that `jax.vmap` over the input turns this one into.
    leading_axes : bool
        Whether `fn` takes any number of leading axes on its input. Otherwise `jax.vmap` maps `fn` itself and
        counts the mapped axes in the equation parameter ``batch_axes``.
    of_mapped_weights : callable, optional
        ``(operands, axes, params) -> (result, axis)``: the operation where `jax.vmap` maps a weight, each operand along
        its axis or not at all (None), in marked operations. Without it the mark is lost there.
    differentiated : callable, optional
        The same function as `fn`, which derivatives of the operation are taken from instead: for a gradient that is
        computed in another way than JAX would.
    check_linear : tuple of arrays, optional
        Example operands on which linearity in the weights is checked numerically.

    Returns
    -------
    ETPPrimitive
        Call it like `fn`.

    Raises
    ------
    RegistrationError
        If the name is taken, the signature has no weight, or the function does not pass `check_linear`: it is not
        linear in its weights, or gives more than one array. Without examples, the latter is refused at the first call.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> example = jnp.arange(3.0), jnp.ones(3)
    >>> scale = register_primitive("doc_scale", lambda x, gain: x * gain, check_linear=example)
    >>> jax.grad(lambda gain: scale(jnp.arange(3.0), gain).sum())(jnp.ones(3)).tolist()
    [0.0, 1.0, 2.0]
    >>> jaxpr = jax.make_jaxpr(jax.vmap(scale, in_axes=(0, None)))(jnp.ones((2, 3)), jnp.ones(3))
    >>> jaxpr.eqns[0].primitive is scale
    True
    """
    if not (isinstance(name, str) and name and callable(fn)):
        raise RegistrationError(
            "A primitive is made of a name and a function.",
            found=f"{name!r}, {type(fn).__name__}",
            fix='register_primitive("my_op", lambda x, weight: x * weight)',
        )
    if any(spec.name == name for spec in _SPECS.values()):
        raise RegistrationError(f"The name {name!r} is taken by another ETP primitive.", fix="choose another name")
    if trainable_invars is None:
        trainable_invars, x_invar_index = _from_signature(name, fn)
    if not callable(trainable_invars):
        trainable_invars = functools.partial(_constant, dict(trainable_invars))
    trainables: TrainableInvars = trainable_invars

    def operands(x, weights, params):
        slots = {position: weights[key] for key, position in trainables(params).items()}
        if x_invar_index is not None:
            slots[x_invar_index] = x
        return [slots[position] for position in sorted(slots)]

    def apply(x, weights, params):
        return primitive.evaluate(*operands(x, weights, params), **params)

    def operand_count(params):
        return len(trainables(params)) + (x_invar_index is not None)

    if check_linear is not None:
        _check_linear(name, fn, check_linear, list(trainables({}).values()))
    primitive = ETPPrimitive(
        name,
        fn,
        operand_count,
        x_invar_index=x_invar_index,
        batched_form=batched_form,
        leading_axes=leading_axes,
        of_mapped_weights=of_mapped_weights,
        differentiated=differentiated,
    )
    weight_index = next(iter(trainables({}).values()))
    _SPECS[primitive] = ETPPrimitiveSpec(
        name, primitive, weight_index, x_invar_index, trainables, batched, trace_rule(apply)
    )
    ETP_PRIMITIVES.add(primitive)
    return primitive


def trainables_with_bias(**positions: int) -> TrainableInvars:
    """Trainable operands at `positions`, followed by a bias where the equation's ``has_bias`` says so."""

    def trainable_invars(params: Mapping[str, Any]) -> dict[str, int]:
        bias = {"bias": max(positions.values()) + 1} if params.get("has_bias") else {}
        return positions | bias

    return trainable_invars


def _constant(positions, params):
    return dict(positions)


def _is_zero(tangent):
    return type(tangent) is ad.Zero or tangent.dtype == jax.dtypes.float0


def _from_signature(name, fn):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(fn).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty]
    if not names:
        raise RegistrationError(
            f"The function for {name!r} has no operand.",
            expected="fn(x, weight, ...) or fn(weight)",
            fix="name the operands in the signature, or pass trainable_invars and x_invar_index",
        )
    if len(names) == 1:
        return {names[0]: 0}, None
    return {key: position for position, key in enumerate(names) if position > 0}, 0


def _one_array(value: Any, name: str, function: Any, error: type[BraintraceError]) -> Any:
    """`value`, which `function` gave for a primitive; refused where it is a container of arrays."""
    if not jax.tree_util.all_leaves([value]):
        size = f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else ""
        raise error(
            f"The function for {name!r} must return one array.",
            where=getattr(function, "__qualname__", None),
            found=f"{type(value).__name__}{size}",
            expected="one array",
            fix="return that array alone; what else it gives is ordinary JAX code, or a primitive of its own",
        )
    return value


def _check_linear(name, fn, operands, positions):
    if len(operands) <= max(positions):
        raise RegistrationError(
            f"check_linear of {name!r} has too few operands.",
            found=f"{len(operands)} operands",
            expected=f"at least {max(positions) + 1}",
        )
    rng = np.random.default_rng(0)

    def outputs(weights):
        values = list(operands)
        for position, value in zip(positions, weights, strict=True):
            values[position] = value
        return _one_array(fn(*values), name, fn, RegistrationError)

    def draw():
        shapes = [(np.shape(operands[i]), jnp.result_type(operands[i])) for i in positions]
        return [jnp.asarray(rng.normal(size=shape), dtype) for shape, dtype in shapes]

    one, two = draw(), draw()
    left = outputs([2 * a - 3 * b for a, b in zip(one, two, strict=True)])
    right = 2 * outputs(one) - 3 * outputs(two)
    scale = float(jnp.max(jnp.abs(right), initial=1.0))
    error = float(jnp.max(jnp.abs(left - right), initial=0.0)) / scale
    tolerance = 100 * float(jnp.finfo(right.dtype).eps)
    if not error <= tolerance:
        raise RegistrationError(
            f"The function for {name!r} is not linear in its weights.",
            found=f"relative deviation {error:.1e} from linearity",
            expected=f"at most {tolerance:.1e}",
            fix="move the nonlinear part before or after the primitive",
        )
