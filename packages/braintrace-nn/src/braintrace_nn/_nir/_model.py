"""Graphs of the neuromorphic intermediate representation as models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import brainstate
import numpy as np
import saiunit as u

from braintrace_nn._connections import OneToOne
from braintrace_nn._conv import Conv1d, Conv2d
from braintrace_nn._errors import ConfigurationError
from braintrace_nn._linear import Linear
from braintrace_nn._spiking import Delay
from braintrace_nn._surrogate import triangular_spike

from ._neurons import IF, LI, LIF, CubaLI, CubaLIF, Population
from ._order import Edge, schedule
from ._shapes import Flattened, Pooled

INPUT, OUTPUT = "Input", "Output"


class NIRModel(brainstate.nn.Module):
    """Modules joined by a graph; inputs of a node that has several are summed.

    Parameters
    ----------
    parts : dict of str to module
        Nodes by name: those of this package that NIR knows, and `NIRModel` for a part of its own.
    edges : sequence of pairs of str
    source, target : str
        Names of the input and the output of the graph, which have no module.
    shapes : pair of tuples of int
        Shape of input and output of one sample.
    metadata : dict, optional
        Kept for the export: by node name, and under "" that of the graph.

    Raises
    ------
    ConfigurationError
        If a loop of the graph holds no neurons.

    Notes
    -----
    Loops are opened behind the population that is farthest from the input: what it sends back is its output of the step
    before.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp, saiunit as u
    >>> nodes = {"w": Linear(3, 2), "lif": LIF(2), "rec": Linear(2, 2)}
    >>> edges = [("in", "w"), ("w", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "out")]
    >>> model = NIRModel(nodes, edges, "in", "out", ((3,), (2,)))
    >>> model = brainstate.nn.init_all_states(model, batch_size=4)
    >>> with brainstate.environ.context(dt=1.0 * u.ms):
    ...     model(jnp.ones((4, 3))).shape
    (4, 2)
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        edges: Sequence[Edge],
        source: str,
        target: str,
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        metadata: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.parts, self.edges = dict(parts), tuple((str(a), str(b)) for a, b in edges)
        self.source, self.target = source, target
        self.in_size, self.out_size = shapes
        self.metadata = dict(metadata or {})
        names = [source, *self.parts, target]
        strangers = [end for edge in self.edges for end in edge if end not in names]
        if strangers:
            raise ConfigurationError("An edge ends at no node.", found=", ".join(strangers))
        remembering = [name for name, node in self.parts.items() if isinstance(node, Population)]
        order, self._delayed = schedule(names, self.edges, source, remembering)
        self._order = tuple(name for name in order if name != source)

    def update(self, x: Any) -> Any:
        """Advance by one step; `x` has the shape of the input, or (B, *that)."""
        past = {a: self.parts[a].last_output() for a, _ in self._delayed}
        outputs = {self.source: x}
        for name in self._order:
            incoming = [past[a] if (a, b) in self._delayed else outputs[a] for a, b in self.edges if b == name]
            if not incoming:
                raise ConfigurationError("A node has no input.", found=repr(name), fix="connect it, or take it out")
            total = sum(incoming[1:], incoming[0])
            outputs[name] = total if name == self.target else self.parts[name](total)
        return outputs[self.target]


def from_nir(graph: Any, spk_fun: Callable = triangular_spike) -> NIRModel:
    """A model from a NIR graph, ready to be learnt.

    Parameters
    ----------
    graph : nir.NIRGraph
        With one input and one output, of nodes ``Affine``, ``Linear``, ``Scale``, ``Conv1d``, ``Conv2d``,
        ``AvgPool2d``, ``SumPool2d``, ``Flatten``, ``Delay``, ``IF``, ``LI``, ``LIF``, ``CubaLI``, ``CubaLIF`` and
        graphs of those, with or without recurrence. Delays are whole time steps, the nearest.
    spk_fun : callable
        Step function with a surrogate gradient of all spiking neurons.

    Returns
    -------
    NIRModel
        Weights are parameters in the precision of the environment; the constants of the neurons keep theirs. Times are
        in seconds, as NIR has them.

    Raises
    ------
    ConfigurationError
        If the graph holds a node without a counterpart, which is named.

    References
    ----------
    J. E. Pedersen et al., Neuromorphic intermediate representation: a unified instruction set for interoperable
    brain-inspired computing, Nature Communications 15, 2024, arXiv:2311.14641.
    """
    ends = {kind: [name for name, node in graph.nodes.items() if _kind(node) == kind] for kind in (INPUT, OUTPUT)}
    for kind, names in ends.items():
        if len(names) != 1:
            raise ConfigurationError(
                f"The graph has {len(names)} nodes of kind {kind}.", found=", ".join(names), expected="exactly one"
            )
    (source,), (target,) = ends[INPUT], ends[OUTPUT]
    nodes = {name: _module(name, node, spk_fun) for name, node in graph.nodes.items() if name not in (source, target)}
    metadata = {name: node.metadata for name, node in graph.nodes.items() if node.metadata}
    if graph.metadata:
        metadata[""] = graph.metadata
    shapes = _shape(graph.nodes[source].input_type["input"]), _shape(graph.nodes[target].output_type["output"])
    return NIRModel(nodes, graph.edges, source, target, shapes, metadata)


