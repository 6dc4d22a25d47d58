"""What all recurrent cells share: states, and gates that see input and state."""

from collections.abc import Callable
from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace_nn._init import ORTHOGONAL, ZEROS, Initializer, Size, activation_function
from braintrace_nn._linear import Linear
from braintrace_nn._stateful import StatefulLayer


def concat(x: jax.Array, h: jax.Array) -> jax.Array:
    """[x, h]: concatenation on the last axis."""
    return jnp.concatenate([x, h], axis=-1)


class RecurrentCell(StatefulLayer, brainstate.nn.RNNCell):
    """Base class of the rate cells: one hidden state ``h`` unless ``state_names`` says otherwise.

    A subclass with several dense layers on [x, h] names them in ``gate_names``; they can then share one matrix.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jax.nn import sigmoid
    >>> class Latch(RecurrentCell):
    ...     gate_names = ("keep", "write")
    ...
    ...     def __init__(self, in_size, out_size, fused=False):
    ...         super().__init__(in_size, out_size, state_init=0.0)
    ...         self.make_gates(ORTHOGONAL, ZEROS, fused)
    ...
    ...     def update(self, x):
    ...         x, h = self.read(x)
    ...         keep, write = self.gates_of(x, h)
    ...         self.h.value = sigmoid(keep) * h + write
    ...         return self.h.value
    >>> cell = Latch(4, 3, fused=True)
    >>> cell.init_state()
    >>> cell(jnp.ones(4)).shape, cell.gates.weight.value["weight"].shape
    ((3,), (7, 6))
    """

    state_names: ClassVar[tuple[str, ...]] = ("h",)
    gate_names: ClassVar[tuple[str, ...]] = ()
    h: brainstate.HiddenState
    fused: bool = False

    def gate(self, w_init: Initializer, b_init: Initializer | None) -> Linear:
        """A dense layer from [x, h] to the state."""
        lead, num_in, num_out = self.in_size[:-1], self.in_size[-1], self.state_size[-1]
        return Linear((*lead, num_in + num_out), self.state_size, w_init=w_init, b_init=b_init)

    def make_gates(self, w_init: Initializer, b_init: Initializer | None, fused: bool = False) -> None:
        """The layers of ``gate_names``, or one of all their columns, ``gates``, drawn gate by gate."""
        layers = {name: self.gate(w_init, b_init) for name in self.gate_names}
        self.fused = fused and len(layers) > 1
        if not self.fused:
            for name, layer in layers.items():
                setattr(self, name, layer)
            return
        joined = join_gates([layer.weight.value for layer in layers.values()])
        units = (*self.state_size[:-1], len(layers) * self.state_size[-1])
        in_size = next(iter(layers.values())).in_size
        self.gates = Linear(in_size, units, joined["weight"], joined.get("bias"))

    def gates_of(self, x: jax.Array, h: jax.Array) -> list[jax.Array]:
        """What the gates make of [x, h], in the order of ``gate_names``."""
        xh = concat(x, h)
        if self.fused:
            return jnp.split(self.gates(xh), len(self.gate_names), axis=-1)
        return [getattr(self, name)(xh) for name in self.gate_names]


def join_gates(gates: list[dict[str, Any]]) -> dict[str, Any]:
    """Parameters of one dense layer that holds the columns of several."""
    return {key: jnp.concatenate([gate[key] for gate in gates], axis=-1) for key in gates[0]}


def split_gates(joined: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The layers that `join_gates` joined."""
    columns = {key: np.split(np.asarray(value), count, axis=-1) for key, value in joined.items()}
    return [{key: parts[i] for key, parts in columns.items()} for i in range(count)]


class GatedCell(RecurrentCell):
    r"""Base class of the gated cells with a nonlinear candidate.

    Parameters
    ----------
    in_size, out_size : int or tuple of int
        Numbers of input features I and units O.
    w_init, b_init : callable, array or number
        Initial weights, shape (I + O, O) for a gate, and biases, shape (O,). The weights are drawn as the cell says by
        default, the biases zero; ``b_init=None`` leaves them out.
    state_init : callable, array or number
        Initial value of the hidden states. Zero by default.
    activation : str or callable
        :math:`\phi`, "tanh" by default.
    name : str, optional
    fused : bool
        Keep the gates on [x, h] in one matrix, parameter ``gates.weight``, in the order in which the cell lists them:
        the same numbers by one operation. `load_parameters` translates between the two forms. A single gate stays as
        it is. Whether that is faster depends on cell, size and device: ``benchmarks/README.md`` has numbers; by default
        every gate has a matrix of its own.
    """

    default_weight: ClassVar[Initializer] = ORTHOGONAL

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer | None = None,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        activation: str | Callable = "tanh",
        name: str | None = None,
        *,
        fused: bool = False,
    ):
        super().__init__(in_size, out_size, state_init=state_init, name=name)
        self.activation = activation_function(activation)
        weight: Initializer = type(self).default_weight if w_init is None else w_init
        self.make_gates(weight, b_init, fused)
        self.make_others(weight, b_init)

    def make_others(self, w_init: Initializer, b_init: Initializer | None) -> None:
        """Parameters beside the gates on [x, h]."""
