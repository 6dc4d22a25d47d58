"""The cells of `braintrace.nn` and stacks of them, each with its equations in plain JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import relu, sigmoid
from oracle_cases import STEP, H, I, O, join
from oracles import Case, View

import braintrace


class Stack(brainstate.nn.Module):
    """Cells one on another, and a readout."""

    def __init__(self, cells: dict[str, Any]):
        super().__init__()
        self._names = list(cells)
        for name, cell in cells.items():
            setattr(self, name, cell)
        self.out = braintrace.nn.Linear(H, O)

    def update(self, x: Any) -> Any:
        for name in self._names:
            x = getattr(self, name)(x)
        return self.out(x)


class Cell(NamedTuple):
    """A cell and its equations.

    Attributes
    ----------
    make : callable
        ``make(num_in) -> module``.
    states : tuple of str
    step : callable
        ``step(view, params, hidden, x, group) -> (hidden, out)``, with the names of the cell's own attributes.
    readouts : tuple of str
        Parameters that reach no state of the cell.
    """

    make: Callable[[int], Any]
    states: tuple[str, ...]
    step: Callable[..., Any]
    readouts: tuple[str, ...] = ()


def dense(o: View, p: Any, name: str, *parts: Any) -> Any:
    params = p[f"{name}.weight"]
    return o.matmul(join(*parts), params["weight"], params.get("bias"))


def vanilla(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    new = relu(dense(o, p, "W", x, o.recurrent(h["h"])))
    return {"h": new}, new


def gru(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    past, seen = o.memory(h["h"], group), o.recurrent(h["h"])
    z, r = sigmoid(dense(o, p, "Wz", x, seen)), sigmoid(dense(o, p, "Wr", x, seen))
    new = (1 - z) * past + z * jnp.tanh(dense(o, p, "Wh", x, o.crossing(r) * seen))
    return {"h": new}, new


def mgu(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    past, seen = o.memory(h["h"], group), o.recurrent(h["h"])
    f = sigmoid(dense(o, p, "Wf", x, seen))
    new = (1 - f) * past + f * jnp.tanh(dense(o, p, "Wh", x, o.crossing(f) * seen))
    return {"h": new}, new


def cfn(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    past, seen = o.memory(h["h"], group), o.recurrent(h["h"])
    f, i = sigmoid(dense(o, p, "Wf", x, seen)), sigmoid(dense(o, p, "Wi", x, seen))
    new = f * jnp.tanh(past) + i * jnp.tanh(dense(o, p, "Wh", x))
    return {"h": new}, new


def lstm(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    seen = o.recurrent(h["h"])
    i, f, u = (sigmoid(dense(o, p, f"W{k}", x, seen) + (k == "f")) for k in "ifo")
    c = f * o.memory(h["c"], group) + i * jnp.tanh(dense(o, p, "Wg", x, seen))
    return {"c": c, "h": u * jnp.tanh(c)}, u * jnp.tanh(c)


def minimal_rnn(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    past, z = o.memory(h["h"], group), dense(o, p, "phi", x)
    f = sigmoid(dense(o, p, "W_u", o.crossing(z), o.recurrent(h["h"])))
    new = f * past + (1 - f) * z
    return {"h": new}, new


def lru(o: View, p: Any, h: Any, x: Any, group: str) -> Any:
    past = o.memory(h["h_re"] + 1j * h["h_im"], group)
    eigenvalues = jnp.exp(-jnp.exp(p["nu_log"]) + 1j * jnp.exp(p["theta_log"]))
    new = eigenvalues * past + jnp.exp(p["gamma_log"]) * (dense(o, p, "B_re", x) + 1j * dense(o, p, "B_im", x))
    out = dense(o, p, "C_re", new.real) - dense(o, p, "C_im", new.imag) + p["D"] * x
    return {"h_re": new.real, "h_im": new.imag}, out


nn = braintrace.nn
CELLS = {
    "vanilla": Cell(lambda n: nn.ValinaRNNCell(n, H), ("h",), vanilla),
    "GRU": Cell(lambda n: nn.GRUCell(n, H), ("h",), gru),
    "MGU": Cell(lambda n: nn.MGUCell(n, H), ("h",), mgu),
    "CFN": Cell(lambda n: nn.CFNCell(n, H), ("h",), cfn),
    "LSTM": Cell(lambda n: nn.LSTMCell(n, H), ("c", "h"), lstm),
    "minimal": Cell(lambda n: nn.MinimalRNNCell(n, H), ("h",), minimal_rnn),
    "LRU": Cell(lambda n: nn.LRUCell(n, H + 1), ("h_re", "h_im"), lru, ("C_re.weight", "C_im.weight", "D")),
}
LAYER_NAMES = ("one", "two")


def build(*kinds: str) -> tuple[Case, Stack]:
    """A stack of cells with a readout, and the same as a case; to be called under its precision."""
    sizes = [H if k or kind == "LRU" else I for k, kind in enumerate(kinds)]
    cells = dict(zip(LAYER_NAMES, kinds, strict=False))
    model = Stack({name: CELLS[kind].make(n) for (name, kind), n in zip(cells.items(), sizes, strict=True)})
    rng = np.random.default_rng(3)
    params = {}
    for path, state in brainstate.graph.states(model, brainstate.ParamState).items():
        state.value = jax.tree.map(lambda v: jnp.asarray(0.6 * rng.normal(size=v.shape), v.dtype), state.value)
        params[".".join(path)] = state.value
    groups = {}
    for name in params:
        layer, _, own = name.partition(".")
        groups[name] = STEP if layer == "out" or own in CELLS[cells[layer]].readouts else (layer,)
    states = {
        f"{name}.{state}": H + 1 if kind == "LRU" else H for name, kind in cells.items() for state in CELLS[kind].states
    }

    def step(o: View, p: Any, h: Any, x: Any) -> Any:
        new = {}
        for name, kind in cells.items():
            own = [{k.removeprefix(f"{name}."): v for k, v in d.items() if k.startswith(f"{name}.")} for d in (p, h)]
            hidden, x = CELLS[kind].step(o, *own, x, name)
            new |= {f"{name}.{state}": value for state, value in hidden.items()}
        return new, dense(o, p, "out", x)

    return Case(" on ".join(reversed(kinds)), params, states, step, groups), model


def inputs_of(kind: str) -> int:
    """Number of input features of a stack that begins with `kind`."""
    return H if kind == "LRU" else I
