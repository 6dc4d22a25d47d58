"""Units by duck typing: with a toy unit system, and with saiunit where it is installed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import braintrace_primitives as bp
from braintrace_primitives.testing import draw


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit as a scale and the exponents of (length, time)."""

    scale: float = 1.0
    powers: tuple = (0, 0)

    def __mul__(self, other):
        return Unit(self.scale * other.scale, tuple(a + b for a, b in zip(self.powers, other.powers, strict=True)))

    def __truediv__(self, other):
        return self * Unit(1 / other.scale, tuple(-p for p in other.powers))

    def has_same_dim(self, other):
        return self.powers == other.powers


@dataclasses.dataclass
class Quantity:
    mantissa: jax.Array
    unit: Unit = Unit()

    def in_unit(self, unit):
        return Quantity(self.mantissa * (self.unit.scale / unit.scale), unit)

    def to_decimal(self):
        return self.mantissa * self.unit.scale


METER, MILLIMETER, PER_SECOND = Unit(1.0, (1, 0)), Unit(1e-3, (1, 0)), Unit(1.0, (0, -1))
X, W, BIAS = draw((2, 3), jnp.float32), draw((3, 4), jnp.float32), draw((4,), jnp.float32)
PATTERN = bp.SparsityPattern.from_dense(jnp.ones((3, 4)))

OPERATIONS = {
    "matmul": lambda x, w, b: bp.matmul(x, w, b),
    "sparse": lambda x, w, b: bp.sparse_matmul(x, reshape(w, -1), sparse_mat=PATTERN, bias=b),
    "lora": lambda x, w, b: bp.lora_matmul(x, jnp.eye(3), w, bias=b),
    "grouped": lambda x, w, b: bp.grouped_matmul(reshape(x, 2, 1, 3), reshape(w, 1, 3, 4), reshape(b, 1, 4)),
    "conv": lambda x, w, b: bp.conv(
        reshape(x, 2, 1, 3), reshape(w, 1, 3, 4), b, dimension_numbers=("NWC", "WIO", "NWC")
    ),
}


def reshape(value, *shape):
    if isinstance(value, Quantity):
        return dataclasses.replace(value, mantissa=value.mantissa.reshape(shape))
    return value.reshape(shape)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_result_has_the_product_of_units(operation):
    y = operation(Quantity(X, METER), Quantity(W, PER_SECOND), Quantity(1e3 * BIAS, MILLIMETER * PER_SECOND))
    assert y.unit == METER * PER_SECOND
    assert jnp.allclose(y.mantissa.reshape(2, 4), X @ W + BIAS, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_result_without_dimension_is_a_plain_array(operation):
    y = operation(Quantity(X, METER), Quantity(1e3 * W, Unit() / METER * Unit(1e-3)), BIAS)
    assert jnp.allclose(y.reshape(2, 4), X @ W + BIAS, atol=1e-3)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_mismatched_bias(operation):
    for x, bias in [
        (Quantity(X, METER), BIAS),
        (Quantity(X, METER), Quantity(BIAS, PER_SECOND)),
        (X, Quantity(BIAS, METER)),
    ]:
        with pytest.raises(bp.OperandError, match="unit of bias does not fit"):
            operation(x, W, bias)


def test_a_dimensionless_quantity_is_a_fine_bias_of_plain_operands():
    y = bp.matmul(X, W, Quantity(BIAS / 1e-3, Unit(1e-3)))
    assert jnp.allclose(y, X @ W + BIAS, atol=1e-4)


def test_other_operations_keep_the_unit_of_their_weight():
    assert bp.element_wise(Quantity(W, METER)).unit == METER
    assert bp.embedding(jnp.array([1]), Quantity(W, METER)).unit == METER
    assert bp.einsum("bi,io->bo", X, Quantity(W, METER)).unit == METER
    assert bp.einsum("bi,io->bo", Quantity(X, METER), Quantity(W, PER_SECOND)).unit == METER * PER_SECOND
    plain = bp.einsum("bi,io->bo", Quantity(X, METER), Quantity(W, Unit() / METER))
    assert jnp.allclose(plain, X @ W, atol=1e-5)


def test_indices_carry_no_unit():
    with pytest.raises(bp.OperandTypeError, match="indices is not an array"):
        bp.embedding(Quantity(jnp.array([1]), METER), W)


def test_saiunit():
    u = pytest.importorskip("saiunit")
    y = jax.jit(bp.matmul)(X * u.mV, W * u.mS, BIAS * u.nA)
    assert y.unit.has_same_dim(u.uA)
    assert jnp.allclose(y.to_decimal(u.uA), X @ W + 1e-3 * BIAS, atol=1e-4)
    assert isinstance(bp.matmul(X * u.mV, W / u.mV), jax.Array)
    with pytest.raises(bp.OperandError, match="unit of bias"):
        bp.matmul(X * u.mV, W, BIAS * u.ms)
    grad = jax.grad(lambda w: bp.matmul(X * u.mV, w).to_decimal(u.mV).sum())(W)
    assert jnp.allclose(grad, jnp.broadcast_to(X.sum(0)[:, None], W.shape), atol=1e-5)
