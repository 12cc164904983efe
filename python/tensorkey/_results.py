"""Results as tensors and a description, without pickle: what a cache keeps of a call.

The description is one item of the canonical encoding (_encoding.py), read back by ``decode`` here.
Beside the plain items (N b i f c S B) and the nests (l t d s) it has two of its own:

    x  a tensor: its note (_result_tensors.py), a tuple item; tensors count from 0 in order.
       Or, where the same tensor comes once more, i of its number
    o  another object: S of what it is, S of its class as "module:name", then its items
       namedtuple  the fields                dataclass  name and value of each field
       enum        S of the member           frozenset, OrderedDict, torch.Size, struct  as s, d, t
       output      a tuple of the keys, then name and value of each attribute: a ModelOutput
       adapted     name and value of what the class is kept as (_adapters.py)
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Callable
from typing import Any

from tensorkey._adapters import adapter_of
from tensorkey._encoding import PLAIN, item, plain, sequence, text
from tensorkey._paths import at_key
from tensorkey._result_builders import (
    Builder,
    fields,
    find,
    is_output,
    is_plain_dataclass,
    kind_of_tuple,
)
from tensorkey._result_tensors import NoResult, Note, at_home, note, own_copy

_MAX_DEPTH = 100
_MAX_TENSORS = 65_534
DESCRIPTION = "description"
_NAMED = frozenset({"enum", "namedtuple", "dataclass", "struct", "output", "adapted"})


class Packed:
    """A result taken apart.

    Parameters
    ----------
    result
        Any nest.
    rows
        The batch size, if a layer made the result.
    home
        Beginning of a note (``device_of``): the device of tensors there is not noted.

    Raises
    ------
    NoResult
        For a result that cannot be described; the text is the reason.
    """

    def __init__(self, result: Any, rows: int | None = None, home: tuple[Any, ...] = ()) -> None:
        self.tensors: list[Any] = []
        self.paths: list[str] = []
        """Of the tensors: "[0]", "hidden", 'states["a"][1]'; empty for a tensor alone."""
        self._rows = rows
        self._home = home
        self._met: dict[int, tuple[int, Any]] = {}
        self.description = self._item(result, "", 0)
        if len(self.tensors) > _MAX_TENSORS:
            raise NoResult(f"more than {_MAX_TENSORS} tensors in the result")

    def originals(self) -> list[Any]:
        """Return the tensors as they are in the result; a scalar of NumPy is kept as an array."""
        return [value for _, value in self._met.values()]

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

    def _item(self, value: Any, path: str, depth: int) -> bytes:
        kind = type(value)
        encode = PLAIN.get(kind)
        try:
            if encode is not None:
                return encode(value)
        except ValueError as error:  # an int of thousands of digits
            raise NoResult(str(error)) from None
        if depth > _MAX_DEPTH:
            raise NoResult("the result is nested too deeply")
        noted = note(value, self._rows)
        if noted is not None:
            return item(b"x", plain(self._noted(value, path, *noted)))
        nest = self._nest(value, kind, path, depth + 1)
        if nest is None:
            raise NoResult(f"a {kind.__module__}.{kind.__qualname__} in the result")
        return nest

    def _noted(self, value: Any, path: str, noted: Note, tensor: Any) -> int | Note:
        number, _ = self._met.setdefault(id(value), (len(self.tensors), value))
        if number < len(self.tensors):
            return number
        self.tensors.append(tensor)
        self.paths.append(path)
        return at_home(noted, self._home)

    def _nest(self, value: Any, kind: type, path: str, depth: int) -> bytes | None:
        if kind in (tuple, list):
            return sequence(b"t" if kind is tuple else b"l", self._sequence(value, path, depth))
        if kind is dict:
            return sequence(b"d", self._pairs(value, path, depth))
        if kind is set:
            return sequence(b"s", self._set(value, path, depth))
        if kind is frozenset:
            return self._object("frozenset", kind, self._set(value, path, depth))
        if kind is collections.OrderedDict:
            return self._object("OrderedDict", kind, self._pairs(value, path, depth))
        if isinstance(value, tuple) and not getattr(value, "__dict__", None):
            what = kind_of_tuple(kind)
            names = kind._fields if what == "namedtuple" else None  # type: ignore[attr-defined]
            if what is not None and (names is None or len(names) == len(value)):
                return self._object(what, kind, self._sequence(value, path, depth, names))
        if isinstance(value, enum.Enum):
            return self._object("enum", kind, [text(value.name)])
        if is_plain_dataclass(kind):
            names = fields(kind)
            if set(getattr(value, "__dict__", ())) - set(names):
                raise NoResult(f"a {kind.__qualname__} with attributes of its own in the result")
            if all(hasattr(value, key) for key in names):
                named = {key: getattr(value, key) for key in names}
                return self._object("dataclass", kind, self._attributes(named, path, depth))
        if is_output(kind):
            return self._output(value, kind, path, depth)
        adapter = adapter_of(kind)
        if adapter is not None:
            parts = adapter.take_apart(value)
            if parts is None:
                raise NoResult(f"a {kind.__qualname__} with attributes of its own in the result")
            return self._object("adapted", kind, self._attributes(parts, path, depth))
        return None

    def _sequence(
        self, value: Any, path: str, depth: int, names: tuple[str, ...] | None = None
    ) -> list[bytes]:
        if names is not None:
            pairs = zip(names, value, strict=True)
            return [self._item(part, _field(path, key), depth) for key, part in pairs]
        return [self._item(part, f"{path}[{i}]", depth) for i, part in enumerate(value)]

    def _set(self, value: Any, path: str, depth: int) -> list[bytes]:
        before = len(self.tensors)
        items = self._sequence(value, path, depth)
        return sorted(items) if len(self.tensors) == before else items  # tensors are in order

    def _pairs(self, value: dict[Any, Any], path: str, depth: int) -> list[bytes]:
        parts = []
        for i, (key, held) in enumerate(value.items()):
            where = at_key(path, key, i)
            parts += [self._item(key, where, depth), self._item(held, where, depth)]
        return parts

    def _attributes(self, named: dict[str, Any], path: str, depth: int) -> list[bytes]:
        parts = []
        for key, held in named.items():
            parts += [text(key), self._item(held, _field(path, key), depth)]
        return parts

    def _output(self, value: Any, kind: type, path: str, depth: int) -> bytes:
        attributes = object.__getattribute__(value, "__dict__")
        keys = []
        for key, held in collections.OrderedDict.items(value):
            if key not in attributes or attributes[key] is not held:
                raise NoResult(f"a {kind.__qualname__} whose items are not its attributes")
            keys.append(key)
        if not all(type(key) is str for key in attributes):
            raise NoResult(f"a {kind.__qualname__} with attributes of its own in the result")
        named = self._attributes(attributes, path, depth)
        return self._object("output", kind, [plain(tuple(keys)), *named])

    def _object(self, what: str, kind: type, items: list[bytes]) -> bytes:
        where = f"{kind.__module__}:{kind.__qualname__}"
        if what in _NAMED and find(where) is not kind:
            raise NoResult(f"a {kind.__qualname__} in the result, which no module has by that name")
        return sequence(b"o", [text(what), text(where), *items])


def _field(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


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
    builder = Builder(description)
    return builder.build([tensor(number, noted) for number, noted in enumerate(builder.notes)])
