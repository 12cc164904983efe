"""Nests of arguments: opened level by level, so that they are read and rebuilt in one order.

A nest is a list, tuple, dict or set, a subclass of these that holds nothing else, a named tuple, a
dataclass, a UserDict (such as a BatchEncoding of Hugging Face) or a ModelOutput.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from tensorkey._encoding import name, plain
from tensorkey._paths import at_key
from tensorkey._readers import attributes_of, class_name, hidden_base
from tensorkey._result_builders import is_output, kind_of_tuple

_DICTS = (dict, collections.OrderedDict)
# Of a BatchEncoding: objects of a tokenizer, which say how its tensors came about.
_DERIVED = {("transformers", "BatchEncoding"): frozenset({"_encodings"})}


class Framework(Protocol):
    """What the nests of a layer ask of its framework."""

    def is_tensor(self, value: Any) -> bool:
        """Whether this is one of its tensors, such as a layer takes; the class decides."""

    def rows(self, tensor: Any) -> int | None:
        """Return the first dim; None at rank 0."""


class Unread(Exception):
    """A nest holds more than can be read; the text says what."""


@dataclasses.dataclass(slots=True)
class Opened:
    """One level of a nest."""

    tag: bytes
    """Of the sequence of children in the canonical encoding."""
    about: bytes
    """Encoding of all else: class, keys."""
    paths: list[str]
    children: list[Any]
    close: Callable[[list[Any]], Any]
    """Makes the nest anew of other children."""
    keys: list[Any] | None = None
    """Keys of a dict, which are to be encoded too."""
    assumed: tuple[str, ...] = ()
    """What is not read, by path."""
    may_be_rows: bool = False
    """A sequence that may have an item for each row."""


def opened(value: Any, path: str) -> Opened | None:
    """Open one level; None for what is no nest.

    Raises
    ------
    Unread
        For a nest with more in it.
    """
    kind: Any = type(value)
    if isinstance(value, (tuple, list)):
        return _opened_sequence(value, kind, path)
    if kind is slice:
        names = ("start", "stop", "step")
        parts = [value.start, value.stop, value.step]
        paths = [f"{path}.{key}" for key in names]
        return Opened(b"t", class_name(kind), paths, parts, lambda items: slice(*items))
    if isinstance(value, (set, frozenset)):
        if kind not in (set, frozenset):
            raise Unread(f"a {kind.__qualname__}")
        return Opened(b"s", name(kind.__name__, ""), [f"{path}{{}}"] * len(value), [*value], kind)
    if is_output(kind):
        return _opened_output(value, kind, path)
    if isinstance(value, dict):
        return _opened_dict(value, kind, path)
    if dataclasses.is_dataclass(kind) or isinstance(value, collections.UserDict):
        if kind.__new__ is not object.__new__ or hidden_base(kind) is not None:
            raise Unread(f"what a {kind.__qualname__} holds")
        return _opened_attributes(value, kind, path)
    return None


def _opened_sequence(value: Any, kind: Any, path: str) -> Opened:
    tag = b"t" if isinstance(value, tuple) else b"l"
    children = [*value]
    paths = [f"{path}[{i}]" for i in range(len(children))]
    if kind in (tuple, list):
        return Opened(tag, b"", paths, children, kind, may_be_rows=True)
    if getattr(value, "__dict__", None):
        raise Unread(f"a {kind.__qualname__} with attributes of its own")
    what = kind_of_tuple(kind)
    if what == "namedtuple":
        names = kind._fields
        paths = [f"{path}.{key}" for key in names]
        if len(paths) != len(children):
            raise Unread(f"a {kind.__qualname__} with other than its fields")
    if what in ("struct", "torch.Size"):
        return Opened(tag, class_name(kind), paths, children, kind)
    base: Any = tuple if tag == b"t" else list
    if hidden_base(kind) is not base or (what is None and kind.__new__ is not base.__new__):
        raise Unread(f"what a {kind.__qualname__} holds")

    def close(items: list[Any]) -> Any:
        if base is tuple:
            return tuple.__new__(kind, items)
        new: list[Any] = kind.__new__(kind)
        list.extend(new, items)
        return new

    return Opened(tag, class_name(kind), paths, children, close, may_be_rows=what is None)


def _opened_dict(value: Any, kind: Any, path: str) -> Opened:
    base: Any = next(base for base in kind.__mro__ if base in _DICTS)
    if kind.__new__ is not base.__new__ or hidden_base(kind) not in (*_DICTS, None):
        raise Unread(f"what a {kind.__qualname__} holds")
    keys, children = [*base.keys(value)], [*base.values(value)]
    paths = [at_key(path, key, i) for i, key in enumerate(keys)]
    if kind is dict:
        return Opened(
            b"d", b"", paths, children, lambda items: dict(zip(keys, items, strict=True)), keys
        )
    attributes = attributes_of(value)
    paths += [f"{path}.{key}" for key in attributes]

    def close(items: list[Any]) -> Any:
        new = kind.__new__(kind)
        for key, item in zip(keys, items, strict=False):
            base.__setitem__(new, key, item)
        _assign(new, attributes, items[len(keys) :])
        return new

    about = class_name(kind) + plain((len(keys), *attributes))
    return Opened(b"d", about, paths, [*children, *attributes.values()], close, keys)


def _opened_attributes(value: Any, kind: Any, path: str) -> Opened:
    attributes = attributes_of(value)
    derived = _DERIVED.get((kind.__module__.partition(".")[0], kind.__qualname__), frozenset())
    lost = tuple(key for key in attributes if key in derived and attributes[key] is not None)
    for key in lost:
        attributes[key] = None
    paths = [f"{path}.{key}" for key in attributes]
    if isinstance(value, collections.UserDict):
        # Its items are those of the dict within.
        paths = [path if key == "data" else f"{path}.{key}" for key in attributes]

    def close(items: list[Any]) -> Any:
        new: Any = object.__new__(kind)
        _assign(new, attributes, items)
        return new

    return Opened(
        b"t",
        class_name(kind) + plain(tuple(attributes)),
        paths,
        [*attributes.values()],
        close,
        assumed=tuple(f"{path}.{key} of a {kind.__qualname__}" for key in lost),
    )


def _opened_output(value: Any, kind: Any, path: str) -> Opened:
    attributes = object.__getattribute__(value, "__dict__")
    keys = [*collections.OrderedDict.keys(value)]
    held = [*collections.OrderedDict.values(value)]
    if any(attributes.get(key, opened) is not item for key, item in zip(keys, held, strict=True)):
        raise Unread(f"a {kind.__qualname__} whose items are not its attributes")
    names = [*attributes]

    def close(items: list[Any]) -> Any:
        new: Any = collections.OrderedDict.__new__(kind)
        held = dict(zip(names, items, strict=True))
        for key in keys:
            collections.OrderedDict.__setitem__(new, key, held[key])
        object.__getattribute__(new, "__dict__").update(held)
        return new

    about = class_name(kind) + plain((tuple(keys), tuple(names)))
    return Opened(b"t", about, [f"{path}.{key}" for key in names], [*attributes.values()], close)


def _assign(new: Any, attributes: dict[str, Any], items: list[Any]) -> None:
    for key, item in zip(attributes, items, strict=True):
        object.__setattr__(new, key, item)


def rebuilt(value: Any, rows: frozenset[int], tensors: Iterator[Any]) -> Any:
    """Make a nest anew with other tensors.

    Parameters
    ----------
    value
        A nest that was read.
    rows
        The ids of the tensors to be replaced.
    tensors
        What to put in their places, in the order of reading.
    """
    if id(value) in rows:
        return next(tensors)
    level = opened(value, "")
    if level is None:
        return value
    children = [rebuilt(child, rows, tensors) for child in level.children]
    if isinstance(value, (tuple, frozenset, slice)) and all(
        new is old for new, old in zip(children, level.children, strict=True)
    ):
        return value
    return level.close(children)
