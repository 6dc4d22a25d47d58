"""Names of the package, and models put together from them."""

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace_nn as nn

PLAIN = ["Dropout", "LayerNorm", "RMSNorm", "BatchNorm1d", "GroupNorm", "MaxPool2d", "Flatten", "ReLU", "Identity"]
OURS = [
    *("Linear", "SignedWLinear", "ScaledWSLinear", "SparseLinear", "GroupedLinear", "LoRA", "Embedding"),
    *("Conv1d", "Conv2d", "Conv3d", "ScaledWSConv1d", "ScaledWSConv2d", "ScaledWSConv3d"),
    *("LeakyRateReadout", "LeakySpikeReadout", "AllToAll", "OneToOne", "Sequential"),
    *("LIFCell", "ALIFCell", "GIFCell", "COBACell", "Synapse", "ShortTermPlasticity", "Delay"),
    *("IF", "LI", "LIF", "CubaLI", "CubaLIF", "NIRModel"),
    *("ValinaRNNCell", "VanillaRNNCell", "GRUCell", "CFNCell", "MGUCell", "LSTMCell", "URLSTMCell"),
    *("MinimalRNNCell", "MiniGRU", "MiniLSTM", "LRUCell"),
]


@pytest.mark.parametrize("name", OURS)
def test_our_layers_are_modules_with_a_docstring(name):
    layer = getattr(nn, name)
    assert issubclass(layer, brainstate.nn.Module)
    assert layer.__module__.startswith("braintrace_nn")
    assert len(layer.__doc__) > 40


@pytest.mark.parametrize("name", PLAIN)
def test_plain_layers_are_those_of_brainstate(name):
    assert getattr(nn, name) is getattr(brainstate.nn, name)


def test_a_deep_model_steps_in_every_form():
    model = nn.Sequential(
        nn.Conv1d((6, 2), 4, 3, b_init=0.0),
        nn.ReLU(),
        nn.Flatten(start_axis=-2),
        nn.Linear(24, 5),
        nn.LayerNorm(5),
        nn.GRUCell(5, 4),
        nn.Linear(4, 2),
    )
    brainstate.nn.init_all_states(model, batch_size=2)
    xs = np.random.default_rng(0).normal(size=(3, 2, 6, 2)).astype("float32")
    step = brainstate.transform.jit(model)
    one_by_one = [step(x) for x in xs]
    brainstate.nn.reset_all_states(model, batch_size=2)

    def loss():
        ys = brainstate.transform.for_loop(model, xs)
        return (ys**2).sum(), ys

    params = model.states(brainstate.ParamState)
    grads, ys = brainstate.transform.jit(brainstate.transform.grad(loss, params, has_aux=True))()
    np.testing.assert_allclose(ys, one_by_one, rtol=1e-5, atol=1e-6)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_sequential_names_the_layer_that_failed():
    model = nn.Sequential(nn.Linear(4, 3), nn.ValinaRNNCell(3, 2), nn.Linear(5, 1))
    brainstate.nn.init_all_states(model)
    with pytest.raises(nn.InputShapeError, match="feature size") as caught:
        model(jnp.ones(4))
    assert caught.value.__notes__ == ["in layers[2] of a Sequential of 3"]


def test_sequential_leaves_other_errors_alone():
    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        nn.Sequential(nn.Linear(4, 3), broken)(jnp.ones(4))


def test_slices_of_a_sequential_are_ours_too():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    assert type(model[:1]) is nn.Sequential
    assert (model.in_size, model.out_size) == ((4,), (2,))


def test_parameters_load_by_path():
    source, target = nn.LSTMCell(4, 3), nn.LSTMCell(4, 3)
    saved = {path: state.value for path, state in source.states(brainstate.ParamState).items()}
    for path, state in target.states(brainstate.ParamState).items():
        state.value = saved[path]
    for cell in (source, target):
        cell.init_state()
    np.testing.assert_array_equal(source(jnp.ones(4)), target(jnp.ones(4)))
