"""The globals of functions: what their code names, what of that counts, and what is assumed.

Plain values count, and things of libraries by their names and versions. Everything else is named:
helper functions, classes of one's own, lists, tensors. It is assumed not to change.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
import sysconfig
import types
from collections.abc import Iterator
from typing import Any

from tensorkey._encoding import PLAIN, code, item, name, plain, sequence, text, version_of
from tensorkey._readers import FRAMEWORKS, leaf_of
from tensorkey._reading import Readable

_MUTATORS = frozenset(
    {
        *("append", "extend", "insert", "pop", "remove", "clear", "add", "discard", "update"),
        *("setdefault", "popitem", "appendleft", "popleft", "sort", "reverse"),
    }
)
MISSING = object()
"""In the place of a global that there is not: a builtin, or one to come."""


class Code:
    """What the code of a function, and of the functions nested in it, names."""

    def __init__(self, value: types.CodeType) -> None:
        self.encoded = code(value)
        self.globals: dict[str, None] = {}
        self.imports: dict[str, None] = {}
        self.written: set[str] = set()
        """Variables of its closure that it assigns to."""
        self.written_globals: set[str] = set()
        self.written_attributes: set[str] = set()
        """Attributes of its first argument that it assigns to."""
        self.mutates = False
        """Whether it may change a list, dict or set in place."""
        first = value.co_varnames[0] if value.co_argcount else ""
        steps = list(dis.get_instructions(value))
        self.written_attributes.update(_stored_attributes(steps, first))
        self._walk(value, frozenset(value.co_freevars))

    def _walk(self, value: types.CodeType, free: frozenset[str]) -> None:
        """Look at one code object; `free`: what in it is a variable of the function's closure."""
        for step in dis.get_instructions(value):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                self.globals[step.argval] = None
            elif step.opname == "IMPORT_NAME":
                self.imports[step.argval.partition(".")[0]] = None
            elif step.opname == "STORE_GLOBAL":
                self.written_globals.add(step.argval)
            elif step.opname == "STORE_DEREF" and step.argval in free:
                self.written.add(step.argval)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"):
                self.mutates = True
            elif step.opname in ("LOAD_METHOD", "LOAD_ATTR"):
                self.mutates = self.mutates or step.argval in _MUTATORS
        for constant in value.co_consts:
            if isinstance(constant, types.CodeType):
                self._walk(constant, free & set(constant.co_freevars))


def _stored_attributes(steps: list[dis.Instruction], first: str) -> Iterator[str]:
    """Yield the names in ``first.name = ...`` and ``first.name += ...``."""
    loads = [step.opname.startswith("LOAD_FAST") and _last(step.argval) == first for step in steps]
    for at, step in enumerate(steps[2:], 2):
        if (
            step.opname == "STORE_ATTR"
            and loads[at - 1]
            or step.opname == "LOAD_ATTR"
            and steps[at - 1].opname == "COPY"
            and loads[at - 2]
        ):
            yield step.argval


def _last(names: Any) -> Any:
    return names[-1] if isinstance(names, tuple) else names


@functools.lru_cache(maxsize=4096)
def _read_code(value: types.CodeType) -> Code:
    return Code(value)


def code_of(function: types.FunctionType) -> Code:
    """Return the code of a function as it is now."""
    return _read_code(function.__code__)


def globals_of(function: types.FunctionType) -> tuple[list[Any], bytes, list[str]]:
    """Return what the globals of a function are now, their encoding, and what is assumed."""
    own, space = code_of(function), function.__globals__
    values = [space.get(key, MISSING) for key in own.globals]
    found, assumed = [], []
    for key, value in zip(own.globals, values, strict=True):
        if value is MISSING or getattr(value, "__wrapped__", None) is function:
            continue  # a builtin, or the function itself
        part = None if key in own.written_globals else library_or_constant(value)
        found.append(text(key) + (item(b"N", b"") if part is None else part))
        if part is None:
            assumed.append(f"global {key}: {described(value)}")
    return values, sequence(b"t", found), assumed


def functions_of(functions: list[types.FunctionType]) -> tuple[bytes, list[str]]:
    """Encode the globals of functions; return what is assumed too."""
    read = [globals_of(function) for function in functions]
    return sequence(b"t", [part for _, part, _ in read]), [a for _, _, more in read for a in more]


def library_or_constant(value: Any) -> bytes | None:
    """Encode a global that is read to the end; None for one that is to be assumed."""
    if _is_constant(value):
        try:
            return plain(value)
        except ValueError:  # an int of thousands of digits
            return None
    kind = type(value)
    leaf = value.name if isinstance(value, enum.Enum) else leaf_of(value)
    if leaf is not None:
        return name(f"{kind.__module__}.{kind.__qualname__}", leaf)
    for home, path in _places(value):
        found: Any = sys.modules.get(home)
        for part in path.split(".") if path else ():
            found = getattr(found, part, None)
        if found is value and installed(root_of(home)):
            return name("library", f"{home} {path}") + text(version_of(home))
    return None


def _is_constant(value: Any) -> bool:
    """Whether this is a plain value to the last item, and none can be changed in place."""
    if type(value) in (tuple, frozenset):
        return all(map(_is_constant, value))
    return type(value) in PLAIN


def _places(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the module of a thing and its name there, as far as it knows them."""
    if isinstance(value, types.ModuleType):
        yield value.__name__, ""
        return
    home = "numpy" if type(value).__name__ == "ufunc" else getattr(value, "__module__", None)
    for attribute in ("__qualname__", "__name__"):  # torch.relu has another __qualname__
        path = getattr(value, attribute, None)
        if isinstance(home, str) and isinstance(path, str) and path:
            yield home, path


@functools.cache
def installed(root: str) -> bool:
    """Whether a package is Python's, or was installed and so changes with its version."""
    if root in sys.stdlib_module_names and root != "__main__":
        return True
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    paths = sysconfig.get_paths()
    return bool(version_of(root)) and file.startswith((paths["purelib"], paths["platlib"]))


def described(value: Any) -> str:
    kind = type(value)
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, (types.FunctionType, type, Readable)):
        noun = "class" if isinstance(value, type) else "function"
        return f"{noun} {value.__module__}.{getattr(value, '__qualname__', '')}"
    return f"{kind.__module__}.{kind.__qualname__}"


def root_of(value: Any) -> str:
    home = value.__name__ if isinstance(value, types.ModuleType) else value
    home = home if isinstance(home, str) else getattr(value, "__module__", None)
    return home.partition(".")[0] if isinstance(home, str) else ""


def roots_of(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    """Yield the packages that a function and its helpers name."""
    seen.add(id(function))
    own = code_of(function)
    yield from own.imports
    values = [function.__globals__.get(key) for key in own.globals]
    for cell in function.__closure__ or ():
        try:
            values.append(cell.cell_contents)
        except ValueError:
            continue
    for value in values:
        value = value.__wrapped__ if isinstance(value, Readable) else value
        yield from {root_of(value), type(value).__module__.partition(".")[0]}
        if not isinstance(value, types.FunctionType) or id(value) in seen:
            continue
        if root_of(value) not in FRAMEWORKS and not installed(root_of(value)):
            yield from roots_of(value, seen)
