"""A reading of a layer: what its answers depend on besides the input, found in one walk.

It yields

- a *structure*: classes, the code of their functions below the framework's own, versions, plain
  attributes and nests of them, training flags, all in the canonical encoding (_encoding.py);
- *tensors*: parameters, buffers and tensors among the attributes, each under a name;
- a *watch* over every container it read, so that a later call knows cheaply whether the layer must
  be walked again (a replaced submodule, a new Parameter, another flag);
- *assumptions*, by name: what it could not read, and what the caller has it ignore.

Not seen: globals that a function uses, functions it calls by name, files, environment variables.
Nothing is pickled; no ``repr`` and no ``id`` reaches the structure.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

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

    def foreign(self, module: Any, path: str, reading: Reading) -> bytes | None:
        """Encode a layer that no walk over attributes could read; None for any other.

        Its tensors are reported by ``reading.add_tensor``, what may change by ``reading.watch``.
        """


class Reading:
    """One walk over a layer.

    Parameters
    ----------
    framework
        What knows its classes.
    layer
        The layer, or a nest of plain values and tensors.
    root
        What the layer is called in names.
    ignore
        What is left out: names of attributes of any layer, or dotted paths below `layer`.
    """

    def __init__(
        self,
        framework: Framework,
        layer: Any,
        root: str = "layer",
        ignore: Collection[str] = (),
    ) -> None:
        self.watch = Watch()
        self.names: list[str] = []
        self.tensors: list[Any] = []
        self.modules: list[Any] = []
        self.functions: list[types.FunctionType] = []
        self.unread: list[str] = []
        self.ignored: list[str] = []
        self.foreign = False
        """Whether the layer itself was encoded by ``Framework.foreign``."""
        self._framework = framework
        self._root = root
        self._ignore = frozenset(ignore)
        self._seen: dict[int, bytes] = {}
        self._classes: dict[type, bytes] = {}
        self._paths: dict[str, int] = {}
        self._keep: list[Any] = []  # what _seen knows by its address must stay alive
        self.structure = self._value(layer, root)
        self._seen.clear()
        self._keep.clear()

    @property
    def assumptions(self) -> list[str]:
        """What the layer is assumed not to depend on, in words."""
        return self.unread + [f"ignored by the caller: {path}" for path in self.ignored]

    def counted(self) -> list[tuple[str, Any]]:
        """Return names and tensors whose contents answers depend on: all of them."""
        return list(zip(self.names, self.tensors, strict=True))

    def add_tensor(self, tensor: Any, path: str) -> bytes:
        """Note a tensor under a name; return what stands for it."""
        path = self._unique(path)
        self.names.append(path)
        self.tensors.append(tensor)
        return name("tensor", path)

    def value(self, value: Any, path: str) -> bytes:
        """Encode a part of a layer that ``Framework.foreign`` encodes."""
        return self._value(value, path)

    def class_of(self, kind: type) -> bytes:
        """Encode a class of such a part by its code."""
        return self._class(kind)

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
            return self._remember(value, self.add_tensor(tensor, path))
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
        foreign = framework.foreign(module, path, self)
        if foreign is not None:
            self.foreign = path == self._root
            return foreign
        self.watch.add_object(module)
        for container in framework.containers(module):
            if isinstance(container, dict):
                self.watch.add_dict(container)
            else:
                self.watch.add_sequence(container)
        parts = [self._class(type(module))]
        for key, value in framework.attributes(module).items():
            where = f"{path}.{key}"
            if not self._ignores(where, key):
                parts += [text(key), self._value(value, where)]
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
            return self.add_tensor(value, path)
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
            if not self._ignores(where):
                yield self._value(key, where) + self._value(value, where)

    def _ignores(self, path: str, key: str = "") -> bool:
        if not self._ignore:
            return False
        ignored = key in self._ignore or path.partition(".")[2] in self._ignore
        if ignored:
            self.ignored.append(path)
        return ignored

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
