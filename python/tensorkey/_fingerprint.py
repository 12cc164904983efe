"""The fingerprint of a layer: what its answers depend on besides the input.

A ``Reading`` walks the layer once and yields

- its *structure*: classes, the code of their functions below the framework's own, versions,
  plain attributes and nests of them, training flags, all in the canonical encoding (_encoding.py);
- its *tensors*: parameters, buffers and tensors among the attributes, each under a name;
- a *watch* over every container it read, so that a later call knows cheaply whether the layer must
  be walked again (a replaced submodule, a new Parameter, another flag);
- what it could *not read*, by name: the layer is assumed not to depend on it.

``Fingerprint`` keeps one reading and its digest: BLAKE3 over the structure and the content key of
each tensor, names sorted. Per call it asks the watch and digests the bytes of all tensors with the
process-secret XXH3 (``change_digest``), and computes the BLAKE3 only when one of them differs.

Not seen: globals that a function uses, functions it calls by name, files, environment variables.
Nothing is pickled; no ``repr`` and no ``id`` reaches the digest.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import platform
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from tensorkey import _core
from tensorkey._encoding import PLAIN, code, item, name, plain, sequence, text, version_of
from tensorkey._watch import Watch

_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
)
_BUILTINS = (types.BuiltinFunctionType, types.MethodWrapperType, *_DESCRIPTORS)
_SKIPPED_IN_CLASSES = frozenset(
    {
        *("__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__"),
        *("__annotate_func__", "__annotations_cache__", "__abstractmethods__", "_abc_impl"),
        *("__parameters__", "__orig_bases__", "__dataclass_fields__", "__dataclass_params__"),
        *("__firstlineno__", "__static_attributes__", "__no_type_check__"),
    }
)


class Readable:
    """A wrapper that counts as the function under it."""

    __wrapped__: Callable[..., Any]


class Framework(Protocol):
    """What a reading asks of a framework."""

    roots: frozenset[str]
    """Top-level packages whose classes are known by name and version, their code unread."""

    def tensor(self, value: Any) -> Any | None:
        """Return what to digest if this is a tensor of the framework."""

    def leaf(self, value: Any) -> str | None:
        """Return the name of a dtype, device and the like."""

    def is_module(self, value: Any) -> bool:
        """Whether this is a layer, to be walked as a part of the tree."""

    def attributes(self, module: Any) -> dict[str, Any]:
        """Return the attributes of a layer that count, by name."""

    def containers(self, module: Any) -> Iterator[dict[str, Any] | list[Any]]:
        """Yield the containers beside ``vars(module)`` that attributes() was taken from."""


class Reading:
    """One walk over a layer."""

    def __init__(self, framework: Framework, layer: Any) -> None:
        self.watch = Watch()
        self.names: list[str] = []
        self.tensors: list[Any] = []
        self.modules: list[Any] = []
        self.functions: list[types.FunctionType] = []
        self.unread: list[str] = []
        self._framework = framework
        self._seen: dict[int, bytes] = {}
        self._classes: dict[type, bytes] = {}
        self._paths: dict[str, int] = {}
        self._keep: list[Any] = []  # what _seen knows by its address must stay alive
        self.structure = self._value(layer, "layer")
        self._seen.clear()
        self._keep.clear()

    def _value(self, value: Any, path: str) -> bytes:
        encode = PLAIN.get(type(value))
        if encode is not None:
            return encode(value)
        seen = self._seen.get(id(value))
        if seen is not None:
            return seen
        self._keep.append(value)
        framework = self._framework
        tensor = framework.tensor(value)
        if tensor is not None:
            return self._remember(value, self._tensor(tensor, path))
        leaf = framework.leaf(value)
        if leaf is not None:
            return name(f"{type(value).__module__}.{type(value).__qualname__}", leaf)
        if isinstance(value, enum.Enum):
            return item(b"E", text(_full_name(type(value))) + text(value.name))
        # A cycle comes back to the name of where it began.
        path = self._unique(path)
        self._seen[id(value)] = name("seen", path)
        if framework.is_module(value):
            # Shared modules stay known under their first path.
            return self._module(value, path)
        return self._remember(value, self._composite(value, path))

    def _tensor(self, tensor: Any, path: str) -> bytes:
        path = self._unique(path)
        self.names.append(path)
        self.tensors.append(tensor)
        return name("tensor", path)

    def _unique(self, path: str) -> str:
        """Return a name that no other tensor or container has: swapped ones must show."""
        count = self._paths.get(path, 0)
        self._paths[path] = count + 1
        return f"{path}#{count}" if count else path

    def _remember(self, value: Any, encoded: bytes) -> bytes:
        self._seen[id(value)] = encoded
        return encoded

    def _module(self, module: Any, path: str) -> bytes:
        framework = self._framework
        self.modules.append(module)
        self.watch.add_object(module)
        for container in framework.containers(module):
            if isinstance(container, dict):
                self.watch.add_dict(container)
            else:
                self.watch.add_sequence(container)
        parts = [self._class(type(module))]
        for key, value in framework.attributes(module).items():
            parts += [text(key), self._value(value, f"{path}.{key}")]
        return sequence(b"M", parts)

    def _composite(self, value: Any, path: str) -> bytes:
        kind = type(value)
        tag = b"" if kind.__module__ == "builtins" else text(_full_name(kind))
        if isinstance(value, (list, tuple)):
            self.watch.add_sequence(value)
            body = (self._value(entry, f"{path}[{i}]") for i, entry in enumerate(value))
            return tag + sequence(b"t" if isinstance(value, tuple) else b"l", body)
        if isinstance(value, dict):
            self.watch.add_dict(value)
            return tag + sequence(b"d", self._pairs(value, path))
        if isinstance(value, (set, frozenset)):
            self.watch.add_sequence(value)
            return tag + sequence(b"s", sorted(self._value(v, f"{path}{{}}") for v in value))
        for base in (str, int, float, complex, bytes):
            if isinstance(value, base):
                return tag + PLAIN[base](value)
        if isinstance(value, types.FunctionType):
            return self._function(value, path)
        if isinstance(value, Readable):
            return self._value(value.__wrapped__, path)
        if isinstance(value, _BUILTINS):
            known = name("builtin", f"{getattr(value, '__module__', '')}.{value.__qualname__}")
            owner = getattr(value, "__self__", None)  # of a bound one, such as "a".join
            bound = not isinstance(owner, (type(None), type, types.ModuleType))
            return known + self._value(owner, path) if bound else known
        if isinstance(value, types.MethodType):
            return self._value(value.__func__, path) + self._value(value.__self__, path)
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return sequence(b"p", (self._value(part, path) for part in parts))
        if isinstance(value, type):
            return name("class", _full_name(value))
        if isinstance(value, types.ModuleType):
            return name("module", value.__name__)
        if isinstance(value, weakref.ref):
            return item(b"w", self._value(value(), path))
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self._tensor(value, path)
        if numpy is not None and isinstance(value, (numpy.generic, numpy.dtype)):
            scalar = isinstance(value, numpy.generic)
            kind_of = value.dtype if scalar else value
            return name("numpy", kind_of.str) + plain(value.tobytes() if scalar else None)
        if dataclasses.is_dataclass(value) and hasattr(value, "__dict__"):
            self.watch.add_object(value)
            return text(_full_name(kind)) + sequence(b"d", self._pairs(vars(value), path))
        self.unread.append(f"{path}: {_full_name(kind)}")
        return name("unread", _full_name(kind))

    def _pairs(self, mapping: Mapping[Any, Any], path: str) -> Iterator[bytes]:
        for key, value in mapping.items():
            where = f"{path}.{key}" if isinstance(key, str) else f"{path}[key]"
            yield self._value(key, where) + self._value(value, where)

    def _function(self, function: types.FunctionType, path: str) -> bytes:
        root = (function.__module__ or "").partition(".")[0]
        if function.__closure__ is None and (
            root in self._framework.roots or root in sys.stdlib_module_names
        ):
            return name("function", f"{function.__module__}.{function.__qualname__}")
        self.watch.add_function(function)
        self.functions.append(function)
        parts = [code(function.__code__), self._value(function.__defaults__, path)]
        parts.append(self._value(function.__kwdefaults__, path))
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                content = cell.cell_contents
            except ValueError:  # not yet assigned
                continue
            self.watch.add_cell(cell)
            parts += [text(variable), self._value(content, f"{path}, closure {variable}")]
        return sequence(b"F", parts)

    def _class(self, kind: type) -> bytes:
        known = self._classes.get(kind)
        if known is not None:
            return known
        parts = []
        for base in kind.__mro__:
            root = base.__module__.partition(".")[0]
            parts += [text(_full_name(base)), text(version_of(base.__module__))]
            if root in self._framework.roots or root in sys.stdlib_module_names:
                continue
            self.watch.add_class(base)
            for key, value in sorted(vars(base).items()):
                if key not in _SKIPPED_IN_CLASSES:
                    parts += [text(key), self._member(value, f"{_full_name(base)}.{key}")]
        self._classes[kind] = encoded = sequence(b"K", parts)
        return encoded

    def _member(self, value: Any, path: str) -> bytes:
        """Encode what stands in the body of a class."""
        if isinstance(value, (staticmethod, classmethod)):
            return self._value(value.__func__, path)
        if isinstance(value, property):
            parts = (value.fget, value.fset, value.fdel)
            return sequence(b"P", (self._value(part, path) for part in parts))
        if isinstance(value, functools.cached_property):
            return self._value(value.func, path)
        return self._value(value, path)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclasses.dataclass(frozen=True)
class State:
    """A layer at one moment."""

    structure: bytes
    """Digest of all but the contents of the tensors: the same layer with other weights."""
    digest: bytes
    """Digest of everything."""


class Fingerprint:
    """The strict fingerprint: every call looks at every container and every byte."""

    def __init__(self, framework: Framework, layer: Callable[[], Any]) -> None:
        self._framework = framework
        self._layer = layer
        self._reading: Reading | None = None
        self._known: tuple[Reading, bytes, State] | None = None

    def reading(self) -> Reading:
        """Return a reading that is true now."""
        reading = self._reading
        if reading is None or not reading.watch.unchanged():
            self._reading = reading = Reading(self._framework, self._layer())
        return reading

    def state(self, reading: Reading) -> State:
        """Return the state of the layer; REQUIRES that `reading` is true.

        Raises
        ------
        tensorkey.errors.Unsupported
            For a tensor that has no key.
        """
        change = _core.change_digest(reading.tensors)
        known = self._known
        if known is not None and known[0] is reading and known[1] == change:
            return known[2]
        tensors = sorted(zip(reading.names, map(_content, reading.tensors), strict=True))
        structure = _core.blake3(
            sequence(b"t", [text(platform.python_version()), reading.structure])
        )
        content = (text(path) + item(b"K", key) for path, key in tensors)
        state = State(structure, _core.blake3(item(b"B", structure) + sequence(b"t", content)))
        self._known = (reading, change, state)
        return state


def _content(tensor: Any) -> bytes:
    return bytes(_core.key(tensor))
