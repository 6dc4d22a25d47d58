import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import check_primitive, draw

outer = bp.register_primitive("test_outer", lambda x, weight, gain: jnp.outer(x, weight) + gain)


def eqns_of(function, *args):
    return [e for e in jax.make_jaxpr(function)(*args).eqns if bp.is_etp_primitive(e.primitive)]


def test_founding_primitives_keep_name_and_layout():
    for name in ("mm", "mv", "elemwise", "conv", "sp_mm", "sp_mv", "lora_mm", "lora_mv"):
        primitive = getattr(bp, f"etp_{name}_p")
        spec = bp.get_primitive_spec(primitive)
        assert primitive in bp.ETP_PRIMITIVES
        assert spec.name == primitive.name == f"etp_{name}"
        assert spec.primitive is primitive
        assert (spec.weight_invar_index, spec.x_invar_index) == ((0, None) if name == "elemwise" else (1, 0))
    assert bp.get_primitive_spec(bp.etp_lora_mm_p).trainable_invars({"has_bias": True}) == {"B": 1, "A": 2, "bias": 3}
    assert bp.get_primitive_spec(bp.etp_mm_p).batched
    assert not bp.get_primitive_spec(bp.etp_mv_p).batched


def test_a_foreign_primitive_has_no_spec():
    add_p = jax.make_jaxpr(lambda a: a + a)(1.0).eqns[0].primitive
    assert not bp.is_etp_primitive(add_p)
    with pytest.raises(bp.RegistrationError, match="not an ETP primitive"):
        bp.get_primitive_spec(add_p)


def test_registration_from_a_function_alone():
    spec = bp.get_primitive_spec(outer)
    assert spec.trainable_invars({}) == {"weight": 1, "gain": 2}
    assert (spec.weight_invar_index, spec.x_invar_index) == (1, 0)
    check_primitive(outer, draw((2,), jnp.float32), draw((3,), jnp.float32), draw((2, 3), jnp.float32))


def test_a_function_of_one_operand_has_no_input():
    primitive = bp.register_primitive("test_double", lambda gain: 2 * gain)
    spec = bp.get_primitive_spec(primitive)
    assert (spec.weight_invar_index, spec.x_invar_index) == (0, None)
    check_primitive(primitive, jnp.arange(3.0))


def test_static_parameters():
    primitive = bp.register_primitive("test_static", lambda x, weight, *, power: x**power * weight)
    check_primitive(primitive, jnp.arange(3.0), jnp.ones(3), power=2)
    assert eqns_of(lambda x: primitive(x, x, power=2), jnp.ones(3))[0].params == {"power": 2}


def test_mapped_axes_are_counted_and_survive():
    f = lambda x: outer(x, jnp.ones(3), jnp.ones((2, 3)))  # noqa: E731
    xs = draw((4, 5, 2), jnp.float32)
    (eqn,) = eqns_of(jax.vmap(jax.vmap(f)), xs)
    assert eqn.primitive is outer
    assert eqn.params == {"batch_axes": 2}
    got = jax.jit(jax.vmap(jax.vmap(f), in_axes=1))(xs)
    assert jnp.allclose(got, xs.transpose(1, 0, 2)[..., None] + 1)


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ((0, 0, 0), ["etp_einsum", "etp_elemwise"]),
        ((None, 2, 1), ["etp_einsum", "etp_elemwise"]),
        ((1, 0, None), ["etp_einsum", "etp_elemwise"]),
        ((None, None, 0), ["etp_einsum", "etp_elemwise"]),
        ((1, None, None), ["etp_mm"]),
    ],
)
def test_products_with_mapped_weights_stay_marked(axes, names):
    operands = [
        draw(shape if axis is None else (*shape[:axis], 4, *shape[axis:]), jnp.float32)
        for shape, axis in zip([(5, 2), (2, 3), (3,)], axes, strict=True)
    ]
    f = jax.vmap(bp.matmul, axes)
    assert [e.primitive.name for e in eqns_of(f, *operands)] == names
    assert jnp.allclose(f(*operands), jax.vmap(lambda x, w, b: x @ w + b, axes)(*operands), rtol=1e-5)
    grouped = jax.vmap(lambda x, w, b: bp.grouped_matmul(x[:, None], w[None], b[None])[:, 0], axes)
    assert jnp.allclose(f(*operands), grouped(*operands), rtol=1e-5)


def test_mapped_weight_falls_back_to_plain_jax():
    weights = draw((4, 3), jnp.float32)
    f = jax.vmap(lambda w: outer(jnp.arange(2.0), w, jnp.zeros((2, 3))))
    assert not eqns_of(f, weights)
    assert jnp.allclose(f(weights), jnp.arange(2.0)[:, None] * weights[:, None])


def test_identity_survives_transformations_of_the_input():
    w = draw((3, 4), jnp.float32)
    f = functools.partial(bp.matmul, weight=w)
    (mapped,) = eqns_of(jax.vmap(f), jnp.ones((2, 3)))
    assert mapped.primitive is bp.etp_mm_p
    (again,) = eqns_of(jax.vmap(jax.vmap(f)), jnp.ones((5, 2, 3)))
    assert again.primitive is bp.etp_mm_p
    assert again.invars[0].aval.shape == (5, 2, 3)
    (grad,) = eqns_of(jax.grad(lambda w: bp.matmul(jnp.ones(3), w).sum()), w)
    assert grad.primitive is bp.etp_mv_p


