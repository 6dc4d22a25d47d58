"""Low-rank products: ``y = alpha · x @ B @ A + bias``."""

import functools
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from braintrace_primitives._errors import OperandTypeError
from braintrace_primitives._primitive import register_primitive, trainables_with_bias
from braintrace_primitives._trace_rule import TraceRule, cast_like, in_precision_of, mix, sum_leading

from ._einsum import einsum_of_copies
from ._operands import applied, linear_operands, misfit, require_bias, require_rank, require_trailing
from ._product import Equation, outer

_WHERE = "lora_matmul(x, B, A, bias)"
_THROUGH_B, _THROUGH_A = Equation("i", "io", "o"), Equation("r", "ro", "o")


class LoRATraceRule(TraceRule):
    r"""Trace of a product of two factors.

    The op is bilinear; at given factors its derivative is

    .. math:: dy = \alpha\,(x\,dB\,A + x\,B\,dA) + d\mathit{bias} .

    `pullback`, the gradient within a window, is thin products only: no I × O array is formed.

    A carry across windows is another matter: the states at output o depend on all of B, through column o of A. B's
    trace is that of the effective weight B @ A: ``E`` of shape (S, ..., I, O), as large as a dense layer's. With
    ``G = Σ signal · E`` the gradients are

    .. math:: dB = \alpha\, G A^\top, \qquad dA = \alpha\, B^\top G ,

    as exact as those of a dense layer with that effective weight while B and A keep their values over the sequence.
    Where they are updated on the way, past steps count with the present factors.

    With ``carry_b=False`` nothing of size I × O exists. A carries the trace of ``alpha · x @ B``, of shape
    (S, ..., r, O), exact under the same condition (past steps count with the B of their time), and B's credit ends
    with the window.
    """

    def init(self, x, weights, y, num_states, params, dtype):
        name, size = ("B", x.shape[-1]) if params["carry_b"] else ("A", weights["A"].shape[0])
        shapes = {name: (*y.shape[:-1], size, y.shape[-1])} | ({"bias": y.shape} if params["has_bias"] else {})
        return {name: jnp.zeros((num_states, *shape), dtype) for name, shape in shapes.items()}

    def accumulate(self, xs, factors, weights, params):
        xs = in_precision_of(factors, xs)
        if params["carry_b"]:
            trace = {"B": outer(_THROUGH_B, xs, factors)}
        else:
            hidden = in_precision_of(factors, params["alpha"] * (xs @ weights["B"]))
            trace = {"A": outer(_THROUGH_A, hidden, factors)}
        return trace | {"bias": sum_leading(factors, 1)} if params["has_bias"] else trace

    def decay(self, trace, blocks, params):
        def step(name, old):
            return mix(blocks if name == "bias" else blocks[..., None, :], old).astype(old.dtype)

        return {name: step(name, old) for name, old in trace.items()}

    def contract(self, trace, signal, weights, params):
        def total(name, rank):
            terms = mix((signal if name == "bias" else signal[..., None, :])[None], trace[name])[0]
            return sum_leading(terms, terms.ndim - rank)

        grads = {"bias": total("bias", 1)} if params["has_bias"] else {}
        if params["carry_b"]:
            effective = params["alpha"] * total("B", 2)
            grads |= {"B": effective @ weights["A"].T, "A": weights["B"].T @ effective}
        else:
            grads |= {"B": jnp.zeros(weights["B"].shape, weights["B"].dtype), "A": total("A", 2)}
        return {name: cast_like(grads[name], w) for name, w in weights.items()}

    def uncarried(self, params):
        return () if params["carry_b"] else ("B",)

    def remark(self, params):
        if params["carry_b"]:
            return "the trace of B is that of the effective weight B @ A, I x O; carry_b=False does without"
        return "carry_b=False: only A is carried, r x O, and the credit of B ends with the window"


def _lora_matmul(x, B, A, bias=None, *, alpha, has_bias, carry_b):
    y = alpha * ((x @ B) @ A)
    return y if bias is None else y + bias


