"""How a fingerprint reads scripted, traced, frozen and loaded modules of PyTorch.

They hold graphs in the place of Python code. The encoding has nothing of Python in it, so that a
program in C++ computes the same from a ``torch::jit::Module``: docs/key_format.md, "Structure of a
TorchScript module", is the recipe.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tensorkey import errors
from tensorkey._encoding import PLAIN, name, sequence, text
from tensorkey._reading import Reading

_C: Any = torch._C
_MANGLED = re.compile(r"___torch_mangle_\d+\.|\[warn_id=\d+\]")  # numbers of this process
_SCALARS = {"f": "f", "i": "i", "s": "s", "c": "c", "t": "t", "ival": "ival"}
_LISTS = {"fs": "fs", "is": "is_", "ss": "ss", "ts": "ts"}

_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_NO_DEFAULT = inspect.Parameter.empty

_Tensor = Callable[[torch.Tensor, str], bytes]


def read(module: Any, path: str, reading: Reading) -> bytes:
    """Encode a scripted module and report its tensors and what may change.

    Raises
    ------
    tensorkey.errors.Unsupported
        If it holds an object that cannot be read, such as packed weights.
    """
    seen: dict[int, bytes] = {}

    def add(tensor: torch.Tensor, where: str) -> bytes:
        known = seen.get(id(tensor))
        if known is None:
            seen[id(tensor)] = known = reading.add_tensor(tensor, where)
        return known

    tree = list(_tree(module._c, path))
    methods = [_Methods(script, where) for script, where in tree]
    names = frozenset(found for part in methods for found in part.names)
    parts = [
        part.encode(add) + _attributes(script, where, names, add)
        for part, (script, where) in zip(methods, tree, strict=True)
    ]

    # Graphs never change. Attributes do; the reading keeps the tensors, so that ids stay theirs.
    def now() -> list[bytes]:
        found = _tree(module._c, path)
        return [_attributes(script, where, names, _identity) for script, where in found]

    reading.watch.add_call(now)
    return sequence(b"J", parts)


def _identity(tensor: torch.Tensor, path: str) -> bytes:
    return b"%d" % id(tensor)


def _tree(script: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Yield a module and, in order, those below it."""
    yield script, path
    for key, child in _C.ModuleDict(script).items():
        yield from _tree(child, f"{path}.{key}")


def _unmangled(value: str) -> str:
    return _MANGLED.sub("", value)


def _printed(graph: Any) -> str:
    """Print a graph without the places in files: inner blocks show them whatever is asked."""
    lines = graph.str(False).split("\n")
    return _unmangled("\n".join(line.partition(" # ")[0] for line in lines))


class _Methods:
    """The code of one module: the graph of each method, with all that it calls inlined."""

    def __init__(self, script: Any, path: str) -> None:
        self.names: set[str] = set()
        """Of all attributes, of any module, that the code reads or writes."""
        self._type = script.qualified_name
        self._path = path
        self._texts: list[bytes] = []
        self._constants: list[tuple[str, Any]] = []
        graphs = [
            (key, script._get_method(key).inlined_graph) for key in sorted(script._method_names())
        ]
        graphs += [("(pre-hook)", hook.inlined_graph) for hook in script._get_forward_pre_hooks()]
        graphs += [("(hook)", hook.inlined_graph) for hook in script._get_forward_hooks()]
        for key, graph in graphs:
            self._texts += [text(key), text(_printed(graph))]
            constants = list(self._walk(graph))
            self._constants += [(f"{path}.{key}#{i}", value) for i, value in enumerate(constants)]

    def _walk(self, block: Any) -> Iterator[Any]:
        """Note names of attributes; yield constants in order: the text rounds them."""
        for node in block.nodes():
            kind = node.kind()
            if kind in ("prim::GetAttr", "prim::SetAttr"):
                self.names.add(node.s("name"))
            elif kind == "prim::Constant" and node.hasAttribute("value"):
                yield _attribute(node, "value")
            for attribute in node.attributeNames():
                if node.kindOf(attribute) == "g":
                    yield from self._walk(node.g(attribute))
            for inner in node.blocks():
                yield from self._walk(inner)

    def encode(self, tensor: _Tensor) -> bytes:
        constants = (_value(value, where, tensor) for where, value in self._constants)
        return (
            text(_unmangled(self._type))
            + text(self._path)
            + sequence(b"l", self._texts)
            + sequence(b"l", constants)
        )


def _attribute(node: Any, key: str) -> Any:
    kind = node.kindOf(key)
    getter = _SCALARS.get(kind) or _LISTS.get(kind)
    if getter is None:
        raise errors.Unsupported(f"a constant of kind {kind} in a scripted module cannot be read")
    return getattr(node, getter)(key)


def _attributes(script: Any, path: str, names: frozenset[str], tensor: _Tensor) -> bytes:
    """Encode parameters, buffers and what the code uses of the other attributes."""
    submodules = {key for key, _ in _C.ModuleDict(script).items()}
    found = {key for key, _ in _C.ParameterDict(script).items()}
    found |= {key for key, _ in _C.BufferDict(script).items()}
    found |= {key for key in names if script.hasattr(key)}
    return sequence(
        b"d",
        (
            text(key) + _value(script.getattr(key), f"{path}.{key}", tensor)
            for key in sorted(found - submodules)
        ),
    )


def _value(value: Any, path: str, tensor: _Tensor) -> bytes:
    encode = PLAIN.get(type(value))
    if encode is not None:
        return encode(value)
    if isinstance(value, torch.Tensor):
        return tensor(value, path)
    if isinstance(value, (list, tuple)):
        tag = b"t" if isinstance(value, tuple) else b"l"
        return sequence(tag, (_value(v, f"{path}[{i}]", tensor) for i, v in enumerate(value)))
    if isinstance(value, dict):
        return sequence(b"d", _pairs(value, path, tensor))
    if isinstance(value, torch.device):
        return name("device", str(value))
    raise errors.Unsupported(
        f"{path}, a {type(value).__module__}.{type(value).__qualname__} in a scripted module, "
        "cannot be read"
    )


def _pairs(value: dict[Any, Any], path: str, tensor: _Tensor) -> Iterator[bytes]:
    for i, (key, entry) in enumerate(value.items()):
        where = f"{path}[{i}]"
        yield _value(key, where, tensor) + _value(entry, where, tensor)


def called(layer: nn.Module, method: str) -> Callable[..., Any]:
    """Return a method as what has its signature: that of a script is in its schema."""
    function: Any = getattr(layer, method)
    schema = (
        getattr(function, "schema", None) if isinstance(layer, torch.jit.ScriptModule) else None
    )
    if schema is None:
        return function  # type: ignore[no-any-return]
    parameters = []
    for argument in schema.arguments[1:]:  # without self
        kind = inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else _POSITIONAL
        default = argument.default_value if argument.has_default_value() else _NO_DEFAULT
        parameters.append(inspect.Parameter(argument.name, kind, default=default))

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call
