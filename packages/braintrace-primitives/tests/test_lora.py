import jax
import jax.numpy as jnp
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import draw

X, B, A, BIAS = (draw(shape, jnp.float32) for shape in ((2, 50), (50, 2), (2, 40), (40,)))
RULE = bp.get_primitive_spec(bp.etp_lora_mm_p).trace_rule
WEIGHTS = {"B": B, "A": A, "bias": BIAS}
XS, FACTORS = draw((4, 2, 50), jnp.float32), draw((4, 1, 2, 40), jnp.float32)


def params(carry_b):
    return {"alpha": 0.5, "has_bias": True, "carry_b": carry_b}


@pytest.mark.parametrize("shape", [(50,), (2, 50), (3, 2, 50)])
def test_product(shape):
    x = draw(shape, jnp.float32)
    got = bp.lora_matmul(x, B, A, alpha=0.5, bias=BIAS)
    assert jnp.allclose(got, 0.5 * (x @ (B @ A)) + BIAS, atol=1e-4)


def test_functions_of_the_weights():
    got = bp.lora_matmul(X, B, A, b_fn=jnp.tanh, a_fn=jnp.sin, bias=BIAS, bias_fn=jnp.cos)
    assert jnp.allclose(got, X @ jnp.tanh(B) @ jnp.sin(A) + jnp.cos(BIAS), atol=1e-4)


def test_copies_of_half_precision_factors_are_not_rounded_to_half_precision():
    b, a = (jnp.stack([w, -w]).astype(jnp.bfloat16) for w in (B, A))
    got = jax.vmap(lambda b, a: bp.lora_matmul(X, b, a))(b, a)
    assert jnp.allclose(got, jnp.stack([bp.lora_matmul(X, *pair) for pair in zip(b, a, strict=True)]), atol=1e-4)


def test_a_window_forms_no_array_of_the_full_size():
    program = jax.make_jaxpr(lambda xs, gs: RULE.pullback(xs, WEIGHTS, gs, params(True)))(XS, FACTORS[:, 0])
    assert not [v for e in program.eqns for v in e.outvars if v.aval.size == 50 * 40]


def test_trace_sizes():
    abstract = jax.typeof(X), WEIGHTS, jax.ShapeDtypeStruct((2, 40), jnp.float32), 3
    assert RULE.trace_size(*abstract, params(True)) == 3 * 2 * (50 * 40 + 40)
    assert RULE.trace_size(*abstract, params(False)) == 3 * 2 * (2 * 40 + 40)


def test_without_the_carry_of_b_only_b_loses_credit():
    signal = FACTORS[0]
    exact, thin = (
        RULE.contract(RULE.accumulate(XS, FACTORS, WEIGHTS, params(c)), signal, WEIGHTS, params(c))
        for c in (True, False)
    )
    assert jnp.allclose(exact["A"], thin["A"], atol=1e-3)
    assert jnp.allclose(exact["bias"], thin["bias"], atol=1e-4)
    assert not thin["B"].any()
    assert jnp.abs(exact["B"]).max() > 1


def test_what_is_carried_is_told():
    assert RULE.uncarried(params(True)) == ()
    assert RULE.uncarried(params(False)) == ("B",)
    assert "effective weight" in RULE.remark(params(True))
    assert "B ends with the window" in RULE.remark(params(False))
    dense = bp.get_primitive_spec(bp.etp_mm_p).trace_rule
    assert (dense.uncarried({"has_bias": True}), dense.remark({"has_bias": True})) == ((), "")


def test_the_thin_carry_decays_like_the_exact_one():
    blocks, signal = draw((1, 1, 2, 40), jnp.float32), FACTORS[0]
    exact, thin = (
        RULE.contract(
            RULE.decay(RULE.accumulate(XS, FACTORS, WEIGHTS, params(c)), blocks, params(c)), signal, WEIGHTS, params(c)
        )
        for c in (True, False)
    )
    assert jnp.allclose(exact["A"], thin["A"], atol=1e-3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: bp.lora_matmul(X, B, A[:1]), r"A of shape \(2, O\)"),
        (lambda: bp.lora_matmul(X[:, :3], B, A), r"x of shape \(..., 50\)"),
        (lambda: bp.lora_matmul(X, B[0], A), r"B of shape \(I, r\)"),
        (lambda: bp.lora_matmul(X, B, A, bias=BIAS[:1]), r"bias of shape \(40,\)"),
    ],
)
def test_misfits(call, text):
    with pytest.raises(bp.OperandError, match=text):
        call()


def test_alpha_is_a_plain_number():
    with pytest.raises(bp.OperandTypeError, match="plain number"):
        jax.jit(lambda alpha: bp.lora_matmul(X, B, A, alpha=alpha))(0.5)
