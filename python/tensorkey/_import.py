"""Answers that were computed elsewhere: files of arrays by name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorkey import errors
from tensorkey._layer_runner import Nothing, Output, Runner
from tensorkey._outputs import pack

if TYPE_CHECKING:
    from tensorkey._frontend import Engine

_ROWS = 256


class _Stored(Runner):
    """Gives arrays in place of what a layer would compute."""

    def __init__(self, engine: Engine, arrays: Sequence[Any]) -> None:
        super().__init__(engine, Nothing())
        self._backend = engine.backend
        self._arrays = arrays

    def run(self, positions: list[int]) -> Output:
        import numpy

        rows = numpy.stack([self._arrays[position] for position in positions])
        packed = pack(self._backend.from_numpy(rows), self._backend)
        return packed.leaves, packed.paths, packed.form, 0.0

    def input_keys(self, positions: list[int]) -> list[Any]:
        return []


def import_entries(engine: Engine, path: str | os.PathLike[str]) -> int:
    """Store the arrays of a file under their names; return how many were not there."""
    engine.assume(f"imported entries ({Path(path).name}): taken to be the layer's own outputs")
    taken = 0
    for names, arrays in _batches(_arrays(Path(path))):
        taken += len(engine.missing(names))
        engine.answer_stored(names, _Stored(engine, arrays), lambda form, tensors: None)
    return taken


def _arrays(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield names and arrays, those of one shape and dtype after another."""
    import numpy

    if path.suffix == ".npz":
        try:
            with numpy.load(path, allow_pickle=False) as file:
                yield from _sorted({name: file[name] for name in file.files})
        except (ValueError, OSError, KeyError, EOFError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise errors.CorruptEntry(f"[import_entries] {path.name}: {error}") from None
        except Exception as error:  # zipfile's and zlib's own
            raise errors.CorruptEntry(f"[import_entries] {path.name}: {error}") from None
    elif path.suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError:
            raise errors.Unsupported(
                "[import_entries] the package safetensors is not installed: pip install safetensors"
            ) from None
        try:
            found = load_file(path)
        except SafetensorError as error:
            raise errors.CorruptEntry(f"[import_entries] {path.name}: {error}") from None
        yield from _sorted(found)
    else:
        raise errors.InvalidArgument(
            f"[import_entries] {path.name}; expected a .npz or .safetensors file"
        )


def _sorted(arrays: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    def kind(name: str) -> tuple[str, tuple[int, ...], str]:
        return (arrays[name].dtype.str, arrays[name].shape, name)

    for name in sorted(arrays, key=kind):
        yield name, arrays[name]


def _batches(arrays: Iterator[tuple[str, Any]]) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield groups of one dtype and shape."""
    names: list[str] = []
    held: list[Any] = []
    for name, array in arrays:
        other = held and (array.dtype != held[0].dtype or array.shape != held[0].shape)
        if other or len(held) == _ROWS:
            yield names, held
            names, held = [], []
        names.append(name)
        held.append(array)
    if held:
        yield names, held
