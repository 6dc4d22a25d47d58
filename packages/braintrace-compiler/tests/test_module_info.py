"""Stage 1: the step as a program with named inputs and outputs."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler_models import H, I, Model, array, info, leaky, recurrent

from braintrace_compiler import StateKind, extract_module_info
from braintrace_compiler._jaxpr import eval_jaxpr
from braintrace_primitives import matmul


def run(minfo, *args):
    """Outputs and new states of the program at the states' present values."""
    states = [leaf for s in minfo.states for leaf in jax.tree.leaves(s.state.value)]
    return eval_jaxpr(minfo.jaxpr, *minfo.consts, *jax.tree.leaves(args), *states)


def test_states_are_classified_in_the_order_of_the_step():
    model = recurrent()
    model.count = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
    model._step = (lambda step: lambda m, x: (setattr(m.count, "value", m.count.value + 1), step(m, x))[1])(model._step)
    found = {s.path: s.kind for s in info(model).states}
    assert found == {
        ("count",): StateKind.OTHER,
        ("g",): StateKind.HIDDEN,
        ("v",): StateKind.HIDDEN,
        ("w",): StateKind.PARAMETER,
        ("out",): StateKind.PARAMETER,
    }
    assert list(info(model).hidden_path_to_invar) == [("g",), ("v",)]


def test_the_program_is_the_step():
    model = recurrent()
    minfo, x = info(model), jnp.array([0.3, -0.2])
    values = run(minfo, x)
    out = model(x)
    np.testing.assert_allclose(values[0], out, rtol=1e-6)
    new = dict(zip((s.path for s in minfo.states), values[1:], strict=True))
    np.testing.assert_allclose(new["v",], model.v.value, rtol=1e-6)
    np.testing.assert_allclose(new["g",], model.g.value, rtol=1e-6)


def test_tracing_leaves_the_model_as_it_was():
    model = recurrent()
    before = np.asarray(model.v.value)
    info(model)
    np.testing.assert_array_equal(model.v.value, before)


def test_parameter_leaves_and_paths():
    def step(m, x):
        m.v.value = matmul(x, m.w.value["weight"], m.w.value["bias"]) + m.v.value
        return m.v.value

    minfo = info(Model(step, {"w": {"weight": array(I, H), "bias": array(H)}}, {"v": array(H)}))
    assert {p: len(v) for p, v in minfo.weight_path_to_invars.items()} == {("w",): 2}
    assert set(minfo.invar_to_weight_path.values()) == {("w",)}


def test_arguments_and_outputs_are_pytrees():
    def step(m, batch):
        m.v.value = 0.5 * m.v.value + matmul(batch["x"], m.w.value) + batch["gain"]
        return {"v": m.v.value, "pair": (batch["gain"], 1.0)}

    model = Model(step, {"w": array(I, H)}, {"v": array(H)})
    batch = {"x": jnp.ones(I), "gain": jnp.ones(())}
    minfo = extract_module_info(model, batch)
    assert len(minfo.arg_invars) == 2
    out = jax.tree.unflatten(minfo.out_tree, run(minfo, batch)[: len(minfo.out_outvars)])
    np.testing.assert_allclose(out["v"], model(batch)["v"], rtol=1e-6)
    assert float(out["pair"][1]) == 1.0


def test_a_state_the_step_does_not_change_leaves_by_its_own_variable():
    def step(m, x):
        m.v.value = 0.5 * m.v.value + matmul(x, m.w.value)
        return m.v.value * m.frozen.value

    _, state = info(Model(step, {"w": array(I, H)}, {"v": array(H), "frozen": array(H)})).hidden
    assert state.path == ("frozen",)
    assert state.outvars == state.invars


def test_a_state_outside_the_model_has_a_global_path():
    outside = brainstate.ShortTermState(jnp.ones(H), name="outside")

    def step(m, x):
        m.v.value = outside.value * m.v.value + matmul(x, m.w.value)
        return m.v.value

    minfo = info(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    (path,) = [s.path for s in minfo.of_kind(StateKind.OTHER)]
    assert path[:2] == ("<global>", "outside")


def test_constants_are_leading_inputs():
    table = jnp.arange(3.0)

    def step(m, x):
        m.v.value = table * m.v.value + matmul(x, m.w.value)
        return m.v.value

    minfo = info(Model(step, {"w": array(I, H)}, {"v": array(H)}))
    assert any(np.array_equal(c, table) for c in minfo.consts)
    assert minfo.const_invars == tuple(minfo.jaxpr.invars[: len(minfo.consts)])


def test_the_lists_of_states():
    minfo = info(leaky())
    assert [s.path for s in minfo.hidden] == [("v",)]
    assert [s.path for s in minfo.parameters] == [("w",), ("out",)]
    assert len(minfo.compiled_model_states) == 3
    assert minfo.hidden_path_to_outvar["v",] is minfo.hidden[0].outvars[0]


def test_what_is_read_of_the_environment_is_named():
    model = leaky()
    step = model._step

    def reading(model, x):
        gain = brainstate.environ.get("gain") * brainstate.environ.get("not there", default=1.0)
        with brainstate.environ.context(inner=2.0):
            return step(model, x * gain * brainstate.environ.get("inner"))

    model._step = reading
    plain = brainstate.environ.get
    with brainstate.environ.context(gain=0.5, inner=3.0, other=1):
        assert info(model).environment == {"gain": 0.5}
    with pytest.raises(KeyError):
        info(model)
    assert brainstate.environ.get is plain
