"""Bad input is refused by our own errors, before anything is written."""

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace_nn as nn
from braintrace_primitives import BraintraceError

CELLS = [nn.ValinaRNNCell, nn.GRUCell, nn.LSTMCell, nn.LRUCell]
cells = pytest.mark.parametrize("make", CELLS)


def started(make, batch=None):
    cell = make(4, 3, name="memory")
    cell.init_state(batch)
    for state in cell.states(brainstate.HiddenState).values():
        state.value = state.value + 0.5
    return cell


def refused(cell, x, error, *words):
    """The error, after checking that its message holds `words` and that no state moved."""
    before = {path: np.asarray(s.value) for path, s in cell.states(brainstate.HiddenState).items()}
    with pytest.raises(error) as caught:
        cell(x)
    for path, state in cell.states(brainstate.HiddenState).items():
        np.testing.assert_array_equal(state.value, before[path])
    message = str(caught.value)
    assert isinstance(caught.value, BraintraceError)
    assert type(cell).__name__ in message
    for word in words:
        assert word in message
    return message


@cells
@pytest.mark.parametrize("batch", [None, 2])
def test_wrong_feature_size(make, batch):
    lead = () if batch is None else (batch,)
    expected = "float32[2,4]" if batch else "float32[4]"
    refused(started(make, batch), jnp.ones((*lead, 5)), nn.InputShapeError, "feature size", expected, "'memory'")


@cells
def test_wrong_batch(make):
    cell = started(make, 2)
    refused(cell, jnp.ones((7, 4)), nn.InputShapeError, "float32[7,4]", "float32[2,4]", "init_state(batch_size=7)")
    refused(cell, jnp.ones(4), nn.InputShapeError, "differ in their batch", "compile(..., batch_size=None)")


@cells
def test_a_sequence_where_a_step_is_due(make):
    error, cure = nn.InputShapeError, "one time step at a time"
    refused(started(make, 2), jnp.ones((9, 2, 4)), error, cure, "[9,2,4]")
    refused(started(make), jnp.ones((9, 4)), error, cure, "init_state(batch_size=9)")


@cells
def test_a_scalar_where_features_are_due(make):
    refused(started(make), 1.0, nn.InputShapeError, "float32[]")


@cells
def test_integers_where_floats_are_due(make):
    refused(started(make), jnp.ones(4, "int32"), nn.InputTypeError, "int32[4]", "astype")
    refused(started(make), [1, 2, 3, 4], nn.InputTypeError, "int32[4]")


@cells
def test_complex_input_of_a_real_cell(make):
    refused(started(make), jnp.ones(4, "complex64"), nn.InputTypeError, "complex", "float32[4]")


@cells
def test_units_where_plain_numbers_are_due(make):
    cell = started(make)
    refused(cell, jnp.ones(4) * u.mV, nn.InputTypeError, "mV", "divide it by its unit")
    plain, dimensionless = started(make), started(make)
    for path, state in plain.states(brainstate.ParamState).items():
        dimensionless.states()[path].value = state.value
    x = jnp.arange(4.0)
    np.testing.assert_allclose(dimensionless(x * u.second / (1000 * u.ms)), plain(x), rtol=1e-6)


@cells
def test_spikes_and_other_float_types_are_welcome(make):
    cell = started(make)
    spikes = np.array([True, False, True, True])
    want = cell(jnp.asarray(spikes, "float32"))
    for x in (spikes, jnp.asarray(spikes, "float16"), spikes.astype("float64"), list(spikes.astype(float))):
        other = started(make)
        for path, state in cell.states(brainstate.ParamState).items():
            other.states()[path].value = state.value
        np.testing.assert_array_equal(other(x), want)


@cells
def test_missing_states(make):
    cell = make(4, 3)
    with pytest.raises(nn.MissingStateError, match="init_state") as caught:
        cell(jnp.ones(4))
    assert f"no {make.state_names[0]}" in str(caught.value)
    with pytest.raises(nn.MissingStateError):
        cell.reset_state()


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", None, (), (3, 0), True])
def test_sizes_that_are_none(size):
    with pytest.raises(nn.ConfigurationError, match="in_size"):
        nn.GRUCell(size, 3)


@pytest.mark.parametrize("batch", [0, -2, 1.5, "3"])
def test_batch_sizes_that_are_none(batch):
    with pytest.raises(nn.ConfigurationError, match="batch_size"):
        nn.GRUCell(4, 3).init_state(batch)


def test_leading_axes_must_agree():
    with pytest.raises(nn.ConfigurationError, match="last axis only"):
        nn.GRUCell((2, 4), (3, 3))


@pytest.mark.parametrize("activation", ["no_such_function", "Tanh", "init", 3])
def test_unknown_activation(activation):
    with pytest.raises(nn.ConfigurationError, match="activation"):
        nn.GRUCell(4, 3, activation=activation)


@pytest.mark.parametrize("ring", [{"r_min": 0.9, "r_max": 0.5}, {"r_max": 1.5}, {"r_min": -0.1}, {"max_phase": 0.0}])
def test_impossible_rings(ring):
    with pytest.raises(nn.ConfigurationError, match="ring"):
        nn.LRUCell(4, 3, **ring)


def test_initial_values_of_the_wrong_shape():
    with pytest.raises(nn.ConfigurationError, match="w_init"):
        nn.GRUCell(4, 3, w_init=np.ones((4, 3)))
    with pytest.raises(nn.ConfigurationError, match="b_init"):
        nn.GRUCell(4, 3, b_init=lambda shape: jnp.ones(2))
    with pytest.raises(nn.ConfigurationError, match="state_init"):
        nn.GRUCell(4, 3, state_init=np.ones(5)).init_state(2)


def test_each_error_has_its_own_code():
    errors = [nn.ConfigurationError, nn.InputShapeError, nn.InputTypeError, nn.MissingStateError]
    assert len({error.code for error in errors}) == len(errors)
    assert all(error.code.startswith("BT3") for error in errors)
