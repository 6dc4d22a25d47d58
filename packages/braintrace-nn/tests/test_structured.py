"""Grouped, low-rank and sparse layers."""

import brainstate
import jax
import jax.experimental.sparse
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_nn as nn
from braintrace_primitives import OperandTypeError, SparsityPattern, is_etp_primitive


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def marks(layer, x):
    eqns = brainstate.transform.make_jaxpr(layer)(x)[0].jaxpr.eqns
    return [eqn.primitive.name for eqn in eqns if is_etp_primitive(eqn.primitive)]


@pytest.mark.parametrize("lead", [(), (5,), (7, 5)])
@pytest.mark.parametrize("bias", [0.5, None])
def test_grouped(lead, bias):
    layer = nn.GroupedLinear(2, 4, 3, w_init=normal(2, 4, 3), b_init=bias)
    x = normal(*lead, 2, 4, seed=1)
    blocks = [x[..., g, :] @ normal(2, 4, 3)[g] for g in range(2)]
    np.testing.assert_allclose(layer(x), np.stack(blocks, -2) + (bias or 0), rtol=1e-5, atol=1e-5)
    assert marks(layer, x) == ["etp_gmm" if lead else "etp_gmv"]


def test_groups_are_drawn_one_by_one():
    weight = nn.GroupedLinear(6, 100, 80).weight.value["weight"]
    np.testing.assert_allclose(weight.std(), np.sqrt(2 / 100), rtol=0.02)
    assert not np.array_equal(weight[0], weight[1])


def test_grouped_errors():
    with pytest.raises(nn.InputShapeError, match=r"float32\[\.\.\.,2,4\]"):
        nn.GroupedLinear(2, 4, 3)(jnp.ones((4, 2)))
    with pytest.raises(nn.ConfigurationError, match="num_groups"):
        nn.GroupedLinear(0, 4, 3)


@pytest.mark.parametrize("lead", [(), (5,), (7, 5)])
def test_low_rank(lead):
    layer = nn.LoRA(4, 2, 3)
    a, b = layer.weight.value["lora_a"], layer.weight.value["lora_b"]
    assert (a.shape, b.shape) == ((4, 2), (2, 3))
    x = normal(*lead, 4)
    np.testing.assert_allclose(layer(x), x @ np.asarray(a) @ np.asarray(b) / 2, rtol=1e-5, atol=1e-6)
    assert marks(layer, x) == ["etp_lora_mm" if lead else "etp_lora_mv"]


def test_low_rank_beside_a_base_layer():
    base = nn.Linear(4, 3)
    adapted, alone = nn.LoRA(4, 2, 3, base_module=base), nn.LoRA(4, 2, 3)
    alone.weight.value = adapted.weight.value
    x = normal(5, 4)
    np.testing.assert_allclose(adapted(x), base(x) + alone(x), rtol=1e-6, atol=1e-6)
    assert set(adapted.states()) == {("weight",), ("base_module", "weight")}


def test_low_rank_sizes():
    assert nn.LoRA(4, 2, 3, in_size=(5, 4)).out_size == (5, 3)
    with pytest.raises(nn.ConfigurationError, match="in_size"):
        nn.LoRA(4, 2, 3, in_size=(5, 6))
    with pytest.raises(nn.ConfigurationError, match="lora_rank"):
        nn.LoRA(4, 0, 3)
    with pytest.raises(nn.InputShapeError):
        nn.LoRA(4, 2, 3)(jnp.ones(5))


def test_low_rank_carry_is_an_option():
    def carried(**options):
        layer = nn.LoRA(4, 2, 3, **options)
        eqns = brainstate.transform.make_jaxpr(layer)(jnp.ones(4))[0].jaxpr.eqns
        return [eqn.params["carry_b"] for eqn in eqns if is_etp_primitive(eqn.primitive)]

    assert (carried(), carried(carry_b=False)) == ([True], [False])


DENSE = np.array([[1.0, 0.0], [2.0, 3.0], [0.0, 4.0]], "float32")
FORMATS = {
    "bcoo": jax.experimental.sparse.BCOO.fromdense(DENSE),
    "bcsr": jax.experimental.sparse.BCSR.fromdense(DENSE),
    "pattern": SparsityPattern.from_dense(DENSE),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("lead", [(), (5,), (7, 5)])
def test_sparse(kind, lead):
    entries = np.array([1.0, 2.0, 3.0, 4.0]) if kind == "pattern" else None
    layer = nn.SparseLinear(FORMATS[kind], b_init=0.5, w_init=entries)
    x = normal(*lead, 3)
    np.testing.assert_allclose(layer(x), x @ DENSE + 0.5, rtol=1e-5, atol=1e-5)
    assert (layer.in_size, layer.out_size) == ((3,), (2,))
    assert {k: v.shape for k, v in layer.weight.value.items()} == {"weight": (4,), "bias": (2,)}
    assert marks(layer, x) == ["etp_sp_mm" if lead else "etp_sp_mv"]


def test_sparse_defaults_scale_with_the_number_of_connections():
    mask = np.random.default_rng(0).random((500, 400)) < 0.1
    entries = nn.SparseLinear(SparsityPattern.from_dense(mask)).weight.value["weight"]
    np.testing.assert_allclose(entries.std(), np.sqrt(2 / 50), rtol=0.05)


def test_sparse_errors():
    with pytest.raises(OperandTypeError, match="sparse matrix"):
        nn.SparseLinear(DENSE)
    with pytest.raises(nn.ConfigurationError, match="w_init"):
        nn.SparseLinear(FORMATS["pattern"], w_init=np.ones(3))
    with pytest.raises(nn.InputShapeError, match=r"float32\[\.\.\.,3\]"):
        nn.SparseLinear(FORMATS["bcoo"])(jnp.ones(2))
    with pytest.raises(nn.ConfigurationError, match="in_size"):
        nn.SparseLinear(FORMATS["bcoo"], in_size=(5, 2))
    assert nn.SparseLinear(FORMATS["bcoo"], in_size=(5, 3)).out_size == (5, 2)


@pytest.mark.parametrize("layer", [nn.GroupedLinear(2, 4, 3), nn.LoRA(4, 2, 3), nn.SparseLinear(FORMATS["bcoo"])])
def test_repr_tells_sizes(layer):
    text = repr(layer)
    assert type(layer).__name__ in text
    assert str(layer.in_size) in text
    assert str(layer.out_size) in text
