"""Window options of a convolution in one static form, and the checks on them."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
from jax.lax import ConvDimensionNumbers

from braintrace_primitives._errors import OperandError

from ._operands import describe, misfit


def batch_first(numbers: ConvDimensionNumbers) -> ConvDimensionNumbers:
    """The same layout with the batch axis moved to the front of input and output."""

    def move(spec):
        return tuple(0 if p == spec[0] else p + (p < spec[0]) for p in spec)

    return ConvDimensionNumbers(move(numbers.lhs_spec), numbers.rhs_spec, move(numbers.out_spec))


def dimension_numbers(rank: int, given: Any, where: str) -> ConvDimensionNumbers:
    """Axis positions from strings, None or `ConvDimensionNumbers`."""
    try:
        return jax.lax.conv_dimension_numbers((1,) * rank, (1,) * rank, given)
    except (TypeError, ValueError) as error:
        raise OperandError(
            "The dimension numbers are malformed.",
            where=where,
            found=repr(given),
            expected=f"three strings of {rank} letters, for instance ('NHWC', 'HWIO', 'NHWC')",
        ) from error


def integers(value: Any) -> tuple[int, ...] | None:
    """One or several integers, of Python or NumPy; None for anything else."""
    try:
        return tuple(operator.index(v) for v in (value if hasattr(value, "__iter__") else (value,)))
    except TypeError:
        return None


def per_axis(value: int | Sequence[int], spatial: int, name: str, where: str) -> tuple[int, ...]:
    """One positive integer per spatial axis."""
    values = integers(value)
    if values is not None and len(values) == 1:
        values *= spatial
    if values is None or len(values) != spatial or min(values) < 1:
        raise OperandError(
            f"{name} does not fit.",
            where=where,
            found=repr(value),
            expected=f"a positive integer or {spatial} of them",
        )
    return values


def padding_of(value: Any, spatial: int, dilated: bool, where: str) -> str | tuple[tuple[int, int], ...]:
    """``"SAME"``, ``"SAME_LOWER"`` or a (low, high) pair per spatial axis."""
    if isinstance(value, str):
        if value.upper() == "VALID":
            return ((0, 0),) * spatial
        if value.upper() in ("SAME", "SAME_LOWER") and not dilated:
            return value.upper()
    else:
        sides = [integers(v) for v in (value if hasattr(value, "__iter__") else (value,) * spatial)]
        pairs = tuple(2 * side if len(side) == 1 else side for side in sides if side is not None)
        if len(sides) == len(pairs) == spatial and all(len(pair) == 2 for pair in pairs):
            return tuple((low, high) for low, high in pairs)
    raise OperandError(
        "The padding does not fit.",
        where=where,
        found=repr(value) + (" with lhs_dilation" if dilated else ""),
        expected=f"'VALID', 'SAME', 'SAME_LOWER' (undilated x), an integer, {spatial} integers or (low, high) pairs",
    )


def check_groups(x: Any, kernel: Any, single: bool, params: dict[str, Any], where: str) -> None:
    """Raise `OperandError` unless channels and batch divide into the groups."""
    numbers, fix = params["dimension_numbers"], None
    features, batches = counts = params["feature_group_count"], params["batch_group_count"]
    channels = x.shape[numbers.lhs_spec[1] - single]
    outputs, inputs = (kernel.shape[i] for i in numbers.rhs_spec[:2])
    if integers(counts) is None or min(counts) < 1 or (features > 1 and batches > 1):
        problem, expected = "The groups do not fit.", "positive group counts, at most one above 1"
    elif channels != inputs * features:
        problem, expected = "The input channels do not fit the kernel.", f"{inputs * features} channels in x"
        fix = 'for another order of axes give dimension_numbers, such as ("NHWC", "HWIO", "NHWC")'
    elif outputs % (features * batches):
        problem = "The output channels do not divide into groups."
        expected = f"a multiple of {features * batches}"
    elif batches > 1 and (single or x.shape[0] % batches):
        problem, expected = "The batch does not divide into groups.", f"a batch axis of a multiple of {batches}"
    else:
        return
    layout = ", ".join(
        _letters(spec, others) for spec, others in zip(numbers[:2], (("N", "C"), ("O", "I")), strict=True)
    )
    found = f"{describe(x=x, kernel=kernel)}, read as {layout}, {features} feature groups, {batches} batch groups"
    raise OperandError(problem, where=where, found=found, expected=expected, fix=fix)


def _letters(spec: Sequence[int], others: tuple[str, str]) -> str:
    """Where a convolution finds the axes of an operand, in letters: NCHW."""
    names = [*others, *"DHW"[-(len(spec) - 2) :]]
    return "".join(name for _, name in sorted(zip(spec, names, strict=True)))


def sample_bias(bias: Any, sample: tuple[int, ...], channel_axis: int, where: str) -> Any:
    """The bias in a shape that broadcasts to one sample of the output."""
    if bias.ndim == 1 and bias.shape[0] == sample[channel_axis]:
        return bias.reshape([-1 if i == channel_axis else 1 for i in range(len(sample))])
    trailing = sample[len(sample) - bias.ndim :] if bias.ndim <= len(sample) else None
    if trailing is None or any(b not in (1, s) for b, s in zip(bias.shape, trailing, strict=True)):
        expected = f"({sample[channel_axis]},) or a shape that broadcasts to {sample}"
        raise misfit("The bias does not fit the output.", where, expected, bias=bias)
    return bias


def spatial_rank(x: Any, kernel: Any, where: str) -> int:
    """Number of spatial axes."""
    if not 3 <= kernel.ndim <= 5:
        raise misfit("conv needs one to three spatial axes.", where, "a kernel of 3 to 5 axes", kernel=kernel)
    if x.ndim not in (kernel.ndim - 1, kernel.ndim):
        expected = f"x of {kernel.ndim} axes, or {kernel.ndim - 1} for one sample"
        raise misfit("x does not fit the kernel.", where, expected, x=x, kernel=kernel)
    return kernel.ndim - 2
