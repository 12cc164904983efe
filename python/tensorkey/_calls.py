"""Calls as bytes: the arguments of a function in the canonical encoding, tensors by their keys.

Beside what _encoding.py lists:

    K  content key of a tensor, after the text of its class and device
    n  also a subclass of a plain type, followed by the value; a dataclass, a named tuple, an
       OrderedDict or a set, followed by its items; a dtype, device or path with its text

Arguments are read to the last value or not at all: what cannot be read has no key.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import types
from collections import OrderedDict
from typing import Any

from tensorkey import _core, errors
from tensorkey._encoding import PLAIN, item, name, sequence, text, version_of
from tensorkey._globals import functions_of, roots_of
from tensorkey._readers import (
    attributes_of,
    class_name,
    digest_of,
    hidden_base,
    is_tensor,
    is_torch_module,
    kind_of,
    leaf_of,
    read,
)
from tensorkey._reading import Readable, Reading

GRADIENTS = (
    "gradients of an argument are recorded: wrap the call in torch.no_grad() or detach the argument"
)
_CODE = (types.FunctionType, types.MethodType, functools.partial, Readable)
_MAX_DEPTH = 100


class NoKey(Exception):
    """A call has no key; the text is the reason."""


class Encoder:
    """Encodes the parts of one call, and remembers a tensor of each kind that it met."""

    def __init__(self) -> None:
        self.kinds: dict[str, Any] = {}
        self.roots: set[str] = set()
        """Packages that functions among the arguments name."""
        self.assumed: list[str] = []
        self._seen: set[int] = set()

    def encode(self, value: Any, path: str, depth: int = 0) -> bytes:
        """Encode a value.

        Raises
        ------
        NoKey
            For what cannot be read; the reason names the path.
        """
        encode = PLAIN.get(type(value))
        try:
            if encode is not None:
                return encode(value)
            if depth > _MAX_DEPTH:
                raise NoKey(f"{path.partition('[')[0]} is nested too deeply")
            nest = self._nest(value, path, depth + 1)
            return self._leaf(value, path) if nest is None else nest
        except (errors.Error, ValueError) as error:
            raise NoKey(f"{path} has no key: {error}") from None

    def _nest(self, value: Any, path: str, depth: int) -> bytes | None:
        kind = type(value)
        if isinstance(value, (tuple, list)):
            items = [self.encode(v, f"{path}[{i}]", depth) for i, v in enumerate(value)]
            return self._named(
                value, path, sequence(b"t" if isinstance(value, tuple) else b"l", items)
            )
        if kind in (dict, OrderedDict):
            pairs = []
            for key, entry in value.items():
                where = f"{path}[{key!r}]" if type(key) in (str, int) else f"{path}[...]"
                pairs += [self.encode(key, where, depth), self.encode(entry, where, depth)]
            return self._named(value, path, sequence(b"d", pairs))
        if kind in (set, frozenset):
            items = sorted(self.encode(v, f"{path}{{}}", depth) for v in value)
            return name(kind.__name__, "") + sequence(b"s", items)
        if kind is slice:
            parts = (value.start, value.stop, value.step)
            return class_name(slice) + self.encode(parts, path, depth)
        if isinstance(value, enum.Enum):
            return item(b"E", text(f"{kind.__module__}.{kind.__qualname__}") + text(value.name))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            hidden = hidden_base(kind)
            if hidden not in (None, dict, OrderedDict):
                raise NoKey(f"{path}: what a {kind.__qualname__} holds cannot be read")
            held = list(value.items()) if isinstance(value, dict) else []
            fields = attributes_of(value)
            pairs = [
                text(key) + self.encode(entry, f"{path}.{key}", depth)
                for key, entry in sorted(fields.items())
            ]
            return class_name(kind) + sequence(b"d", pairs) + self.encode(held, path, depth)
        return None

    def _named(self, value: Any, path: str, encoded: bytes) -> bytes:
        """Put the class before a value of a subclass, which must hold nothing else."""
        kind = type(value)
        if kind.__module__ == "builtins":
            return encoded
        if getattr(value, "__dict__", None):
            raise NoKey(f"{path}: no key for a {kind.__qualname__} with attributes of its own")
        return class_name(kind) + encoded

    def _leaf(self, value: Any, path: str) -> bytes:
        kind = type(value)
        if is_tensor(value):
            return self._tensor(value)
        for base in (str, int, float, complex, bytes):
            if isinstance(value, base):
                return self._named(value, path, class_name(kind) + PLAIN[base](value))
        leaf = leaf_of(value)
        if leaf is not None:
            return name(f"{kind.__module__}.{kind.__qualname__}", leaf)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.dtype) and not value.hasobject:
            return name("numpy.dtype", value.descr.__repr__() if value.fields else value.str)
        if isinstance(value, (type, types.BuiltinFunctionType)):
            return self._known(value, path)
        if isinstance(value, _CODE) or is_torch_module(value):
            return self._thing(value, path)
        return self._tensor(value)

    def _tensor(self, value: Any) -> bytes:
        kind = kind_of(value)
        if records_gradients(value):
            raise NoKey(GRADIENTS)
        self.kinds.setdefault(kind, value)
        return text(kind) + item(b"K", bytes(_core.key(value)))

    def _known(self, value: Any, path: str) -> bytes:
        """Encode a class or a builtin of a library, which its version tells apart."""
        owner = getattr(value, "__self__", None)
        if not isinstance(owner, (type(None), type, types.ModuleType)):
            return name("method", value.__name__) + self.encode(owner, path)
        module = getattr(value, "__module__", None) or "builtins"
        version = version_of(module)
        if not version and module.partition(".")[0] not in sys.stdlib_module_names:
            raise NoKey(f"{path}: no key for the class {value.__qualname__}")
        return name(type(value).__name__, f"{module}.{value.__qualname__}") + text(version)

    def _thing(self, value: Any, path: str) -> bytes:
        """Encode a function by its code, a module by its weights too."""
        reading = read(value)
        if reading.unread:
            raise NoKey(f"{path}: no key for {reading.unread[0].replace('layer', path, 1)}")
        if any(records_gradients(tensor) for tensor in reading.tensors):
            raise NoKey(GRADIENTS)
        return self.thing(reading)

    def thing(self, reading: Reading) -> bytes:
        """Encode what was read of a function, a module or an instance."""
        for tensor in reading.tensors:
            self.kinds.setdefault(kind_of(tensor), tensor)
        part, assumed = functions_of(reading.functions)
        self.assumed += assumed
        for function in reading.functions:
            self.roots.update(roots_of(function, self._seen))
        return item(b"B", digest_of(reading)) + part


def records_gradients(value: Any) -> bool:
    """Whether gradients of this tensor are being recorded."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.requires_grad and torch.is_grad_enabled())
    if "tensorflow" in sys.modules and type(value).__module__.startswith(("tensorflow", "keras")):
        from tensorkey._tensorflow_backend import recording

        return recording()
    return False


def gradient_mode() -> bool:
    """Whether results may be parts of a graph of PyTorch: one made without must not answer then."""
    torch = sys.modules.get("torch")
    return torch is None or bool(torch.is_grad_enabled())


def transform() -> str | None:
    """Return the transformation of a framework that the call is under, if any."""
    if "torch" in sys.modules:
        from tensorkey._torch_backend import transform as torch_transform

        reason = torch_transform()
        if reason is not None:
            return reason
    tf = sys.modules.get("tensorflow")
    if tf is not None and not tf.executing_eagerly():
        return "a graph is being traced (tf.function)"
    return None
