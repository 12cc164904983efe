"""Results as tensors and a description, without pickle: what a cache keeps of a call.

The description is one item of the canonical encoding (_encoding.py), read back by ``decode`` here.
Beside the plain items (N b i f c S B) and the nests (l t d s) it has two of its own:

    x  a tensor: its note (_result_tensors.py), a tuple item; tensors count from 0 in order
    o  another object: S of what it is, S of its class as "module:name", then its items
       namedtuple  the fields                dataclass  name and value of each field
       enum        S of the member           frozenset, OrderedDict, torch.Size, struct  as s, d, t

A class is looked up among the modules that are loaded and must be what the description says; no
module is imported for it and no code of it is run.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from tensorkey._encoding import PLAIN, item, plain, sequence, text
from tensorkey._result_tensors import NoResult, Note, note, own_copy

_MAX_DEPTH = 100
_MAX_TENSORS = 65_534
DESCRIPTION = "description"


class Packed:
    """A result taken apart.

    Raises
    ------
    NoResult
        For a result that cannot be described; the text is the reason.
    """

    def __init__(self, result: Any) -> None:
        self.tensors: list[Any] = []
        self.description = self._item(result, 0)
        if len(self.tensors) > _MAX_TENSORS:
            raise NoResult(f"more than {_MAX_TENSORS} tensors in the result")

    def members(self) -> dict[str, Any]:
        """Return what goes into an entry, by name."""
        named = {str(i): tensor for i, tensor in enumerate(self.tensors)}
        return {DESCRIPTION: self.description, **named}

    def copied(self) -> Packed:
        """Copy all tensors, in place; return self."""
        self.tensors = [own_copy(tensor) for tensor in self.tensors]
        return self

    def copy(self) -> Any:
        """Return the result again, with tensors of its own."""
        return decode(self.description, lambda number, _: own_copy(self.tensors[number]))

    def _item(self, value: Any, depth: int) -> bytes:
        kind = type(value)
        encode = PLAIN.get(kind)
        try:
            if encode is not None:
                return encode(value)
        except ValueError as error:  # an int of thousands of digits
            raise NoResult(str(error)) from None
        if depth > _MAX_DEPTH:
            raise NoResult("the result is nested too deeply")
        noted = note(value)
        if noted is not None:
            self.tensors.append(noted[1])
            return item(b"x", plain(noted[0]))
        nest = self._nest(value, kind, depth + 1)
        if nest is None:
            raise NoResult(f"a {kind.__module__}.{kind.__qualname__} in the result")
        return nest

    def _nest(self, value: Any, kind: type, depth: int) -> bytes | None:
        if kind in (tuple, list):
            return sequence(b"t" if kind is tuple else b"l", [self._item(v, depth) for v in value])
        if kind is dict:
            return sequence(b"d", self._pairs(value, depth))
        if kind is set:
            return sequence(b"s", [self._item(v, depth) for v in value])
        if kind is frozenset:
            return self._object("frozenset", kind, [self._item(v, depth) for v in value])
        if kind is collections.OrderedDict:
            return self._object("OrderedDict", kind, self._pairs(value, depth))
        if isinstance(value, tuple) and not getattr(value, "__dict__", None):
            what = _kind_of_tuple(kind)
            if what is not None:
                return self._object(what, kind, [self._item(v, depth) for v in value])
        if isinstance(value, enum.Enum):
            return self._object("enum", kind, [text(value.name)])
        if _is_plain_dataclass(kind):
            names = _fields(kind)
            if set(getattr(value, "__dict__", ())) - set(names):
                raise NoResult(f"a {kind.__qualname__} with attributes of its own in the result")
            if all(hasattr(value, key) for key in names):
                items = ((text(key), self._item(getattr(value, key), depth)) for key in names)
                return self._object("dataclass", kind, [part for pair in items for part in pair])
        return None

    def _pairs(self, value: dict[Any, Any], depth: int) -> list[bytes]:
        return [self._item(part, depth) for pair in value.items() for part in pair]

    def _object(self, what: str, kind: type, items: list[bytes]) -> bytes:
        where = f"{kind.__module__}:{kind.__qualname__}"
        if what in ("enum", "namedtuple", "dataclass", "struct") and _find(where) is not kind:
            raise NoResult(f"a {kind.__qualname__} in the result, which no module has by that name")
        return sequence(b"o", [text(what), text(where), *items])


def decode(description: bytes, tensor: Callable[[int, Note], Any]) -> Any:
    """Make a result again.

    Parameters
    ----------
    description
        Of a ``Packed``.
    tensor
        From the number of a tensor and its note to the tensor.

    Raises
    ------
    Exception
        For what is no description, or names a class that is not there: of any class.
    """
    number = iter(range(_MAX_TENSORS))

    def value(tag: bytes, body: memoryview) -> Any:
        if tag == b"x":
            [(kind, noted)] = _items(body)
            return tensor(next(number), value(kind, noted))
        reader = _PLAIN_READERS.get(tag)
        if reader is not None:
            return reader(bytes(body))
        items = [value(*part) for part in _items(body)]
        return _READERS[tag](items)

    [(tag, body)] = _items(memoryview(description))
    return value(tag, body)


def _items(body: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at < len(body):
        end = at + 9 + int.from_bytes(body[at + 1 : at + 9], "little")
        if end > len(body):
            raise ValueError("an item is cut short")
        yield bytes(body[at : at + 1]), body[at + 9 : end]
        at = end


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _read_object(items: list[Any]) -> Any:
    what, where, rest = items[0], items[1], items[2:]
    if what == "frozenset":
        return frozenset(rest)
    if what == "OrderedDict":
        return collections.OrderedDict(_pairs(rest))
    if what == "torch.Size":
        return sys.modules["torch"].Size(rest)
    kind = _find(where)
    if what == "enum" and isinstance(kind, enum.EnumMeta):
        return kind.__members__[rest[0]]
    if what in ("namedtuple", "struct") and isinstance(kind, type) and _kind_of_tuple(kind) == what:
        if what == "struct":
            return kind(rest)
        if len(kind._fields) == len(rest):  # type: ignore[attr-defined]
            return tuple.__new__(kind, rest)
    if what == "dataclass" and isinstance(kind, type) and _is_plain_dataclass(kind):
        values = _pairs(rest)
        if list(values) == _fields(kind):
            new: Any = object.__new__(kind)
            for key, entry in values.items():
                object.__setattr__(new, key, entry)
            return new
    raise ValueError(f"no {what} {where}")


_PLAIN_READERS: dict[bytes, Callable[[bytes], Any]] = {
    b"N": lambda body: None,
    b"b": lambda body: body == b"\1",
    b"i": int,
    b"f": lambda body: struct.unpack("<d", body)[0],
    b"c": lambda body: complex(*struct.unpack("<dd", body)),
    b"S": lambda body: body.decode("utf-8", "surrogatepass"),
    b"B": bytes,
    b"n": lambda body: ...,
}
_READERS: dict[bytes, Callable[[list[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"d": _pairs,
    b"s": set,
    b"o": _read_object,
}


def _find(where: str) -> Any:
    """Return the class of a module that is loaded; None if there is none."""
    module, _, path = where.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _kind_of_tuple(kind: type) -> str | None:
    if kind.__module__ == "torch" and kind.__name__ == "Size":
        return "torch.Size"
    if kind.__module__ == "torch.return_types" and issubclass(kind, tuple):
        return "struct"
    fields = getattr(kind, "_fields", None)
    return "namedtuple" if issubclass(kind, tuple) and isinstance(fields, tuple) else None


def _is_plain_dataclass(kind: type) -> bool:
    """Whether its instances are their fields and nothing else."""
    return dataclasses.is_dataclass(kind) and kind.__new__ is object.__new__


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