def test_higher_order_derivatives():
    def energy(product):
        return lambda x, w: jnp.sum(product(x, w) ** 3)

    @jax.jit
    def second(x, w):
        got, plain = energy(bp.matmul), energy(jnp.matmul)
        want = jax.hessian(plain, (0, 1))(x, w)
        return (jax.hessian(got, (0, 1))(x, w), want), (jax.jacrev(jax.jacrev(got, (0, 1)), (0, 1))(x, w), want)

    for got, want in second(draw((2, 3), jnp.float32), draw((3, 2), jnp.float32)):
        assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-4), got, want))


def test_custom_derivative_inside_a_primitive():
    @jax.custom_vjp
    def scaled(x, w):
        return x * w

    scaled.defvjp(lambda x, w: (x * w, (x, w)), lambda saved, g: (g * saved[1], 10 * g * saved[0]))
    primitive = bp.register_primitive("test_custom_vjp", lambda x, weight: scaled(x, weight))
    x, w = jnp.arange(3.0), jnp.ones(3)
    assert jnp.allclose(jax.grad(lambda w: primitive(x, w).sum())(w), 10 * x)
    pulled = bp.get_primitive_spec(primitive).trace_rule.pullback(x[None], {"weight": w}, jnp.ones((1, 3)), {})
    assert jnp.allclose(pulled["weight"], 10 * x)


def test_duplicate_name():
    with pytest.raises(bp.RegistrationError, match="'etp_mm' is taken"):
        bp.register_primitive("etp_mm", lambda x, weight: x * weight)


@pytest.mark.parametrize(("name", "fn"), [("", lambda x, w: x * w), (None, lambda x, w: x * w), ("not_made", 5)])
def test_what_is_no_name_or_no_function(name, fn):
    with pytest.raises(bp.RegistrationError, match="a name and a function"):
        bp.register_primitive(name, fn)
    assert name not in {p.name for p in bp.ETP_PRIMITIVES}


def test_function_without_operands():
    with pytest.raises(bp.RegistrationError, match="no operand"):
        bp.register_primitive("test_no_operand", lambda *, scale: scale)


@pytest.mark.parametrize("bind", [jax.jit, lambda f: f])
def test_wrong_arity(bind):
    with pytest.raises(bp.OperandError, match=r"wrong number of operands(.|\n)*2 operands(.|\n)*3 operands"):
        bind(lambda x: outer(x, x))(jnp.ones(2))
    with pytest.raises(bp.OperandError, match="wrong number of operands"):
        bind(lambda x: bp.etp_mm_p.bind(x, x, has_bias=True))(jnp.ones((2, 2)))


@pytest.mark.parametrize("wrap", [lambda y: (y, y), lambda y: [y], lambda y: {"y": y}, lambda y: None])
def test_other_results_than_one_array_are_refused(wrap):
    def layer(x, weight):
        return wrap(x * weight)

    name = f"test_result_{type(wrap(1)).__name__}"
    with pytest.raises(bp.RegistrationError, match="one array"):
        bp.register_primitive(name, layer, check_linear=(jnp.ones(2), jnp.ones(2)))
    primitive = bp.register_primitive(name, layer)
    gradient = jax.grad(lambda weight, x: primitive(x, weight).sum())
    for use in (primitive, jax.jit(primitive), jax.vmap(primitive), gradient):
        with pytest.raises(bp.OperandTypeError, match=rf"{name}(.|\n)*layer(.|\n)*{type(wrap(1)).__name__}"):
            use(jnp.ones(2), jnp.ones(2))


def test_linearity_is_checked_on_request():
    example = jnp.arange(3.0), jnp.ones(3)
    bp.register_primitive("test_linear", lambda x, weight: jnp.tanh(x) * weight, check_linear=example)
    for name, f in {
        "quadratic": lambda x, weight: x * weight**2,
        "affine": lambda x, weight: x * weight + 1,
        "invalid": lambda x, weight: jnp.log(-jnp.abs(x) - 1) * weight,
    }.items():
        with pytest.raises(bp.RegistrationError, match="not linear"):
            bp.register_primitive(f"test_{name}", f, check_linear=example)
    with pytest.raises(bp.RegistrationError, match="too few operands"):
        bp.register_primitive("test_few", lambda x, weight: x * weight, check_linear=example[:1])


def test_a_refused_registration_leaves_no_trace():
    before = set(bp.ETP_PRIMITIVES)
    with pytest.raises(bp.RegistrationError):
        bp.register_primitive("test_gone", lambda x, w: w**2, check_linear=(jnp.ones(2), jnp.ones(2)))
    assert before == set(bp.ETP_PRIMITIVES)
    bp.register_primitive("test_gone", lambda x, w: x * w)


def test_a_quantity_is_refused_by_a_bare_primitive():
    class Quantity:
        mantissa, unit = 1.0, "mV"

    with pytest.raises(bp.OperandTypeError, match="carries a unit"):
        outer(Quantity(), jnp.ones(3), jnp.ones((2, 3)))
