"""Parameters of a model from those that were saved, by path."""

from collections.abc import Mapping
from typing import Any

import brainstate
import jax.numpy as jnp
import saiunit as u

from ._cells import RecurrentCell
from ._cells._base import join_gates, split_gates
from ._checks import shape_text
from ._errors import ParameterMismatchError

Path = tuple[str, ...]


def load_parameters(model: Any, saved: Mapping[Any, Any]) -> None:
    """Set every parameter of a model to its saved value.

    Parameters
    ----------
    model : Module
    saved : mapping
        Values by path: a path is a tuple, as in ``model.states(brainstate.ParamState)``, or its parts joined by dots.
        Paths may end at a parameter or at an array inside it (``"rnn.Wz.weight"`` with a dict, or
        ``"rnn.Wz.weight.bias"`` with an array), and mappings may be nested; an open ``.npz`` file will do. A cell with
        fused gates takes the parameters of one with separate gates, and the other way round.

    Raises
    ------
    ParameterMismatchError
        If a parameter is missing, unexpected, or of another shape, kind of number or dimension. The model is then as it
        was.

    Notes
    -----
    Values are converted to the precision and the unit of the model. Where the numbers of axes differ, axes of length
    one do not count: older models keep the bias of a convolution that way.

    Examples
    --------
    >>> import brainstate
    >>> import braintrace_nn as nn
    >>> source, target = nn.GRUCell(4, 3), nn.GRUCell(4, 3, fused=True)
    >>> load_parameters(target, source.states(brainstate.ParamState))
    >>> bool((target.gates.weight.value["weight"][:, :3] == source.Wz.weight.value["weight"]).all())
    True
    """
    states = {_parts(path): state for path, state in model.states(brainstate.ParamState).items()}
    cells = {_parts(path): cell for path, cell in model.nodes(RecurrentCell).items() if len(cell.gate_names) > 1}
    wanted, found = (_separate(_leaves(values), cells) for values in (states, saved))
    missing = [path for path in wanted if path not in found]
    unexpected = [path for path in found if path not in wanted]
    mismatched = {
        path: reason for path in wanted if path in found and (reason := _misfit(found[path], wanted[path])) is not None
    }
    if missing or unexpected or mismatched:
        raise ParameterMismatchError(missing, unexpected, mismatched)
    values = {path: _converted(found[path], wanted[path]) for path in wanted}
    for prefix, cell in cells.items():
        if cell.fused:
            gates = [{} for _ in cell.gate_names]
            for gate, name in zip(gates, cell.gate_names, strict=True):
                start = (*prefix, name, "weight")
                gate |= {path[-1]: values[path] for path in wanted if path[:-1] == start}
            values |= {(*prefix, "gates", "weight", key): value for key, value in join_gates(gates).items()}
    for path, state in states.items():
        state.value = _rebuilt(state.value, path, values)


def _parts(path: Any) -> Path:
    return tuple(path.split(".")) if isinstance(path, str) else tuple(map(str, path))


def _leaves(tree: Any, start: Path = ()) -> dict[Path, Any]:
    """Arrays by path, through mappings and states."""
    if isinstance(tree, brainstate.State):
        tree = tree.value
    if not isinstance(tree, Mapping):
        return {start: tree if hasattr(tree, "dtype") else jnp.asarray(tree)}
    found = {}
    for key, value in tree.items():
        found |= _leaves(value, (*start, *_parts(key if isinstance(key, (str, tuple, list)) else (key,))))
    return found


def _separate(leaves: dict[Path, Any], cells: Mapping[Path, RecurrentCell]) -> dict[Path, Any]:
    """The same leaves with joined gates taken apart."""
    result = dict(leaves)
    for prefix, cell in cells.items():
        start, count = (*prefix, "gates", "weight"), len(cell.gate_names)
        joined = {path[-1]: leaf for path, leaf in leaves.items() if path[:-1] == start}
        if any(leaf.ndim == 0 or leaf.shape[-1] % count for leaf in joined.values()):
            continue
        for name, gate in zip(cell.gate_names, split_gates(joined, count), strict=True):
            result |= {(*prefix, name, "weight", key): leaf for key, leaf in gate.items()}
        for key in joined:
            del result[*start, key]
    return result


def _misfit(found: Any, wanted: Any) -> str | None:
    """Why a saved value cannot stand for a parameter, if so."""
    shapes = [tuple(value.shape) for value in (found, wanted)]
    if len(shapes[0]) != len(shapes[1]):
        shapes = [tuple(n for n in shape if n != 1) for shape in shapes]
    numbers = jnp.issubdtype(found.dtype, jnp.number)
    complex_into_real = jnp.iscomplexobj(found) and not jnp.iscomplexobj(wanted)
    if shapes[0] == shapes[1] and numbers and not complex_into_real and u.get_dim(found) == u.get_dim(wanted):
        return None
    return f"{shape_text(found)} in place of {shape_text(wanted)}"


def _converted(found: Any, wanted: Any) -> Any:
    if isinstance(wanted, u.Quantity):
        return u.Quantity(_converted(found.to_decimal(wanted.unit), wanted.mantissa), unit=wanted.unit)
    if isinstance(found, u.Quantity):
        found = found.to_decimal()
    return jnp.asarray(found, wanted.dtype).reshape(wanted.shape)


def _rebuilt(value: Any, path: Path, leaves: Mapping[Path, Any]) -> Any:
    if not isinstance(value, Mapping):
        return leaves[path]
    return {key: _rebuilt(part, (*path, *_parts((key,))), leaves) for key, part in value.items()}
