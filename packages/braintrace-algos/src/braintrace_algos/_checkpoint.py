"""Checkpoints: all that a run needs to go on.

A checkpoint is a list of plain arrays and a manifest in JSON that names each array by the path of its state, with
shape, dtype and unit. It is read without pickle, and always against the learner that is to go on from it.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from ._checks import check_choice
from ._errors import CheckpointError, LearnerTypeError
from ._storage import NumpyArchive, OrbaxFolder
from ._train import Training
from ._version import __version__
from .carries import Carry

FORMAT = 1
_STORAGE = {"npz": NumpyArchive, "orbax": OrbaxFolder}


class Entry(NamedTuple):
    """How a checkpoint describes one array."""

    shape: tuple[int, ...]
    dtype: str
    unit: str | None

    def __str__(self) -> str:
        unit = "" if self.unit is None else f" {self.unit}"
        return f"{self.dtype}[{','.join(map(str, self.shape))}]{unit}"


class Checkpoints(Training):
    """The methods of a learner that save it and bring it back."""

    model: brainstate.nn.Module
    states: Callable[..., Any]
    _initial: list[tuple[brainstate.State, Any]]
    _make_carry: Callable[[], Carry]

    def save(self, path: str | os.PathLike[str], storage: str = "npz") -> None:
        """Write all that a later run needs to go on as if it had never stopped.

        Parameters, hidden and other states, traces, the optimiser's state, the step counter and random keys (those of
        the model, and the global one of brainstate) go into one file. The file appears as a whole or not at all, so
        that a run killed at any moment leaves the previous checkpoint.

        Parameters
        ----------
        path : path
            File to write; folders above it are made. An existing file is replaced.
        storage : {"npz", "orbax"}
            "orbax" (extra `checkpoint`) writes a new folder in the format of Orbax instead, for arrays that are spread
            over devices or hosts.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import brainstate, jax.numpy as jnp
        >>> from braintrace_algos import compile
        >>> from braintrace_primitives import matmul
        >>> class Leaky(brainstate.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = brainstate.ParamState(jnp.ones((2, 3)))
        ...     def init_state(self, batch_size=None):
        ...         self.h = brainstate.HiddenState(jnp.zeros(3))
        ...     def update(self, x):
        ...         self.h.value = 0.5 * self.h.value + matmul(x, self.w.value)
        ...         return self.h.value
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "run.npz"
        >>> learner = compile(Leaky(), "d_rtrl", jnp.zeros(2))
        >>> _ = learner(jnp.ones(2))
        >>> learner.save(path)
        >>> again = compile(Leaky(), "d_rtrl", jnp.zeros(2))
        >>> again.restore(path)
        >>> again.model.h.value.tolist()
        [2.0, 2.0, 2.0]
        """
        check_choice("storage", storage, tuple(_STORAGE))
        leaves = _leaves(self._saved_values(self._saved_states()))
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "algorithm": type(self).__name__,
            "carry": self._described_carry(),
            "entries": {name: entry_of(leaf, unit) for name, (leaf, unit) in leaves.items()},
        }
        _STORAGE[storage].write(Path(path), manifest, [leaf for leaf, _ in leaves.values()])

    def restore(self, path: str | os.PathLike[str], *, parameters_only: bool = False) -> None:
        """Go on from a checkpoint.

        Compile the same model with the same algorithm first, and call `init_optimizer` if the saved run was trained by
        `etrace_train`: what is read is checked against the learner, entry by entry.

        Parameters
        ----------
        path : path
            Written by `save`.
        parameters_only : bool
            Take what the saved model had learnt, its parameters and other long-term states, and nothing else: hidden
            states, traces, optimiser and random keys stay as they are. The algorithm, its options, the batch size and
            the optimiser may then be others.

        Raises
        ------
        CheckpointError
            If the file is no checkpoint, or one of another model, algorithm, optimiser or format, or of traces with
            other decays; the message names what differs. The learner is then as it was before the call.

        Examples
        --------
        What one learner has learnt, by another algorithm and for one sample::

            trained.save("run.npz")
            deployed = braintrace.compile(model, "pp_prop", x, decay_or_rank=0.9)
            deployed.restore("run.npz", parameters_only=True)
        """
        path = Path(path)
        storage = _STORAGE["orbax" if path.is_dir() else "npz"]
        manifest = storage.manifest(path)
        _require_format(path, manifest)
        found = {name: Entry(tuple(e[0]), e[1], e[2]) for name, e in manifest["entries"].items()}
        states = self._saved_states()
        learnt = {name: state for name, state in states.items() if _is_learnt(name, state)}
        own = {"algorithm": type(self).__name__, "carry": self._described_carry()}
        if parameters_only:
            others = [name for name in states if name not in learnt]
            found = {name: entry for name, entry in found.items() if _is_model_beside(name, others)}
            own["carry"] = manifest.get("carry", "")  # of whatever kind
            states, values = learnt, {name: state.value for name, state in learnt.items()}
        else:
            values = self._saved_values(states)
        targets = _leaves(values)
        expected = {name: entry_of(leaf, unit) for name, (leaf, unit) in targets.items()}
        _require_equal(path, manifest, own, found, expected, tuple(learnt))
        numbers = {name: i for i, name in enumerate(manifest["entries"])}
        arrays = storage.arrays(path, {numbers[name]: leaf for name, (leaf, _) in targets.items()})
        restored = dict(zip(targets, arrays, strict=True))
        for name, value in values.items():
            leaves = [restored[leaf] for leaf, _, _ in _value_leaves(name, value)]
            values[name] = jax.tree.unflatten(jax.tree.structure(value), leaves)
        for name, state in states.items():
            state.value = values[name]
        if not parameters_only:
            self._initial = [(state, values[f"initial.{i}"]) for i, (state, _) in enumerate(self._initial)]

    def __copy__(self) -> Any:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise LearnerTypeError(
            "A learner is not pickled: it belongs to compiled programs and states of its own.",
            where=type(self).__name__,
            fix="learner.save(path), and restore(path) of a learner that is compiled from the same model; "
            "copy.deepcopy(learner) copies one in this process",
        )

    def _saved_states(self) -> dict[str, brainstate.State]:
        """What goes into a checkpoint, by name."""
        random = brainstate.random.DEFAULT
        named: dict[str, brainstate.State] = {"random": random}
        of_model: Any = brainstate.graph.states(self.model)
        named |= {f"model.{_dotted(path)}": s for path, s in of_model.items()}
        outside = [s for s in self.plan.states if s.path[0] == "<global>" and s.state is not random]
        named |= {f"global.{_dotted(s.path[1:])}": s.state for s in outside}
        seen = {id(state) for state in named.values()}
        own = {
            path: s for path, s in self.states().items() if path[0] not in ("_initial", "model") and id(s) not in seen
        }
        named |= {f"learner.{_dotted(path)}": state for path, state in own.items()}
        named |= {f"optimizer.{i}": state for i, state in enumerate(self.optimizer_states)}
        return named

    def _described_carry(self) -> str:
        """What is carried, with its constants: the shapes of traces do not tell decays."""
        carry = self._make_carry()
        return f"{type(carry).__name__}({', '.join(f'{name}={getattr(carry, name)!r}' for name in carry.constants)})"

    def _saved_values(self, states: dict[str, brainstate.State]) -> dict[str, Any]:
        """The values of `states`, and those that `reset_state` brings back."""
        initial = {f"initial.{i}": value for i, (_, value) in enumerate(self._initial)}
        return {name: state.value for name, state in states.items()} | initial


def _is_learnt(name: str, state: brainstate.State) -> bool:
    """Whether a state of a checkpoint holds what the model has learnt."""
    return name.startswith("model.") and isinstance(state, brainstate.LongTermState)


def _is_of(name: str, states: Iterable[str]) -> bool:
    """Whether an array belongs to one of some states."""
    return any(name == state or name.startswith((f"{state}[", f"{state}.")) for state in states)


def _is_model_beside(name: str, states: Iterable[str]) -> bool:
    """Whether an array belongs to the model, and to none of some states."""
    return name.startswith("model.") and not _is_of(name, states)


def entry_of(leaf: Any, unit: str | None) -> Entry:
    """The description of an array."""
    return Entry(tuple(jnp.shape(leaf)), str(jnp.result_type(leaf)), unit)


def _value_leaves(name: str, value: Any) -> list[tuple[str, Any, str | None]]:
    """Name, array and unit of each leaf of a value."""
    out = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=lambda v: hasattr(v, "mantissa")):
        unit = str(leaf.unit) if hasattr(leaf, "mantissa") else None
        out.append((name + jax.tree_util.keystr(path), getattr(leaf, "mantissa", leaf), unit))
    return out


def _leaves(values: dict[str, Any]) -> dict[str, tuple[Any, str | None]]:
    found = [entry for name, value in values.items() for entry in _value_leaves(name, value)]
    return {name: (leaf, unit) for name, leaf, unit in found}


def _require_format(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            "The checkpoint has another format.",
            where=str(path),
            found=f"format {manifest['format']}, written by version {manifest['version']}",
            expected=f"format {FORMAT}, as of version {__version__}",
            fix="read it with the version that wrote it",
        )


def _require_equal(
    path: Path,
    manifest: dict[str, Any],
    own: dict[str, str],
    found: dict[str, Entry],
    expected: dict[str, Entry],
    learnt: tuple[str, ...],
) -> None:
    carry = manifest.get("carry", own["carry"])  # which the first checkpoints did not tell
    if found == expected and carry == own["carry"]:
        return
    differ = {name: "checkpoint only" for name in found if name not in expected}
    differ |= {name: "learner only" for name in expected if name not in found}
    differ |= {n: f"{found[n]}, learner {e}" for n, e in expected.items() if n in found and found[n] != e}
    traces = {"traces": f"{carry}, learner {own['carry']}"} if carry != own["carry"] else {}
    lines = [f"{name}: {difference}" for name, difference in (traces | differ).items()]
    if all(name.startswith("optimizer.") for name in differ) and not traces:
        fix = "call learner.init_optimizer(optimizer) with the optimiser of the saved run first"
    elif any(_is_model_beside(name, ()) and _is_of(name, learnt) for name in differ):
        fix = "compile the model of the saved run"
    else:
        fix = "compile the model, algorithm, its options and batch size of the saved run"
        fix += "; or take what its model had learnt: restore(path, parameters_only=True)"
    raise CheckpointError(
        "The checkpoint does not belong to this learner.",
        where=str(path),
        found=f"{manifest['algorithm']} of version {manifest['version']}; differences:\n  " + "\n  ".join(lines),
        expected=f"the states of this {own['algorithm']}",
        fix=fix,
    )


def _dotted(path: Any) -> str:
    return ".".join(map(str, path))