def _kind(node: Any) -> str:
    return type(node).__name__


def _shape(shape: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in shape)


def _module(name: str, node: Any, spk_fun: Callable) -> Any:
    if _kind(node) not in _MODULES:
        raise ConfigurationError(
            f"The node {name!r} has no counterpart.",
            found=f"nir.{_kind(node)}",
            expected=", ".join(sorted(_MODULES)),
            fix="take it out of the graph, or express it by these",
        )
    return _MODULES[_kind(node)](node, spk_fun)


def _dense(node: Any, spk_fun: Callable) -> Any:
    weight, bias = np.asarray(node.weight), getattr(node, "bias", None)
    if weight.ndim != 2:
        raise ConfigurationError("A dense node is no matrix.", found=f"weight of shape {weight.shape}")
    return Linear(weight.shape[1], weight.shape[0], weight.T, None if bias is None else np.asarray(bias))


def _convolution(node: Any, spk_fun: Callable) -> Any:
    weight = np.asarray(node.weight)
    if node.input_shape is None:
        raise ConfigurationError("A convolution does not know the shape of its input.", fix="set its input_shape")
    spatial = tuple(np.atleast_1d(node.input_shape).tolist())
    pads = node.padding
    return (Conv1d if weight.ndim == 3 else Conv2d)(
        (weight.shape[1] * int(node.groups), *spatial),
        weight.shape[0],
        weight.shape[2:],
        stride=tuple(np.atleast_1d(node.stride).tolist()),
        padding=pads.upper() if isinstance(pads, str) else tuple(np.atleast_1d(pads).tolist()),
        rhs_dilation=tuple(np.atleast_1d(node.dilation).tolist()),
        groups=int(node.groups),
        w_init=np.moveaxis(weight, (1, 0), (-2, -1)),
        b_init=np.asarray(node.bias),
        channel_first=True,
    )


def _flatten(node: Any, spk_fun: Callable) -> Any:
    return Flattened(_shape(node.input_type["input"]), int(node.start_dim), int(node.end_dim))


def _pool(node: Any, spk_fun: Callable) -> Any:
    return Pooled(node.kernel_size, node.stride, node.padding, mean=_kind(node) == "AvgPool2d")


def _scale(node: Any, spk_fun: Callable) -> Any:
    scale = np.asarray(node.scale)
    return OneToOne(scale.shape, scale)


def _delay(node: Any, spk_fun: Callable) -> Any:
    delay = np.asarray(node.delay)
    return Delay(delay.shape, u.Quantity(delay, unit=u.second))


def _population(kind: Any) -> Callable[[Any, Callable], Any]:
    def make(node: Any, spk_fun: Callable) -> Any:
        parameters = {key: np.asarray(getattr(node, key)) for key in kind.parameter_names}
        spikes = {"spk_fun": spk_fun} if "v_threshold" in parameters else {}
        return kind(np.shape(node.r), **parameters, **spikes)

    return make


_MODULES: dict[str, Callable[[Any, Callable], Any]] = {
    "Affine": _dense,
    "Linear": _dense,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "Flatten": _flatten,
    "AvgPool2d": _pool,
    "SumPool2d": _pool,
    "Scale": _scale,
    "Delay": _delay,
    "IF": _population(IF),
    "LI": _population(LI),
    "LIF": _population(LIF),
    "CubaLI": _population(CubaLI),
    "CubaLIF": _population(CubaLIF),
    "NIRGraph": from_nir,
}
