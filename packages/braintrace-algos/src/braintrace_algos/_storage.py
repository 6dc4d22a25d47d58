"""Where checkpoints are kept: one archive of NumPy, or a folder of Orbax. Neither is ever unpickled."""

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._errors import CheckpointError

Manifest = dict[str, Any]


class NumpyArchive:
    """One ``.npz`` file of plain arrays, which appears as a whole or not at all."""

    @staticmethod
    def write(path: Path, manifest: Manifest, leaves: Sequence[Any]) -> None:
        """Write beside `path`, then move there in one step."""
        arrays: dict[str, Any] = {name: _to_numpy(leaf) for name, leaf in _numbered(leaves).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, manifest=np.frombuffer(json.dumps(manifest).encode(), np.uint8), **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @staticmethod
    def manifest(path: Path) -> Manifest:
        """What the archive says of itself."""
        return _from_archive(path, lambda archive: json.loads(archive["manifest"].tobytes()))

    @staticmethod
    def arrays(path: Path, targets: Mapping[int, Any]) -> list[Any]:
        """The arrays of some numbers, of the types of `targets` and placed like them."""
        arrays = _from_archive(path, lambda archive: [archive[_name(i)] for i in targets])
        return [_from_numpy(array, target) for array, target in zip(arrays, targets.values(), strict=True)]


class OrbaxFolder:
    """A folder written by Orbax, which takes arrays that are spread over devices and hosts."""

    @staticmethod
    def write(path: Path, manifest: Manifest, leaves: Sequence[Any]) -> None:
        """Write a new folder."""
        ocp = _orbax()
        if path.exists():
            raise CheckpointError(
                "There is a checkpoint already.",
                where=str(path),
                fix="give every checkpoint in Orbax's format a folder of its own",
            )
        arrays = {name: jnp.asarray(leaf) for name, leaf in _numbered(leaves).items()}
        parts = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), manifest=ocp.args.JsonSave(manifest))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path.absolute(), args=parts)

    @staticmethod
    def manifest(path: Path) -> Manifest:
        """What the folder says of itself."""
        ocp = _orbax()
        try:
            return _restore(ocp, path, manifest=ocp.args.JsonRestore())["manifest"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise _unreadable(path, error) from error

    @staticmethod
    def arrays(path: Path, targets: Mapping[int, Any]) -> list[Any]:
        """The arrays of some numbers, of the types of `targets` and placed like them."""
        ocp = _orbax()
        tree = {_name(i): _abstract(target) for i, target in targets.items()}
        placed = ocp.checkpoint_utils.construct_restore_args(tree)
        some = ocp.args.PyTreeRestore(tree, restore_args=placed, partial_restore=True)
        try:
            arrays = _restore(ocp, path, arrays=some)["arrays"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise _unreadable(path, error) from error
        return [_as_scalar(arrays[_name(i)], target) for i, target in targets.items()]


def _name(i: int) -> str:
    """Under which the i-th array is kept."""
    return f"array_{i}"


def _numbered(values: Sequence[Any]) -> dict[str, Any]:
    return {_name(i): value for i, value in enumerate(values)}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        "This is not a checkpoint, or it is damaged.", where=str(path), found=str(error) or type(error).__name__
    )


def _from_archive(path: Path, read: Any) -> Any:
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return read(archive)
        except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise _unreadable(path, error) from error


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _to_numpy(leaf: Any) -> np.ndarray:
    """An array of one of NumPy's own dtypes, with all the bits of `leaf`."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.dtype.itemsize}")


def _from_numpy(array: np.ndarray, target: Any) -> Any:
    """The inverse of `_to_numpy`, of the type of `target` and placed like it."""
    if _is_key(target):
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(target))
    else:
        dtype = jnp.result_type(target)
        value = jnp.asarray(array if array.dtype == dtype else array.view(dtype))
    committed = getattr(target, "committed", False)
    return _as_scalar(jax.device_put(value, target.sharding) if committed else value, target)


def _as_scalar(value: Any, target: Any) -> Any:
    """`value` as a number of Python where `target` is one."""
    return type(target)(value) if isinstance(target, (bool, int, float, complex)) else value


def _abstract(target: Any) -> jax.ShapeDtypeStruct:
    array = jnp.asarray(target)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _restore(ocp: Any, path: Path, **parts: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path.absolute(), args=ocp.args.Composite(**parts))


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise CheckpointError(
            "Orbax is not installed.",
            where='storage="orbax"',
            fix='pip install "braintrace-algos[checkpoint]", or save with storage="npz"',
        ) from error
    return ocp
