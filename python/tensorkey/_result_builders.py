"""Results made again from a description: what ``_results`` wrote, read once and built many times.

A class is looked up among the modules that are loaded and must be what the description says; no
module is imported for it, and no code of it is run but that of an adapted class (_adapters.py).
What can be changed in place is made anew by every build.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from tensorkey._adapters import adapter_of
from tensorkey._result_tensors import Note

Build = Callable[[Sequence[Any]], Any]
"""From the tensors of a result to the result."""


class _Made:
    """An item that is made anew by every build; any other is one value for all of them."""

    def __init__(self, build: Build) -> None:
        self.build = build


class Builder:
    """How results of one description are made.

    Raises
    ------
    Exception
        For what is no description, or names a class that is not there: of any class.
    """

    def __init__(self, description: bytes) -> None:
        self.notes: list[Note] = []
        """Of the tensors, in the order in which ``build`` takes them."""
        self._classes: list[tuple[str, type]] = []
        [(tag, body)] = _items(memoryview(description))
        made = self._read(tag, body)
        self.build: Build = made.build if isinstance(made, _Made) else lambda tensors: made

    @property
    def is_plain(self) -> bool:
        """Whether there are builtin classes only."""
        return not self._classes

    def is_current(self) -> bool:
        """Whether every class is still the one that its module has."""
        return all(find(where) is kind for where, kind in self._classes)

    def _read(self, tag: bytes, body: memoryview) -> Any:
        if tag == b"x":
            [part] = _items(body)
            return _Made(itemgetter(self._tensor(self._read(*part))))
        reader = _PLAIN_READERS.get(tag)
        if reader is not None:
            return reader(bytes(body))
        items = [self._read(*part) for part in _items(body)]
        if tag == b"o":
            what, where, *rest = items
            return self._object(what, where, rest)
        make = _READERS[tag]
        return _each(make, items) if tag != b"t" else _once(make, items)

    def _tensor(self, noted: Any) -> int:
        if type(noted) is int:  # one that was met before
            if not 0 <= noted < len(self.notes):
                raise ValueError("no such tensor")
            return noted
        if type(noted) is not tuple or not noted:
            raise ValueError("a tensor without a note")
        self.notes.append(noted)
        return len(self.notes) - 1

    def _object(self, what: Any, where: Any, items: list[Any]) -> Any:
        if what == "frozenset":
            return _once(frozenset, items)
        if what == "OrderedDict":
            return _each(lambda values: collections.OrderedDict(_pairs(values)), items)
        if what == "torch.Size":
            return _once(sys.modules["torch"].Size, items)
        kind = find(where)
        if not isinstance(kind, type):
            raise ValueError(f"no {what} {where}")
        self._classes.append((where, kind))
        if what == "enum" and issubclass(kind, enum.Enum):
            return kind.__members__[items[0]]
        if what in ("namedtuple", "struct") and kind_of_tuple(kind) == what:
            if what == "struct":
                return _each(kind, items)
            if len(kind._fields) == len(items):  # type: ignore[attr-defined]
                return _once(lambda values: tuple.__new__(kind, values), items)
        if what == "dataclass" and is_plain_dataclass(kind) and items[::2] == fields(kind):
            return _dataclass(kind, items[::2], items[1::2])
        if what == "output" and is_output(kind):
            return _output(kind, items[0], items[1::2], items[2::2])
        adapter = adapter_of(kind) if what == "adapted" else None
        if adapter is not None:
            return _each(lambda values: adapter.put_together(kind, _pairs(values)), items)
        raise ValueError(f"no {what} {where}")


def _items(body: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at < len(body):
        end = at + 9 + int.from_bytes(body[at + 1 : at + 9], "little")
        if end > len(body):
            raise ValueError("an item is cut short")
        yield bytes(body[at : at + 1]), body[at + 9 : end]
        at = end


def _filled(items: list[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return what makes a new list of the items."""
    made = [(at, part.build) for at, part in enumerate(items) if isinstance(part, _Made)]
    template = [None if isinstance(part, _Made) else part for part in items]

    def fill(tensors: Sequence[Any]) -> list[Any]:
        values = template[:]
        for at, build in made:
            values[at] = build(tensors)
        return values

    return fill


def _each(make: Callable[[list[Any]], Any], items: list[Any]) -> _Made:
    fill = _filled(items)
    return _Made(fill if make is list else lambda tensors: make(fill(tensors)))


def _once(make: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    """Make what cannot be changed in place: once, if that holds for all in it."""
    return _each(make, items) if any(isinstance(part, _Made) for part in items) else make(items)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _dataclass(kind: type, names: list[str], items: list[Any]) -> _Made:
    fill = _filled(items)
    assign = object.__setattr__

    def build(tensors: Sequence[Any]) -> Any:
        new: Any = object.__new__(kind)
        for key, value in zip(names, fill(tensors), strict=True):
            assign(new, key, value)
        return new

    return _Made(build)


def _output(kind: type, keys: Any, names: list[str], items: list[Any]) -> _Made:
    """Make a ModelOutput: attributes, some of which are items of the dict too."""
    fill = _filled(items)
    places = [(key, names.index(key)) for key in keys]
    insert = collections.OrderedDict.__setitem__

    def build(tensors: Sequence[Any]) -> Any:
        new: Any = collections.OrderedDict.__new__(kind)
        values = fill(tensors)
        for key, at in places:
            insert(new, key, values[at])
        object.__getattribute__(new, "__dict__").update(zip(names, values, strict=True))
        return new

    return _Made(build)


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
}


def find(where: str) -> Any:
    """Return the class of a module that is loaded; None if there is none."""
    module, _, path = where.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def kind_of_tuple(kind: type) -> str | None:
    """Return what sort of tuple the instances of a class are, if it is one of those kept."""
    if kind.__module__ == "torch" and kind.__name__ == "Size":
        return "torch.Size"
    if kind.__module__ == "torch.return_types" and issubclass(kind, tuple):
        return "struct"
    names = getattr(kind, "_fields", None)
    return "namedtuple" if issubclass(kind, tuple) and isinstance(names, tuple) else None


def is_plain_dataclass(kind: type) -> bool:
    """Whether its instances are their fields and nothing else."""
    return dataclasses.is_dataclass(kind) and kind.__new__ is object.__new__


def is_output(kind: type) -> bool:
    """Whether its instances are what libraries of Hugging Face call ModelOutput or BaseOutput.

    These are dataclasses and OrderedDicts at once: their fields that are not None are their items.
    """
    return (
        issubclass(kind, collections.OrderedDict)
        and dataclasses.is_dataclass(kind)
        and kind.__new__ is collections.OrderedDict.__new__
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )


def fields(kind: type) -> list[str]:
    """Return the names of the fields of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)]
