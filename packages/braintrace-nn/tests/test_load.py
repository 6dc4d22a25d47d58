"""Saved parameters: those of the field's existing library, joined and separate gates, and what does not fit."""

import pathlib

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn
from braintrace_primitives import etp_mm_p

UPSTREAM = np.load(pathlib.Path(__file__).parent / "upstream.npz")  # made by make_upstream.py
GATED = ("GRUCell", "CFNCell", "LSTMCell", "URLSTMCell", "MiniLSTM")
MAKERS = {
    "GroupedLinear": lambda: nn.GroupedLinear(2, 4, 3),
    "LoRA": lambda: nn.LoRA(4, 2, 3),
    "Embedding": lambda: nn.Embedding(5, 3),
    "Conv1d": lambda: nn.Conv1d((5, 2), 3, 2, b_init=0.0),
    "Conv2d": lambda: nn.Conv2d((4, 4, 2), 3, 2, b_init=0.0),
    "LeakyRateReadout": lambda: nn.LeakyRateReadout(4, 3, tau=5.0),
    "Sequential": lambda: nn.Sequential(nn.LSTMCell(4, 3), nn.Linear(3, 2)),
}
NAMES = sorted({key.partition("/")[0] for key in UPSTREAM})


def saved(name):
    """Parameters of a layer by dotted path, its input and its output."""
    found = {key.partition("/")[2]: UPSTREAM[key] for key in UPSTREAM if key.startswith(f"{name}/")}
    return found, found.pop("x"), found.pop("y")


def values(model):
    return {path: state.value for path, state in model.states(brainstate.ParamState).items()}


def third_step(model, x):
    brainstate.nn.init_all_states(model, batch_size=2)
    with brainstate.environ.context(dt=1.0):
        return brainstate.transform.jit(lambda: [model(jnp.asarray(x)) for _ in range(3)][-1])()


@pytest.mark.parametrize("name", NAMES)
def test_models_of_the_existing_library_go_on_as_they_were(name):
    parameters, x, y = saved(name)
    model = MAKERS.get(name, lambda: getattr(nn, name)(4, 3))()
    nn.load_parameters(model, parameters)
    np.testing.assert_allclose(third_step(model, x), y, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", GATED)
def test_fused_gates_compute_the_same(name):
    parameters, x, y = saved(name)
    model = getattr(nn, name)(4, 3, fused=True)
    nn.load_parameters(model, parameters)
    np.testing.assert_allclose(third_step(model, x), y, rtol=2e-4, atol=2e-5)
    marked = brainstate.transform.make_jaxpr(model)(jnp.asarray(x))[0].jaxpr.eqns
    separate = sum(path.endswith("weight.weight") for path in parameters)
    assert [eqn.primitive for eqn in marked].count(etp_mm_p) == separate + 1 - len(model.gate_names)
    back = getattr(nn, name)(4, 3)
    nn.load_parameters(back, values(model))
    for path, value in values(back).items():
        jax.tree.map(np.testing.assert_array_equal, value, jax.tree.map(jnp.asarray, nested(parameters, path)))


def nested(parameters, path):
    """The value of one parameter among arrays by dotted path."""
    start = ".".join(path)
    return (
        parameters.get(start)
        if start in parameters
        else {key.removeprefix(f"{start}."): value for key, value in parameters.items() if key.startswith(f"{start}.")}
    )


def test_fused_gates_are_drawn_gate_by_gate():
    weight = nn.GRUCell(4, 3, fused=True, b_init=None).gates.weight.value["weight"]
    for gate in jnp.split(weight, 2, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(3), atol=1e-5)
    assert not np.allclose(*jnp.split(weight, 2, axis=1))
    assert nn.MGUCell(4, 3, fused=True).Wf.in_size == (7,)


def test_every_form_of_paths():
    source = nn.Sequential(nn.LSTMCell(4, 3), nn.Linear(3, 2))
    tuples = values(source)
    forms = {
        "tuples": tuples,
        "states": source.states(brainstate.ParamState),
        "dots": {".".join(map(str, path)): value for path, value in tuples.items()},
        "nested": {
            "layers": {
                0: source.layers[0].states(brainstate.ParamState),
                "1": {"weight": tuples["layers", 1, "weight"]},
            }
        },
        "lists": {"layers.1.weight": {k: v.tolist() for k, v in tuples["layers", 1, "weight"].items()}}
        | {path: value for path, value in tuples.items() if path[1] == 0},
    }
    for form in forms.values():
        model = nn.Sequential(nn.LSTMCell(4, 3), nn.Linear(3, 2))
        nn.load_parameters(model, form)
        jax.tree.map(np.testing.assert_array_equal, values(model), tuples)


def test_precision_and_units_are_those_of_the_model():
    with brainstate.environ.context(precision="bf16"):
        model = nn.LIFCell(4, 3, recurrent=False, w_init=lambda shape: jnp.zeros(shape, jnp.bfloat16) * u.mV)
    nn.load_parameters(model, {"W.weight.weight": np.full((4, 3), 0.002) * u.volt})
    weight = model.W.weight.value["weight"]
    assert (weight.unit, weight.dtype) == (u.mV, jnp.bfloat16)
    np.testing.assert_array_equal(weight.mantissa, np.full((4, 3), 2.0))


def test_what_does_not_fit_is_listed_and_nothing_is_written():
    model = nn.Sequential(nn.LSTMCell(4, 3, fused=True), nn.Linear(3, 2))
    before = values(model)
    parameters, _, _ = saved("Sequential")
    del parameters["layers.0.Wg.weight.bias"]
    parameters["layers.2.weight.weight"] = np.zeros(1)
    parameters["layers.1.weight.weight"] = np.zeros((2, 3), "float32")
    parameters["layers.1.weight.bias"] = np.zeros(2, "complex64")
    with pytest.raises(nn.ParameterMismatchError) as caught:
        nn.load_parameters(model, parameters)
    error = caught.value
    assert error.missing == ("layers.0.Wg.weight.bias",)
    assert error.unexpected == ("layers.2.weight.weight",)
    assert error.mismatched == {
        "layers.1.weight.weight": "float32[2,3] in place of float32[3,2]",
        "layers.1.weight.bias": "complex64[2] in place of float32[2]",
    }
    for part in (
        "missing: layers.0.Wg.weight.bias",
        "unexpected: layers.2",
        "mismatched: layers.1.weight.weight, float",
    ):
        assert part in str(error)
    jax.tree.map(np.testing.assert_array_equal, values(model), before)


def test_units_and_transposes_are_not_guessed():
    with pytest.raises(nn.ParameterMismatchError, match="mV in place of float32"):
        nn.load_parameters(nn.Linear(1, 3, b_init=None), {"weight.weight": np.ones((1, 3), "float32") * u.mV})
    with pytest.raises(nn.ParameterMismatchError, match=r"\[3,1\] in place of float32\[1,3\]"):
        nn.load_parameters(nn.Linear(1, 3, b_init=None), {"weight.weight": np.ones((3, 1), "float32")})
