"""The same cells as brainstate modules on the marked operations and layers of `braintrace`, whichever is installed."""

import zlib
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace

from .cells import CELLS, IMAGE, LEAK, OUTPUTS, lif_step
from .regimes import Regime


class LIF(brainstate.nn.Module):
    """Leaky integrate-and-fire units of one, two or three states."""

    def __init__(self, inputs: int, units: int, num_states: int):
        super().__init__()
        self.units, self.num_states = units, num_states
        self.w = brainstate.ParamState(jnp.zeros((inputs + units, units)))

    def init_state(self, batch_size: int, **_: Any) -> None:
        """Zero states of shape (B, H)."""
        for name in self.names:
            setattr(self, name, brainstate.HiddenState(jnp.zeros((batch_size, self.units))))

    @property
    def names(self) -> tuple[str, ...]:
        """The states, in the order of `lif_step`."""
        return ("a", "i", "v")[3 - self.num_states :]

    def update(self, x: jax.Array) -> jax.Array:
        """One step; the spikes of shape (B, H)."""
        old = tuple(getattr(self, name).value for name in self.names)
        new = lif_step(self.num_states, lambda xs: braintrace.matmul(xs, self.w.value), old, x)
        for name, value in zip(self.names, new, strict=True):
            getattr(self, name).value = value
        return CELLS[f"lif{self.num_states}"].output(new)


class LeakyConvolution(brainstate.nn.Module):
    """A convolution into leaky units, averaged over the image."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.conv = braintrace.nn.Conv2d((*IMAGE, inputs), channels, 3, padding="SAME", b_init=None)
        self.channels = channels

    def init_state(self, batch_size: int, **_: Any) -> None:
        """Zero state of shape (B, 16, 16, C)."""
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, *IMAGE, self.channels)))

    def update(self, x: jax.Array) -> jax.Array:
        """One step; channel means of shape (B, C)."""
        h: Any = LEAK * self.h.value + jnp.tanh(self.conv(x))
        self.h.value = h
        return CELLS["conv"].output((h,))


class Network(brainstate.nn.Module):
    """A recurrent layer and a dense readout."""

    def __init__(self, regime: Regime):
        super().__init__()
        makers = {
            "rnn": braintrace.nn.ValinaRNNCell,
            "gru": braintrace.nn.GRUCell,
            "lstm": braintrace.nn.LSTMCell,
            "gru-wr": braintrace.nn.GRUCell,
            "gru fused": lambda *sizes: braintrace.nn.GRUCell(*sizes, fused=True),
            "lstm fused": lambda *sizes: braintrace.nn.LSTMCell(*sizes, fused=True),
            "conv": LeakyConvolution,
        }
        if regime.cell in makers:
            self.rnn = makers[regime.cell](regime.I, regime.H)
        else:
            self.rnn = LIF(regime.I, regime.H, CELLS[regime.cell].num_states)
        self.out = braintrace.nn.Linear(regime.H, OUTPUTS)

    def update(self, x: jax.Array) -> jax.Array:
        """One step; outputs of shape (B, 10)."""
        return self.out(self.rnn(x))


def network(regime: Regime) -> Network:
    """A network whose parameters depend on their path only, the same in every process."""
    model = Network(regime)
    for path, state in _states(model, brainstate.ParamState).items():
        rng = np.random.default_rng(zlib.crc32(".".join(map(str, path)).encode()))
        state.value = jax.tree.map(lambda leaf, rng=rng: jnp.asarray(_initial(leaf.shape, rng)), state.value)
    if regime.cell == "gru-wr":
        gate: Any = model.rnn
        gate.Wr.weight = Fixed(gate.Wr.weight.value)
    return model


class Fixed(brainstate.LongTermState):
    """A weight that is not trained."""


def _initial(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if len(shape) < 2:
        return np.zeros(shape, np.float32)
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)


def parameters(model: Network, kind: type[brainstate.State] = brainstate.ParamState) -> dict[tuple[str, ...], Any]:
    """Values by path, of the trained parameters or of the `Fixed` ones."""
    return {path: state.value for path, state in _states(model, kind).items()}


def _states(model: Network, kind: type[brainstate.State]) -> dict[tuple[str, ...], brainstate.State]:
    states: Any = brainstate.graph.states(model, kind)
    return dict(states)


def input_shape(regime: Regime) -> tuple[int, ...]:
    """Shape of one step's input."""
    return (regime.B, *IMAGE, regime.I) if regime.cell == "conv" else (regime.B, regime.I)


def abstract_data(regime: Regime) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes of inputs (T, B, ...) and targets (T, B, 10)."""
    inputs, targets = (regime.T, *input_shape(regime)), (regime.T, regime.B, OUTPUTS)
    return jax.ShapeDtypeStruct(inputs, jnp.float32), jax.ShapeDtypeStruct(targets, jnp.float32)


def data(regime: Regime) -> tuple[jax.Array, jax.Array]:
    """Random inputs and targets."""
    rng = np.random.default_rng(0)
    inputs, targets = (jnp.asarray(rng.standard_normal(s.shape, np.float32)) for s in abstract_data(regime))
    return inputs, targets