def _of_copies(operands, axes, params):
    """Copies of a product, by their effective weights, whose trace is that of B; without it, by A."""
    (x, b, a, *bias), (x_axis, b_axis, a_axis, *bias_axis) = operands, axes
    b, a = (factor.astype(jnp.result_type(x, b, a)) for factor in (b, a))
    thin = functools.partial(_scaled_product, alpha=params["alpha"])
    if params["carry_b"]:
        a, a_axis = _mapped(thin, (b, a), (b_axis, a_axis))
    else:
        x, x_axis = _mapped(thin, (x, b), (x_axis, b_axis))
    return einsum_of_copies((x, a, *bias), (x_axis, a_axis, *bias_axis), params, equation=lambda _: _THROUGH_B)


def _scaled_product(one, two, alpha):
    return alpha * (one @ two)


def _mapped(function, operands, axes):
    """The function of mapped operands, and the mapped axis of its value."""
    if axes == (None, None):
        return function(*operands), None
    return jax.vmap(function, axes)(*operands), 0


_register = functools.partial(
    register_primitive,
    trainable_invars=trainables_with_bias(B=1, A=2),
    trace_rule=LoRATraceRule,
    of_mapped_weights=_of_copies,
)

etp_lora_mm_p = _register("etp_lora_mm", _lora_matmul, batched=True, leading_axes=True)
etp_lora_mv_p = _register("etp_lora_mv", _lora_matmul, batched_form=etp_lora_mm_p)


def lora_matmul(
    x: Any,
    B: Any,
    A: Any,
    *,
    alpha: float = 1.0,
    bias: Any = None,
    carry_b: bool = True,
    b_fn: Callable[[Any], Any] | None = None,
    a_fn: Callable[[Any], Any] | None = None,
    bias_fn: Callable[[Any], Any] | None = None,
) -> Any:
    """Marked low-rank product ``alpha · x @ B @ A + bias`` (Hu et al., LoRA, arXiv:2106.09685).

    Binds ``etp_lora_mv`` for a vector and ``etp_lora_mm`` for any number of leading axes.

    Parameters
    ----------
    x : array or quantity of shape (..., I)
    B : array or quantity of shape (I, r)
    A : array or quantity of shape (r, O)
    alpha : float
        Static scale.
    bias : array or quantity of shape (O,), optional
    carry_b : bool
        Whether B's credit is carried across windows. That takes a trace as large as a dense layer's, I × O
        per sample and state; without it B learns from the present window only and the trace is r × O.
    b_fn, a_fn, bias_fn : callable, optional
        Applied to `B`, `A` and `bias` before the product, as ordinary JAX code.

    Returns
    -------
    array or quantity of shape (..., O)

    Raises
    ------
    OperandError
        If ranks, sizes or units do not fit.
    OperandTypeError
        If an operand is not an array or has an integer dtype, or `alpha` is not a plain number.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> lora_matmul(jnp.ones((5, 8)), jnp.ones((8, 2)), jnp.ones((2, 4)), alpha=0.5).shape
    (5, 4)
    """
    if not isinstance(alpha, numbers.Real):
        raise OperandTypeError(
            "alpha must be a plain number.",
            where=_WHERE,
            found=type(alpha).__name__,
            expected="a float",
            fix="multiply B or A with a traced or trainable scale before the call",
        )
    B, A, bias = applied(b_fn, B), applied(a_fn, A), applied(bias_fn, bias)
    x, (b, a), bias, restore = linear_operands(_WHERE, x, bias, B=B, A=A)
    require_rank(b, 2, "B", "(I, r)", _WHERE)
    require_rank(a, 2, "A", "(r, O)", _WHERE)
    if b.shape[1] != a.shape[0]:
        raise misfit("The ranks of B and A differ.", _WHERE, f"A of shape ({b.shape[1]}, O)", B=b, A=a)
    require_trailing(x, b.shape[:1], _WHERE, B=b)
    require_bias(bias, a.shape[1:], _WHERE, A=a)
    primitive = etp_lora_mv_p if x.ndim == 1 else etp_lora_mm_p
    operands = (x, b, a) if bias is None else (x, b, a, bias)
    return restore(primitive.bind(*operands, alpha=float(alpha), has_bias=bias is not None, carry_b=carry_b))
