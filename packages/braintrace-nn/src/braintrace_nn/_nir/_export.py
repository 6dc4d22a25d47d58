"""Models as graphs of the neuromorphic intermediate representation."""

from typing import Any

import brainstate
import numpy as np

from braintrace_nn._connections import OneToOne
from braintrace_nn._conv import Conv1d, Conv2d, ConvNd, ScaledWSConvNd
from braintrace_nn._errors import ConfigurationError
from braintrace_nn._linear import Linear
from braintrace_nn._readout import LeakyRateReadout
from braintrace_nn._spiking import Delay, Delta, Expon, LIFCell

from ._model import NIRModel
from ._neurons import IF, LI, LIF, CubaLI, CubaLIF, Population, seconds
from ._shapes import Flattened, Pooled


def to_nir(model: Any) -> Any:
    """A NIR graph that computes what the model computes.

    Parameters
    ----------
    model : Module
        A `NIRModel`, a layer, or a `Sequential` of layers: `Linear`, `OneToOne` without bias, `Conv1d`, `Conv2d`,
        `Delay`, `IF`, `LI`, `LIF`, `CubaLI`, `CubaLIF`, `LeakyRateReadout`, and `LIFCell` with the hard reset and an
        exponential synapse or none, no refractory period and no delay. Those two read their time constants against
        the ``dt`` of the environment, which must be set and have a unit.

    Returns
    -------
    nir.NIRGraph
        Weights are NumPy arrays, times are in seconds.

    Raises
    ------
    ConfigurationError
        If a layer has no counterpart in NIR, which is named; or if the package nir is not installed.
    """
    try:
        import nir
    except ImportError as error:
        raise ConfigurationError(
            "Export needs the package nir.", where="to_nir", fix='pip install "braintrace-nn[nir]"'
        ) from error

    if isinstance(model, NIRModel):
        return _graph(nir, model)
    layers = model.layers if isinstance(model, brainstate.nn.Sequential) else (model,)
    nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(layers[0].in_size)})}
    edges = []
    last = "input"
    for index, layer in enumerate(layers):
        parts, loops = _parts(nir, f"{index}", layer)
        for name in parts:
            if name not in {a for a, _ in loops}:
                edges.append((last, name))
                last = name
        nodes |= parts
        edges += [edge for pair in loops for edge in ((pair[1], pair[0]), pair)]
    nodes["output"] = nir.Output({"output": np.array(layers[-1].out_size)})
    return nir.NIRGraph(nodes, [*edges, (last, "output")])


def _graph(nir: Any, model: NIRModel) -> Any:
    nodes = {name: _node(nir, name, node) for name, node in model.parts.items()}
    nodes[model.source] = nir.Input(np.array(model.in_size))
    nodes[model.target] = nir.Output(np.array(model.out_size))
    for name, metadata in model.metadata.items():
        if name:
            nodes[name].metadata = metadata
    return nir.NIRGraph(nodes, list(model.edges), metadata=model.metadata.get("", {}))


