"""What is cached under keys of the caller's own, as tables and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tensorkey import errors
from tensorkey._layer_runner import Nothing, Runner
from tensorkey._own_keys import Id

if TYPE_CHECKING:
    from tensorkey._frontend import Engine


class _Absent(Runner):
    """Stands where a layer would be run: everything must be there."""

    def __init__(self, engine: Engine, ids: Sequence[Id]) -> None:
        super().__init__(engine, Nothing())
        self._ids = ids

    def prepare(self, positions: list[int]) -> None:
        raise _missing(self._ids, positions)


def _missing(ids: Sequence[Id], positions: Sequence[int]) -> errors.MissingKey:
    shown = ", ".join(repr(ids[i]) for i in positions[:3]) + (", ..." if len(positions) > 3 else "")
    return errors.MissingKey(
        f"[to_table] {len(positions)} of {len(ids)} rows are not in the cache: {shown}; "
        "precompute() them first, under these weights"
    )


def to_table(engine: Engine, ids: Sequence[Id]) -> Any:
    """Return the outputs for these ids as one batch."""
    _check(engine, ids)
    return engine.answer_stored(
        ids, _Absent(engine, ids), lambda form, tensors: form.unpack(tensors)
    )


def _check(engine: Engine, ids: Sequence[Id]) -> None:
    if not ids:
        raise errors.InvalidArgument("[to_table] no keys; expected at least one")
    absent = engine.missing(ids)
    if absent:
        raise _missing(ids, absent)


def to_safetensors(engine: Engine, path: str | os.PathLike[str], ids: Sequence[Id]) -> int:
    """Write the outputs for these ids into a file."""
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise errors.Unsupported(
            "[to_safetensors] the package safetensors is not installed: pip install safetensors"
        ) from None
    _check(engine, ids)
    named: dict[str, Any] = {}

    def collect(form: Any, tensors: Sequence[Any]) -> None:
        for number, tensor in enumerate(tensors):
            rows = engine.backend.to_numpy(tensor)
            for i, one in enumerate(ids):
                name = one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one)
                named[name if len(tensors) == 1 else f"{name}/{number}"] = rows[i].copy()

    engine.answer_stored(ids, _Absent(engine, ids), collect)
    save_file(named, os.fspath(path))
    return len(named)
