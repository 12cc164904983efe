"""Watch many Python containers for changes, cheaply and exactly.

A container is unchanged if it holds the very same objects under the same names. Comparing by
identity needs no care about equality (``1 == True``, ``-0.0 == 0.0``, NaN) and runs in C, about
20 ns an element; what it calls a change too much only costs a new reading. Strong references to
what was seen keep an address from being used again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from types import CellType, FunctionType
from typing import Any

_is = operator.is_
_class_values = operator.methodcaller("values")
_code = operator.attrgetter("__code__")
_defaults = operator.attrgetter("__defaults__")
_contents = operator.attrgetter("cell_contents")


class Watch:
    """Containers as they were when they were added.

    Examples
    --------
    >>> options = {"scale": 1}
    >>> watch = Watch()
    >>> watch.add_dict(options)
    >>> watch.unchanged()
    True
    >>> options["scale"] = True
    >>> watch.unchanged()
    False
    """

    def __init__(self) -> None:
        self._objects: list[object] = []
        self._types: list[type] = []
        self._dicts: list[dict[Any, Any]] = []
        self._classes: list[Mapping[str, Any]] = []
        self._sequences: list[Any] = []
        self._functions: list[FunctionType] = []
        self._cells: list[CellType] = []
        self._calls: list[Callable[[], Any]] = []
        self._results: list[Any] = []
        self._lengths: list[int] = []
        self._sequence_lengths: list[int] = []
        self._names: list[Any] = []
        self._values: list[Any] = []
        self._class_names: list[str] = []
        self._class_values: list[Any] = []
        self._items: list[Any] = []
        self._codes: list[Any] = []
        self._function_defaults: list[Any] = []
        self._cell_contents: list[Any] = []

    def add_object(self, thing: object) -> None:
        """Watch the class of an object and its attributes."""
        self._objects.append(thing)
        self._types.append(type(thing))
        self.add_dict(getattr(thing, "__dict__", {}))

    def add_dict(self, mapping: dict[Any, Any]) -> None:
        """Watch names and values of a dict, in order."""
        self._dicts.append(mapping)
        self._lengths.append(len(mapping))
        self._names += dict.keys(mapping)
        self._values += dict.values(mapping)

    def add_class(self, kind: type) -> None:
        """Watch the names and values in the body of a class."""
        self._classes.append(vars(kind))
        self._class_names += vars(kind)
        self._class_values += vars(kind).values()

    def add_sequence(self, items: Iterable[Any]) -> None:
        """Watch the items of a list, tuple or set."""
        seen = list(items)
        self._sequences.append(items)
        self._sequence_lengths.append(len(seen))
        self._items += seen

    def add_function(self, function: FunctionType) -> None:
        """Watch code and defaults of a function: reloaders replace them in place."""
        self._functions.append(function)
        self._codes.append(function.__code__)
        self._function_defaults.append(function.__defaults__)

    def add_cell(self, cell: CellType) -> None:
        """Watch what a closure's variable holds; REQUIRES that it holds something."""
        self._cells.append(cell)
        self._cell_contents.append(cell.cell_contents)

    def add_call(self, function: Callable[[], Any]) -> None:
        """Watch what a function returns, by equality: for what is in no container of Python."""
        self._calls.append(function)
        self._results.append(function())

    def unchanged(self) -> bool:
        """Whether everything is as it was when it was added."""
        flat = chain.from_iterable
        dicts = self._dicts
        try:
            return (
                list(map(len, dicts)) == self._lengths
                and all(map(_is, flat(map(dict.values, dicts)), self._values))
                and all(map(_is, flat(map(dict.keys, dicts)), self._names))
                and all(map(_is, map(type, self._objects), self._types))
                and list(map(len, self._sequences)) == self._sequence_lengths
                and all(map(_is, flat(self._sequences), self._items))
                and _same(flat(map(_class_values, self._classes)), self._class_values)
                and _same(flat(self._classes), self._class_names)
                and all(map(_is, map(_code, self._functions), self._codes))
                and all(map(_is, map(_defaults, self._functions), self._function_defaults))
                and all(map(_is, map(_contents, self._cells), self._cell_contents))
                and [function() for function in self._calls] == self._results
            )
        except (RuntimeError, ValueError):  # resized while being read; a cell was emptied
            return False


def _same(now: Iterable[Any], then: list[Any]) -> bool:
    current = list(now)
    return len(current) == len(then) and all(map(_is, current, then))
