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

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from operator import is_
from typing import Any

from tensorkey import _core, errors
from tensorkey._calls import NoKey
from tensorkey._encoding import PLAIN, code, item, name, plain, sequence, text, version_of
from tensorkey._fingerprint import Readable
from tensorkey._readers import FRAMEWORKS, digest_of, read

_MUTATORS = frozenset(
    {
        *("append", "extend", "insert", "pop", "remove", "clear", "add", "discard", "update"),
        *("setdefault", "popitem", "appendleft", "popleft", "sort", "reverse"),
    }
)
_MISSING = object()


class Code:
    """What the code of a function, and of the functions nested in it, names."""

    def __init__(self, value: types.CodeType) -> None:
        self.encoded = code(value)
        self.globals: dict[str, None] = {}
        self.imports: dict[str, None] = {}
        self.written: set[str] = set()
        """Variables and attributes that it assigns to."""
        self.mutates = False
        """Whether it may change a list, dict or set in place."""
        for step in _steps(value):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                self.globals[step.argval] = None
            elif step.opname == "IMPORT_NAME":
                self.imports[step.argval.partition(".")[0]] = None
            elif step.opname in ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "DELETE_ATTR"):
                self.written.add(step.argval)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
                self.mutates = True
            elif step.opname in ("LOAD_METHOD", "LOAD_ATTR"):
                self.mutates = self.mutates or step.argval in _MUTATORS


def _steps(value: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(value)
    for constant in value.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _steps(constant)


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
            self.assumed = [found.replace("layer", self.where, 1) for found in reading.unread]
            return item(b"B", digest_of(reading))
        except (errors.Error, ValueError) as error:
            raise NoKey(f"{self.where} has no key: {error}") from None


class Scope:
    """One function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.roots: frozenset[str] = frozenset()
        """Top-level packages that the function and its helpers name."""
        self._excluded: dict[str, str] = {}
        self._code: tuple[types.CodeType, Code] | None = None
        self._things: dict[str, _Thing] = {}
        self._globals: tuple[list[Any], bytes] | None = None
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
        now = getattr(self.function, "__code__", None)
        if not isinstance(now, types.CodeType):
            return None
        if self._code is None or self._code[0] is not now:
            self._code = (now, Code(now))
        return self._code[1]

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
            self.roots = frozenset({_root(function)})
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
        space = function.__globals__
        values = [space.get(key, _MISSING) for key in own.globals]
        known = self._globals
        if known is not None and len(known[0]) == len(values) and all(map(is_, values, known[0])):
            return known[1]
        found, assumptions = [], []
        for key, value in zip(own.globals, values, strict=True):
            if value is _MISSING or getattr(value, "__wrapped__", None) is function:
                continue  # a builtin, or the function itself
            part = None if key in own.written else _library_or_plain(value)
            found.append(text(key) + (item(b"N", b"") if part is None else part))
            if part is None:
                assumptions.append(f"global {key}: {_described(value)}")
        encoded = sequence(b"t", found)
        self.roots = frozenset(_roots(function, set()))
        self._global_assumptions = assumptions
        self._globals = (values, encoded)
        return encoded


def _library_or_plain(value: Any) -> bytes | None:
    """Encode a global that is read to the end; None for one that is to be assumed."""
    if type(value) in PLAIN or isinstance(value, tuple) and type(value) is tuple:
        try:
            return plain(value)
        except (TypeError, ValueError):
            return None
    module = isinstance(value, types.ModuleType)
    home = value.__name__ if module else getattr(value, "__module__", None)
    own_name = getattr(value, "__qualname__", None)
    if type(value).__name__ == "ufunc":
        home, own_name = "numpy", value.__name__
    if not isinstance(home, str) or not (module or isinstance(own_name, str)):
        return None
    if not _installed(home.partition(".")[0]):
        return None
    return name("library", home if module else f"{home}.{own_name}") + text(version_of(home))


@functools.cache
def _installed(root: str) -> bool:
    """Whether a package is Python's, or was installed and so changes with its version."""
    if root in sys.stdlib_module_names and root != "__main__":
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    paths = sysconfig.get_paths()
    return bool(version_of(root)) and file.startswith((paths["purelib"], paths["platlib"]))


def _described(value: Any) -> str:
    kind = type(value)
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, (types.FunctionType, type, Readable)):
        noun = "class" if isinstance(value, type) else "function"
        return f"{noun} {value.__module__}.{getattr(value, '__qualname__', '')}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _root(value: Any) -> str:
    home = value.__name__ if isinstance(value, types.ModuleType) else value
    home = home if isinstance(home, str) else getattr(value, "__module__", None)
    return home.partition(".")[0] if isinstance(home, str) else ""


def _roots(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    """Yield the packages that a function and its helpers name."""
    seen.add(id(function))
    own = Code(function.__code__)
    yield from own.imports
    values = [function.__globals__.get(key) for key in own.globals]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:
            continue
    for value in values:
        value = value.__wrapped__ if isinstance(value, Readable) else value
        yield from {_root(value), type(value).__module__.partition(".")[0]}
        if not isinstance(value, types.FunctionType) or id(value) in seen:
            continue
        if _root(value) not in FRAMEWORKS and not _installed(_root(value)):
            yield from _roots(value, seen)


def digest(parts: dict[str, bytes]) -> bytes:
    """Digest parts under their names, in order."""
    return _core.blake3(sequence(b"d", (text(where) + part for where, part in parts.items())))
