"""What the result of a function depends on besides its arguments, read anew for every call.

- its name, its code and that of what is nested in it, field by field;
- each variable of its closure, read like an attribute of a layer;
- its globals: plain values and libraries with their versions count, everything else is named and
  assumed not to change: helper functions, classes, lists, tensors;
- the environment of the frameworks that it, its helpers and its arguments are of.

A variable that the function writes to cannot count, or it would never be found again: it is an
assumption. That is seen in the code, and of a list or a dict after the first call that changed it.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from operator import is_
from typing import Any

from tensorkey import _core, errors
from tensorkey._calls import NoKey
from tensorkey._encoding import PLAIN, item, plain, sequence, text, version_of
from tensorkey._globals import MISSING, Code, code_of, functions_of, globals_of, root_of, roots_of
from tensorkey._readers import digest_of, read


class _Thing:
    """A variable of a closure, or a callable that has no code of its own."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.assumed: list[str] = []
        self._known: tuple[Any, bytes] | None = None

    def part(self, value: Any) -> bytes:
        encode = PLAIN.get(type(value))
        if encode is not None:
            return encode(value)
        try:
            reading = read(value)
            assumed = [found.replace("layer", self.where, 1) for found in reading.unread]
            part, more = functions_of(reading.functions)
            self.assumed = assumed + more
            return item(b"B", digest_of(reading)) + part
        except (errors.Error, ValueError) as error:
            raise NoKey(f"{self.where} has no key: {error}") from None


class Scope:
    """One function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.roots: frozenset[str] = frozenset()
        """Top-level packages that the function and its helpers name."""
        self._excluded: dict[str, str] = {}
        self._things: dict[str, _Thing] = {}
        self._globals: tuple[Code, list[Any], bytes] | None = None
        self._global_assumptions: list[str] = []
        about = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
        self._name = plain(tuple(map(str, about)))

    @property
    def assumptions(self) -> list[str]:
        """What could not be read, by name."""
        things = [text for thing in list(self._things.values()) for text in thing.assumed]
        return [*self._excluded.values(), *things, *self._global_assumptions]

    def code(self) -> Code | None:
        """Return the code as it is now; None if there is none."""
        function = self.function
        return code_of(function) if isinstance(function, types.FunctionType) else None

    def parts(self) -> dict[str, bytes]:
        """Encode everything, by name.

        Raises
        ------
        NoKey
            For a tensor in a closure that has no key.
        """
        own = self.code()
        function = self.function
        if own is None or not isinstance(function, types.FunctionType):
            version = version_of(getattr(function, "__module__", None) or "")
            self.roots = frozenset({root_of(function)})
            part = self._thing("function").part(function)
            return {"name": self._name, "function": part + text(version)}
        parts = {"name": self._name, "code": own.encoded}
        cells = function.__closure__ or ()
        for variable, cell in zip(function.__code__.co_freevars, cells, strict=True):
            where = f"closure {variable}"
            if variable in own.written:
                self._excluded[where] = f"{where}: the function writes it"
            if where in self._excluded:
                continue
            try:
                parts[where] = self._thing(where).part(cell.cell_contents)
            except ValueError:  # not yet assigned
                continue
        parts["globals"] = self._global_part(own, function)
        return parts

    def exclude(self, changed: list[str]) -> bool:
        """Leave out what a call changed, if it is all the function's own to change."""
        own = self.code()
        if own is None or not own.mutates or not all(w.startswith("closure ") for w in changed):
            return False
        for where in changed:
            self._excluded[where] = f"{where}: the function changes it"
            self._things.pop(where, None)
        return True

    def _thing(self, where: str) -> _Thing:
        return self._things.setdefault(where, _Thing(where))

    def _global_part(self, own: Code, function: types.FunctionType) -> bytes:
        known = self._globals
        space = function.__globals__
        if known is not None and known[0] is own:
            values = (space.get(key, MISSING) for key in own.globals)
            if all(map(is_, values, known[1])):
                return known[2]
        values_now, encoded, self._global_assumptions = globals_of(function)
        self.roots = frozenset(roots_of(function, set()))
        self._globals = (own, values_now, encoded)
        return encoded


def digest(parts: dict[str, bytes]) -> bytes:
    """Digest parts under their names, in order."""
    return _core.blake3(sequence(b"d", (text(where) + part for where, part in parts.items())))
