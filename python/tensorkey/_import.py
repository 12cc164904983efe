"""Answers that were computed elsewhere: files of arrays by name."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorkey import errors
from tensorkey._backend import Bypass
from tensorkey._layer_runner import Nothing, Output, Runner
from tensorkey._outputs import pack
from tensorkey._tables import safetensors

if TYPE_CHECKING:
    from tensorkey._frontend import Engine

_ROWS = 256
_FEW = 16  # rows: with fewer, chunk="auto" settles for chunks of one row


class _Stored(Runner):
    """Gives tensors in place of what a layer would compute."""

    def __init__(self, engine: Engine, tensors: Sequence[Any], form: bytes | None) -> None:
        super().__init__(engine, Nothing())
        self._backend = engine.backend
        self._tensors, self._form = tensors, form

    def run(self, positions: list[int]) -> Output:
        """Return the tensors at these positions."""
        rows = self._backend.stack([self._tensors[position] for position in positions])
        packed = pack(rows, self._backend, rows=len(positions), like=rows)
        return packed.leaves, packed.paths, self._form or packed.form, 0.0

    def input_keys(self, positions: list[int]) -> list[Any]:
        """There are no inputs."""
        return []

    def changes(self) -> list[str]:
        """Nothing runs that could change something."""
        return []


def import_entries(engine: Engine, path: str | os.PathLike[str]) -> int:
    """Store the arrays of a file under their names; return how many were not there."""
    file = Path(path)
    readers = {".npz": _npz, ".safetensors": _safetensors}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise errors.InvalidArgument(
            f"[import_entries] {file.name}; expected a .npz or .safetensors file"
        )
    if engine.whole:
        raise errors.InvalidArgument(
            "[import_entries] a row is a whole batch; expected rows='each'"
        )
    form = _known_form(engine)
    with file.open("rb"):  # the usual errors, if it is not there
        pass
    taken = 0
    try:
        for names, tensors in _groups(reader(engine, file)):
            taken += len(engine.missing(names))
            engine.assume(f"imported entries ({file.name}): taken to be the layer's own outputs")
            again = -(-_FEW // len(names))
            stored = _Stored(engine, tensors * again, form)
            engine.answer_stored(names * again, stored, lambda form, answer, tensors: None)
    except Bypass as bypass:
        raise errors.Unsupported(
            f"[import_entries] the layer runs without the cache: {bypass}"
        ) from None
    return taken


def _known_form(engine: Engine) -> bytes | None:
    """Return the form of the layer's outputs, if it was called: not every output is a tensor."""
    forms = {encoded for encoded, form in engine.forms.items() if len(form.leaves) == 1}
    if engine.forms and not forms:
        raise errors.Unsupported(
            "[import_entries] outputs of this layer are several tensors; expected one for each name"
        )
    return next(iter(forms), None)


def _npz(engine: Engine, path: Path) -> Iterator[tuple[str, Any]]:
    import numpy

    try:
        with path.open("rb") as raw, numpy.load(raw, allow_pickle=False) as file:
            for name in file.files:
                _check_header(file.zip, name)
                yield name, _converted(engine, path, name, file[name])
    except (errors.Error, GeneratorExit):
        raise
    except Exception as error:  # zipfile's, zlib's and NumPy's own
        raise _corrupt(path, error) from None


def _check_header(archive: zipfile.ZipFile, name: str) -> None:
    """Refuse an array that claims to be more than there is: it would be allocated first."""
    from numpy.lib import format as npy

    member = f"{name}.npy" if f"{name}.npy" in archive.NameToInfo else name
    with archive.open(member) as file:
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        reader = readers.get(npy.read_magic(file))
        if reader is None:
            raise ValueError(f"{name} is of another version of the format")
        shape, _, dtype = reader(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects")
    if math.prod(shape) * dtype.itemsize > archive.getinfo(member).file_size:
        raise ValueError(f"{name} ends early")


def _converted(engine: Engine, path: Path, name: str, array: Any) -> Any:
    try:
        return engine.backend.from_numpy(array)
    except TypeError as error:
        raise errors.Unsupported(f"[import_entries] {path.name}: {name}: {error}") from None


def _safetensors(engine: Engine, path: Path) -> Iterator[tuple[str, Any]]:
    safetensors(engine, "import_entries")
    from safetensors import SafetensorError, safe_open

    kind = {"torch": "pt", "tensorflow": "tf", "flax": "flax"}[engine.backend.files]
    try:
        with safe_open(path, framework=kind) as file:
            for name in file.keys():  # noqa: SIM118  # a handle is no mapping
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _corrupt(path, error) from None


def _corrupt(path: Path, error: Exception) -> errors.CorruptEntry:
    return errors.CorruptEntry(f"[import_entries] {path.name}: {error}")


def _groups(tensors: Iterator[tuple[str, Any]]) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield names and tensors of one dtype and shape together."""
    groups: dict[Any, tuple[list[str], list[Any]]] = {}
    for name, tensor in tensors:
        kind = (tensor.dtype, tuple(tensor.shape))
        names, held = groups.setdefault(kind, ([], []))
        names.append(name)
        held.append(tensor)
        if len(held) == _ROWS:
            yield groups.pop(kind)
    yield from groups.values()
