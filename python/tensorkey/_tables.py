"""What is cached under keys of the caller's own, as tables and files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tensorkey import errors
from tensorkey._backend import Bypass
from tensorkey._layer_runner import Nothing, Output, Runner
from tensorkey._own_keys import Id

if TYPE_CHECKING:
    from tensorkey import _core
    from tensorkey._frontend import Engine
    from tensorkey._outputs import OutputForm


class _Absent(Runner):
    """Stands where a layer would be run: everything must be there."""

    def __init__(self, engine: Engine, where: str, ids: Sequence[Id]) -> None:
        super().__init__(engine, Nothing())
        self._where, self._ids = where, ids

    def prepare(self, positions: list[int]) -> None:
        """Refuse to run rows."""
        raise _missing(self._where, self._ids, positions)

    def run(self, positions: list[int]) -> Output:
        """Refuse to run rows."""
        raise _missing(self._where, self._ids, positions)


def _missing(where: str, ids: Sequence[Id], positions: Sequence[int]) -> errors.MissingKey:
    shown = ", ".join(repr(ids[i]) for i in positions[:3]) + (", ..." if len(positions) > 3 else "")
    return errors.MissingKey(
        f"[{where}] {len(positions)} of {len(ids)} rows are not in the cache: {shown}; "
        "precompute() them first, under these weights"
    )


def _stored(engine: Engine, where: str, ids: Sequence[Id], use: Any) -> Any:
    if not ids:
        raise errors.InvalidArgument(f"[{where}] no keys; expected at least one")
    if engine.whole and len(ids) > 1:
        raise errors.InvalidArgument(
            f"[{where}] {len(ids)} keys of whole batches; expected one, as rows='batch'"
        )
    try:
        absent = engine.missing(ids)
        if absent:
            raise _missing(where, ids, absent)
        return engine.answer_stored(ids, _Absent(engine, where, ids), use)
    except Bypass as bypass:
        raise errors.Unsupported(f"[{where}] the layer runs without the cache: {bypass}") from None


def to_table(engine: Engine, ids: Sequence[Id]) -> Any:
    """Return the outputs for these ids as one batch."""

    def unpack(form: OutputForm, answer: _core.LayerAnswer, tensors: list[Any]) -> Any:
        output = form.unpack(tensors)
        return output if engine.adapter is None else engine.adapter.from_tensors(output)

    return _stored(engine, "to_table", ids, unpack)


def to_safetensors(engine: Engine, path: str | os.PathLike[str], ids: Sequence[Id]) -> int:
    """Write the outputs for these ids into a file."""
    names = {one: _name(one) for one in ids}
    if len(set(names.values())) < len(names):
        raise errors.InvalidArgument(
            "[to_safetensors] two keys have one name in a file, such as 1 and '1'; expected keys "
            "of one type"
        )
    save = safetensors(engine, "to_safetensors").save_file

    def collect(form: OutputForm, answer: _core.LayerAnswer, tensors: list[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for number, (tensor, leaf) in enumerate(zip(tensors, answer.leaves, strict=True)):
            rows = engine.backend.host_rows(tensor) if leaf[2] else ()
            for one, row in zip(ids, rows, strict=bool(leaf[2])):
                found[names[one] if len(tensors) == 1 else f"{names[one]}/{number}"] = row
        return found

    found = _stored(engine, "to_safetensors", ids, collect)
    save(found, os.fspath(path))
    return len(found)


def _name(one: Id) -> str:
    if not isinstance(one, bytes):
        return str(one)
    try:
        return one.decode()
    except UnicodeDecodeError:
        raise errors.InvalidArgument(
            f"[to_safetensors] the key {one!r} is no UTF-8 text, as names in a file are"
        ) from None


def safetensors(engine: Engine, where: str) -> Any:
    """Return the module of safetensors for the layer's framework."""
    try:
        return importlib.import_module(f"safetensors.{engine.backend.files}")
    except ImportError:
        raise errors.Unsupported(
            f"[{where}] the package safetensors is not installed: pip install safetensors"
        ) from None
