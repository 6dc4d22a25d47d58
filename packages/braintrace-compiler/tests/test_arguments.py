"""What is traced of a step's arguments, and what the step is compiled for."""

import enum

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, graph

from braintrace_compiler import Arguments, CompilationError, StepModule, extract_module_info
from braintrace_compiler._arguments import DATA, is_data
from braintrace_primitives import matmul


class Mode(enum.Enum):
    FAST = 1


STATIC = [True, "sum", Mode.FAST, jnp.tanh, object()]
DYNAMIC = [1, 2.5, 1j, np.float32(1), np.True_, np.ones(2), jnp.ones(2), jax.ShapeDtypeStruct((2,), jnp.float32)]


def test_arrays_and_numbers_are_data():
    assert [is_data(v) for v in DYNAMIC] == [True] * len(DYNAMIC)
    assert [is_data(v) for v in STATIC] == [False] * len(STATIC)


def test_a_call_is_split_and_joined():
    call, data = Arguments.split(({"x": 1.0, "mode": "a"}, None), {"training": True, "gain": 2.0})
    assert data == [1.0, 2.0]
    assert call.leaves == ("a", DATA, DATA, True)
    assert call.names() == ["argument 0['mode']", "argument 0['x']", "keyword gain", "keyword training"]
    assert call.join([3.0, 4.0]) == (({"x": 3.0, "mode": "a"}, None), {"training": True, "gain": 4.0})


def chooses():
    """A model whose arguments decide what is traced."""

    def step(m, batch, how="plain", *, training=False, mask=None):
        y = matmul(batch["x"], m.w.value) * (1.0 if mask is None else mask)
        m.v.value = 0.9 * m.v.value + (jnp.tanh(y) if how == "tanh" else y)
        return {"v": m.v.value, "extra": (batch["gain"], None)} if training else m.v.value

    class Choosing(Model):
        def update(self, *args, **kwargs):
            return step(self, *args, **kwargs)

    return Choosing(step, {"w": array(I, H)}, {"v": array(H)})


BATCH = {"x": jnp.ones(I), "gain": 2.0}


def test_keyword_and_static_arguments_shape_the_program():
    plain = extract_module_info(chooses(), BATCH)
    other = extract_module_info(chooses(), BATCH, "tanh", kwargs={"training": True, "mask": np.ones(H, np.float32)})
    assert len(plain.arg_invars) == 2
    assert len(other.arg_invars) == 3
    assert "tanh" not in str(plain.jaxpr)
    assert "tanh" in str(other.jaxpr)
    assert len(other.out_outvars) == 2
    assert jax.tree.unflatten(other.out_tree, [1, 2]) == {"v": 2, "extra": (1, None)}
    (relation,) = graph(chooses(), BATCH, kwargs={"training": False}).hidden_param_op_relations
    assert relation.weight_path == ("w",)


def test_a_pure_step_takes_them_too():
    def step(params, hidden, x, *, double):
        hidden = 0.5 * hidden + matmul(x, params) * (2.0 if double else 1.0)
        return hidden, hidden

    found = graph(StepModule(step, array(I, H), jnp.zeros(H)), jnp.ones(I), kwargs={"double": True})
    assert found.hidden_perturb.transitions[0].constants.F == ((2.0,),)


def test_a_number_that_shapes_the_program_is_explained():
    def step(m, n):
        for _ in range(n):
            m.v.value = 0.9 * m.v.value + matmul(jnp.ones(I), m.w.value)
        return m.v.value

    with pytest.raises(jax.errors.TracerIntegerConversionError) as caught:
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}), 3)
    assert any("numbers among the arguments of a step are data" in note for note in caught.value.__notes__)


def test_numpy_in_a_step_is_explained():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + np.tanh(np.asarray(matmul(x, m.w.value)))
        return m.v.value

    with pytest.raises(jax.errors.TracerArrayConversionError) as caught:
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    assert any("jax.numpy rather than NumPy" in note for note in caught.value.__notes__)


def test_outputs_are_arrays():
    def step(m, x):
        m.v.value = 0.9 * m.v.value + matmul(x, m.w.value)
        return {"v": m.v.value, "name": "leaky"}

    with pytest.raises(CompilationError, match=r"(?s)no array.*output\['name'\].*str 'leaky'"):
        graph(Model(step, {"w": array(I, H)}, {"v": array(H)}))
