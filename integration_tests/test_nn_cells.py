"""Certificates of all cells and layers, held to backpropagation through time both ways."""

from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u
from online import assert_close, dotted, precision
from oracles import relative_error

import braintrace
import braintrace_nn as nn
from braintrace_primitives import SparsityPattern

T, B, I, H = 4, 2, 2, 3
MIXING, CROSSING = "recurrent mixing", "through another op"


class Leaky(brainstate.nn.Module):
    """A layer with a memory behind it that leaks and never mixes positions."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def init_state(self, batch_size=None):
        out = jax.eval_shape(self.layer, example(self.layer)[0])
        self.v = brainstate.HiddenState(jnp.zeros(out.shape))

    def update(self, x):
        self.v.value = 0.8 * self.v.value + jnp.tanh(self.layer(x))
        return self.v.value


class Delayed(brainstate.nn.Module):
    """Spiking units behind a delay line."""

    def __init__(self, delay):
        super().__init__()
        self.cell = nn.LIFCell(I, H, recurrent=False, spk_fun=nn.arctan_spike)
        self.line, self.in_size = nn.Delay(H, delay), self.cell.in_size

    def update(self, x):
        return self.line(self.cell(x))


class Model(NamedTuple):
    make: Any
    omissions: dict[str, set[str]]


def cell(kind, *recurrent, **omissions):
    """A cell whose weights `recurrent` omit recurrent mixing; the others omit what is said."""
    return Model(lambda: kind(I, H), {name: {MIXING} for name in recurrent} | omissions)


def spiking(kind, **options):
    """A spiking layer without recurrence, which is exact."""
    return Model(lambda: kind(I, H, recurrent=False, spk_fun=nn.arctan_spike, **options), {})


def leaky(make):
    return Model(lambda: Leaky(make()), {})


SPARSE = SparsityPattern([0, 0, 1], [0, 2, 1], (I, H))
CELLS = {
    "vanilla": cell(nn.ValinaRNNCell, "W"),
    "GRU": cell(nn.GRUCell, "Wz", "Wh", Wr={CROSSING}),
    "MGU": cell(nn.MGUCell, "Wh", Wf={MIXING, CROSSING}),
    "CFN": cell(nn.CFNCell, "Wf", "Wi", "Wh"),
    "LSTM": cell(nn.LSTMCell, "Wi", "Wg", "Wf", "Wo"),
    "URLSTM": cell(nn.URLSTMCell, "Wu", "Wf", "Wr", "Wo", "bias"),
    "GRU, fused": Model(lambda: nn.GRUCell(I, H, fused=True), {"gates": {MIXING, CROSSING}, "Wh": {MIXING}}),
    "LSTM, fused": Model(lambda: nn.LSTMCell(I, H, fused=True), {"gates": {MIXING}}),
    "URLSTM, fused": Model(lambda: nn.URLSTMCell(I, H, fused=True), {"gates": {MIXING}, "bias": {MIXING}}),
    "CFN, fused": Model(lambda: nn.CFNCell(I, H, fused=True), {"gates": {MIXING}, "Wh": {MIXING}}),
    "MiniLSTM, fused": Model(lambda: nn.MiniLSTM(I, H, fused=True), {"gates": {MIXING}, "W_x": {MIXING}}),
    "minimal": cell(nn.MinimalRNNCell, "W_u", phi={MIXING, CROSSING}),
    "MiniGRU": cell(nn.MiniGRU, "W_x", "W_z"),
    "MiniLSTM": cell(nn.MiniLSTM, "W_x", "W_f", "W_i"),
    "LRU": cell(nn.LRUCell),
    "LeakyRateReadout": cell(nn.LeakyRateReadout),
    "LeakySpikeReadout": cell(nn.LeakySpikeReadout),
    "LIF": cell(nn.LIFCell, "W"),
    "LIF, no recurrence": spiking(nn.LIFCell),
    "LIF, alpha synapse": spiking(nn.LIFCell, synapse=nn.Alpha(2.0 * u.ms), spk_reset="hard"),
    "LIF, dual synapse": spiking(nn.LIFCell, synapse=nn.DualExpon()),
    "ALIF": cell(nn.ALIFCell, "W"),
    "ALIF, no recurrence": spiking(nn.ALIFCell),
    "GIF": cell(nn.GIFCell, "W"),
    "GIF, no recurrence": spiking(nn.GIFCell),
    "LIF, refractory": spiking(nn.LIFCell, tau_ref=2.0 * u.ms),
    "LIF, delayed": cell(lambda *sizes: nn.LIFCell(*sizes, delay=3.0 * u.ms, tau_ref=1.0 * u.ms), "W"),
    "Delay": Model(lambda: Delayed(2.0 * u.ms), {}),
    "COBA": Model(lambda: nn.COBACell(I, 2, 1, V_init=-52.0), {"W_E": {MIXING}, "W_I": {MIXING}}),
    "dual synapse": Model(lambda: nn.Synapse(I, H, nn.DualExpon()), {}),
    "alpha synapse": Model(lambda: nn.Synapse(I, H, nn.Alpha()), {}),
    "ShortTermPlasticity": Model(lambda: nn.ShortTermPlasticity(I), {}),
}
LAYERS = {
    "Linear": leaky(lambda: nn.Linear(I, H, w_mask=jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))),
    "SignedWLinear": leaky(lambda: nn.SignedWLinear(I, H, w_sign=jnp.array([[1.0], [-1.0]]))),
    "ScaledWSLinear": leaky(lambda: nn.ScaledWSLinear(3, H)),
    "SparseLinear": leaky(lambda: nn.SparseLinear(SPARSE, b_init=0.1)),
    "GroupedLinear": leaky(lambda: nn.GroupedLinear(2, I, H)),
    "LoRA": leaky(lambda: nn.LoRA(I, 1, H)),
    "Embedding": leaky(lambda: nn.Embedding(4, H)),
    "AllToAll": leaky(lambda: nn.AllToAll(I, I, b_init=0.1, include_self=False)),
    "OneToOne": leaky(lambda: nn.OneToOne(I, b_init=0.1)),
    "Conv1d": leaky(lambda: nn.Conv1d((4, I), H, 2, b_init=0.1)),
    "Conv2d": leaky(lambda: nn.Conv2d((3, 2, I), H, 2, b_init=0.1)),
    "Conv3d": leaky(lambda: nn.Conv3d((2, 2, 2, I), H, 2, padding="VALID", b_init=0.1)),
    "Conv1d, masked": leaky(lambda: nn.Conv1d((4, I), H, 2, b_init=0.1, w_mask=np.eye(I, H)[None].repeat(2, 0))),
    "ScaledWSConv1d": leaky(lambda: nn.ScaledWSConv1d((4, I), H, 2, b_init=0.1)),
    "ScaledWSConv2d": leaky(lambda: nn.ScaledWSConv2d((3, 2, I), H, 2, b_init=0.1)),
    "ScaledWSConv3d": leaky(lambda: nn.ScaledWSConv3d((2, 2, 2, I), H, 2, padding="VALID", b_init=0.1)),
}
MODELS = CELLS | LAYERS


def example(layer):
    """A sequence of inputs of a layer: indices for a table, else numbers."""
    rng = np.random.default_rng(2)
    if isinstance(layer, nn.Embedding):
        return jnp.asarray(rng.integers(0, 4, (T, B)))
    return jnp.asarray(rng.normal(size=(T, B, *layer.in_size)))


UNLEARNT = {"Sequential", "NIRModel", "LI", "LIF", "IF", "CubaLI", "CubaLIF"}  # no weights of their own


def test_no_cell_or_layer_is_missing():
    """The tests below run over `MODELS`: a public layer with weights that is not there is tested by none."""
    public = {
        name
        for name, kind in vars(nn).items()
        if isinstance(kind, type)
        and issubclass(kind, brainstate.nn.Module)
        and kind.__module__.startswith("braintrace_nn")
        and not any(issubclass(other, kind) for other in vars(nn).values() if isinstance(other, type) and other != kind)
    }
    with precision("float64"):
        modules = [module for model in MODELS.values() for module in model.make().nodes().values()]
    assert {kind.__name__ for kind in map(type, modules)} >= public - UNLEARNT - {"VanillaRNNCell"}


def gradients(name, algorithm, source=None, **options):
    """A learner and its gradient of a quadratic loss over the sequence; parameters are random, or those of `source`."""
    model = MODELS[name].make()
    rng = np.random.default_rng(3)
    for state in model.states(brainstate.ParamState).values():
        state.value = jax.tree.map(lambda v: jnp.asarray(0.8 * rng.normal(size=v.shape)), state.value)
    if source is not None:
        nn.load_parameters(model, source.param_states)
    xs = example(getattr(model, "layer", model))
    learner = braintrace.compile(model, algorithm, xs[0], batch_size=B, **options)
    grads = learner.etrace_grad(xs, step_fn=lambda x: ((learner(x) - 0.7) ** 2).mean())
    return learner, {dotted(path): value for path, value in grads.items()}


@pytest.fixture(autouse=True)
def doubles():
    with precision("float64"), brainstate.environ.context(dt=1.0 * u.ms):
        yield


@pytest.mark.parametrize("name", MODELS)
def test_certificate_tells_what_bptt_adds(name):
    learner, strict = gradients(name, "d_rtrl")
    found = {
        dotted(c.operation.weight_path).partition(".")[0]: {o.value for o in c.omissions}
        for c in learner.graph.certificates()
        if c.omissions
    }
    assert found == MODELS[name].omissions
    full = gradients(name, "bptt")[1]
    if found:
        assert max(relative_error(strict[k], full[k]) for k in full) > 0.01
    else:
        assert_close(strict, full)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_fused_gates_learn_as_separate_ones(name):
    fused, joined = gradients(f"{name}, fused", "d_rtrl")
    _, separate = gradients(name, "d_rtrl", fused)
    assert len(fused.graph.hidden_param_op_relations) == (2 if name == "GRU" else 1)
    model = MODELS[name].make()
    gates = [separate.pop(f"{gate}.weight") for gate in model.gate_names]
    expected = separate | {"gates.weight": jax.tree.map(lambda *leaves: jnp.concatenate(leaves, -1), *gates)}
    assert_close(joined, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_window_over_the_sequence_is_bptt(name):
    found = gradients(name, "d_rtrl", vjp_method="multi-step", window=T)[1]
    assert_close(found, gradients(name, "bptt")[1])