def _parts(nir: Any, name: str, layer: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes of a layer in a row, and pairs (weight, population) of those that feed it back to itself."""
    if isinstance(layer, LeakyRateReadout):
        weight = {f"{name}_weight": nir.Linear(np.asarray(layer.W.value).T)}
        return weight | {f"{name}_leak": _node(nir, name, _readout_population(layer))}, []
    if type(layer) is not LIFCell:
        return {name: _node(nir, name, layer)}, []
    population = _spiking_population(name, layer)
    num_in = layer.in_size[-1]
    params = layer.W.weight.value
    weight = np.asarray(params["weight"]).T
    bias = params.get("bias")
    first = nir.Linear(weight[:, :num_in]) if bias is None else nir.Affine(weight[:, :num_in], np.asarray(bias))
    nodes = {f"{name}_weight": first, f"{name}_lif": _node(nir, name, population)}
    if not layer.recurrent:
        return nodes, []
    nodes[f"{name}_recurrent"] = nir.Linear(weight[:, num_in:])
    return nodes, [(f"{name}_recurrent", f"{name}_lif")]


def _gain(tau: Any) -> Any:
    """1 / (1 - exp(-dt/tau)): what makes up for NIR's normalised input."""
    dt = brainstate.environ.get("dt", None)
    if not (hasattr(dt, "unit") and hasattr(tau, "unit")):
        raise ConfigurationError(
            "NIR counts time in seconds.",
            found=f"dt={dt}, tau={tau}",
            expected="both with a unit of time",
        )
    return 1 / -np.expm1(-np.asarray(seconds(dt) / seconds(tau), "float64"))


def _readout_population(layer: LeakyRateReadout) -> LI:
    return LI(layer.out_size, tau=layer.tau, r=_gain(layer.tau))


def _spiking_population(name: str, cell: LIFCell) -> Population:
    plain = cell.tau_ref is None and cell.line is None and cell.spk_reset == "hard"
    if not (plain and isinstance(cell.synapse, (Expon, Delta))):
        raise ConfigurationError(
            f"The layer {name!r} has no counterpart in NIR.",
            found=f"LIFCell with {type(cell.synapse).__name__} synapses, the {cell.spk_reset} reset, "
            f"tau_ref={cell.tau_ref}, {'a' if cell.line else 'no'} delay",
            expected="exponential synapses or none, the hard reset, no refractory period and no delay",
        )
    constants: dict[str, Any] = {"r": _gain(cell.tau), "v_threshold": cell.V_th}
    if isinstance(cell.synapse, Delta):
        return LIF(cell.out_size, tau=cell.tau, **constants)
    tau = cell.synapse.tau
    return CubaLIF(cell.out_size, tau_syn=tau, tau_mem=cell.tau, w_in=_gain(tau), **constants)


def _node(nir: Any, name: str, layer: Any) -> Any:
    if isinstance(layer, NIRModel):
        return _graph(nir, layer)
    if type(layer) in (IF, LI, LIF, CubaLI, CubaLIF):
        values = {key: getattr(layer, key) for key in layer.parameter_names}
        return getattr(nir, type(layer).__name__)(**values)
    if type(layer) is Flattened:
        return nir.Flatten({"input": np.array(layer.in_size)}, layer.start_dim, layer.end_dim)
    if type(layer) is Pooled:
        kind = nir.AvgPool2d if layer.mean else nir.SumPool2d
        return kind(layer.kernel_size, layer.stride, layer.padding)
    if type(layer) is OneToOne and "bias" not in layer.weight.value:
        return nir.Scale(np.asarray(layer.weight.value["weight"]))
    if type(layer) is Delay:
        return nir.Delay(np.broadcast_to(np.asarray(seconds(layer.delay)), layer.out_size))
    if type(layer) is Linear and len(layer.in_size) == 1:
        params = layer.weight.value
        weight = np.asarray(params["weight"] if layer.w_mask is None else params["weight"] * layer.w_mask).T
        return nir.Affine(weight, np.asarray(params["bias"])) if "bias" in params else nir.Linear(weight)
    if isinstance(layer, (Conv1d, Conv2d)) and not isinstance(layer, ScaledWSConvNd) and layer.channel_first:
        return _convolution(nir, layer)
    raise ConfigurationError(
        f"The layer {name!r} has no counterpart in NIR.",
        found=type(layer).__name__,
        expected="Linear, OneToOne without bias, Conv1d or Conv2d with channel_first, Delay, IF, LI, LIF, CubaLI, "
        "CubaLIF, LIFCell or LeakyRateReadout",
    )


def _convolution(nir: Any, layer: ConvNd) -> Any:
    params = layer.weight.value
    kernel = np.asarray(params["weight"] if layer.w_mask is None else params["weight"] * layer.w_mask)
    bias = np.zeros(layer.out_channels, kernel.dtype) if "bias" not in params else np.asarray(params["bias"])
    padding = layer.padding.lower() if isinstance(layer.padding, str) else layer.padding
    single = layer.num_spatial_dims == 1
    settings = [
        layer.in_size[1:],
        np.moveaxis(kernel, (-1, -2), (0, 1)),
        layer.stride,
        padding if isinstance(padding, str) else tuple(np.broadcast_to(padding, layer.num_spatial_dims).tolist()),
        layer.rhs_dilation,
    ]
    if single:
        settings = [value[0] if isinstance(value, tuple) else value for value in settings]
    kind = nir.Conv1d if single else nir.Conv2d
    return kind(*settings, layer.groups, bias)
