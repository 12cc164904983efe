"""Arguments of a layer as row tensors and one canonical encoding of everything else.

Beside what _calls.py lists:

    r  a tensor with a row for each of the batch: S of its class, S of its dtype, S of its device
       (its sort for the first one, empty for others on the same device)
"""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import Any

from tensorkey import errors
from tensorkey._calls import Encoder, NoKey
from tensorkey._encoding import PLAIN, sequence, text
from tensorkey._nests import Framework, Unread, opened

_MAX_DEPTH = 100
_LONG = "{} has as many items as the batch has rows, and may hold one for each: pass a tensor"
_FOREIGN = "{} is a {} as long as the batch: pass a tensor of the layer's framework"


class InputEncoder(Encoder):
    """Encodes the arguments of one call, and gathers its row tensors.

    Parameters
    ----------
    framework
        Of the layer.
    whole
        Whether the input is one row in all: every tensor counts then, whatever its first dim.
    """

    def __init__(self, framework: Framework, *, whole: bool = False) -> None:
        super().__init__()
        self.rows: int | None = None
        self.tensors: list[Any] = []
        self.paths: list[str] = []
        self.lengths: dict[int, str] = {}
        """Paths of sequences without row tensors by their lengths."""
        self.others = False
        """Whether the encoding holds contents of tensors, or code."""
        self._framework = framework
        self._whole = whole
        self._foreign: dict[int, str] = {}
        self._home: Any = None
        self._fixed = 0  # depth in keys and sets, where a tensor has no place

    def check(self) -> None:
        """Raise for values that may belong to single rows and cannot be taken apart.

        Raises
        ------
        NoKey
            With the path.
        """
        if self._whole:
            return
        rows = self.rows or 0
        if rows > 1 and rows in self.lengths:
            raise NoKey(_LONG.format(self.lengths[rows]))
        if rows in self._foreign:
            raise NoKey(self._foreign[rows])

    def encode(self, value: Any, path: str, depth: int = 0) -> bytes:
        """Encode a value; row tensors are noted.

        Raises
        ------
        NoKey
            For what cannot be read; the reason names the path.
        """
        encode = PLAIN.get(type(value))
        try:
            if encode is not None:
                return encode(value)
            if depth > _MAX_DEPTH:
                raise NoKey(f"{path.partition('[')[0]} is nested too deeply")
            if self._framework.is_tensor(value):
                return self._own_tensor(value, path)
            nest = self._level(value, path, depth + 1)
            return self._leaf(value, path) if nest is None else nest
        except Unread as reason:
            raise NoKey(f"{path} has no key: {reason} cannot be read") from None
        except (errors.Error, ValueError) as error:
            raise NoKey(f"{path} has no key: {error}") from None

    def _level(self, value: Any, path: str, depth: int) -> bytes | None:
        level = opened(value, path)
        if level is None:
            return self._nest(value, path, depth)  # an enum
        before = len(self.tensors)
        self._fixed += level.tag == b"s"
        items = [
            self.encode(child, where, depth)
            for child, where in zip(level.children, level.paths, strict=True)
        ]
        self._fixed -= level.tag == b"s"
        if level.may_be_rows and len(self.tensors) == before:
            self.lengths.setdefault(len(items), path)
        if level.keys is not None:
            self._fixed += 1
            keys = [self.encode(key, path, depth) for key in level.keys]
            self._fixed -= 1
            pairs = zip(keys, items, strict=False)  # attributes of a subclass come after the items
            items = [*chain.from_iterable(pairs), *items[len(keys) :]]
        self.assumed += level.assumed
        return level.about + sequence(level.tag, sorted(items) if level.tag == b"s" else items)

    def _own_tensor(self, value: Any, path: str) -> bytes:
        rows = self._framework.rows(value)
        if rows is None and not self._whole:
            return self._other(value)
        if self.rows is None:
            self.rows = rows
        if rows != self.rows and not self._whole:
            return self._other(value)
        if self._fixed:
            raise NoKey(f"{path}: a tensor in a set or as a key of a dict has no place of its own")
        kind, place = getattr(self._framework, "stands_for", _itself)(value)
        device = str(place)
        if not self.tensors:
            self._home, device = device, _sort_of(place, device)
        elif device == self._home:
            device = ""
        self.tensors.append(value)
        self.paths.append(path)
        described = (f"{kind.__module__}.{kind.__qualname__}", str(value.dtype), device)
        return sequence(b"r", map(text, described))

    def _other(self, value: Any) -> bytes:
        self.others = True
        return super()._tensor(value)

    def _leaf(self, value: Any, path: str) -> bytes:
        self.others = True
        kind = type(value)
        if hasattr(kind, "__len__") and not isinstance(value, (str, bytes, type)):
            with contextlib.suppress(TypeError):  # an array of rank 0
                named = _FOREIGN.format(path, f"{kind.__module__}.{kind.__qualname__}")
                self._foreign.setdefault(len(value), named)
        return super()._leaf(value, path)


def _itself(tensor: Any) -> tuple[type, Any]:
    """Return class and device of a tensor, where no Framework.stands_for says those of another."""
    return type(tensor), getattr(tensor, "device", "")


def _sort_of(device: Any, named: str) -> str:
    """Return the device without its number, as PyTorch and JAX tell it."""
    sort = getattr(device, "type", None) or getattr(device, "platform", None)
    return sort if isinstance(sort, str) else named
