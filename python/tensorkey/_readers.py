"""Digests of what is no argument: functions, closures, instances, modules, of any framework.

A ``Reading`` (_reading.py) walks the thing; its tensors count by content, framework and device.
What it cannot read is given by name, for the caller to assume or to refuse.
"""

from __future__ import annotations

import pathlib
import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from tensorkey import _core, errors
from tensorkey._encoding import item, name, sequence, text
from tensorkey._fork import renew_after_fork
from tensorkey._reading import Reading

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, as far as one can tell
FRAMEWORKS = frozenset({"torch", "numpy", "jax", "jaxlib", "tensorflow", "keras"})


def is_torch_module(value: Any) -> bool:
    """Whether this is a module of PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_tensor(value: Any) -> bool:
    """Whether this is a tensor of a framework that is loaded; NumPy's scalars are none."""
    for module, kinds in (
        ("torch", ("Tensor",)),
        ("numpy", ("ndarray",)),
        ("jax", ("Array",)),
        ("tensorflow", ("Tensor", "Variable")),
        ("keras", ("Variable",)),
    ):
        framework = sys.modules.get(module)
        if framework is not None and any(
            isinstance(value, getattr(framework, kind, ())) for kind in kinds
        ):
            return True
    return False


def kind_of(tensor: Any) -> str:
    """Say whose a tensor is and where: results of one must not answer another."""
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__} {getattr(tensor, 'device', '')}"
    swapped = not getattr(getattr(tensor, "dtype", None), "isnative", True)
    weak = getattr(tensor, "weak_type", False) is True  # of JAX: what it is added to says the dtype
    return f"{kind}{' byteswapped' * swapped}{' weak' * weak}"


def leaf_of(value: Any) -> str | None:
    """Return the text of a dtype, device, path and the like, which says all of it."""
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, range):
        return repr(value)
    torch, tf = sys.modules.get("torch"), sys.modules.get("tensorflow")
    if torch is not None and isinstance(
        value, (torch.dtype, torch.device, torch.layout, torch.memory_format)
    ):
        return str(value)
    if tf is not None and isinstance(value, tf.DType):
        return str(value.name)
    return None


class AnyFramework:
    """How a reading looks at things of any framework; `instance` is walked like a layer."""

    roots = FRAMEWORKS | {"tensorkey"}

    def __init__(self, instance: Any = None, skipped: frozenset[str] = frozenset()) -> None:
        self._instance = instance
        self._skipped = skipped

    def tensor(self, value: Any) -> Any | None:
        """Return a tensor as it is."""
        return value if is_tensor(value) else None

    def leaf(self, value: Any) -> str | None:
        """Return the text of a dtype, device, path and the like."""
        if is_torch_module(value):
            return None
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(
            value, torch.utils._contextlib._DecoratorContextManager
        ):
            return str(getattr(value, "mode", ""))  # no_grad and the like, in a closure
        return leaf_of(value)

    def is_module(self, value: Any) -> bool:
        """Whether this is walked by its class and its attributes."""
        return value is self._instance or is_torch_module(value)

    def attributes(self, module: Any) -> dict[str, Any]:
        """Return what counts, by name; submodules in order."""
        if not is_torch_module(module):
            own = attributes_of(module)
            return {key: value for key, value in sorted(own.items()) if key not in self._skipped}
        torch = sys.modules["torch"]
        if isinstance(module, torch.jit.ScriptModule):
            raise errors.Unsupported("a scripted module shows no code")
        own = attributes_of(module)
        for unread in vars(torch.nn.Module()):
            if unread != "training":
                own.pop(unread, None)
        if module is self._instance:
            own = {key: value for key, value in own.items() if key not in self._skipped}
        own |= module._parameters | module._buffers
        submodules: dict[str, Any] = module._modules
        return dict(sorted(own.items())) | submodules

    def containers(self, module: Any) -> Iterator[dict[str, Any]]:
        """Yield the registries."""
        if is_torch_module(module):
            yield from (module._parameters, module._buffers, module._modules)

    def foreign(self, module: Any, path: str, reading: Reading) -> bytes | None:
        """Return None: no layer has a form of its own."""
        return None


class _Contents:
    """Content keys of tensors that were digested before, found again by their change digest."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.Lock()

    def digest(self, tensors: list[Any]) -> bytes:
        change = _core.change_digest(tensors)
        with self._lock:
            known = self._known.get(change)
            if known is not None:
                self._known.move_to_end(change)
                return known
        keys = (item(b"K", bytes(_core.key(tensor))) for tensor in tensors)
        digest = _core.blake3(sequence(b"t", keys))
        with self._lock:
            self._known[change] = digest
            if len(self._known) > 256:
                self._known.popitem(last=False)
        return digest


_contents = _Contents()


def digest_of(reading: Reading) -> bytes:
    """Digest everything that a reading found.

    Raises
    ------
    tensorkey.errors.Unsupported
        For a tensor that has no key.
    """
    structure = _core.blake3(reading.structure)
    if not reading.tensors:
        return structure
    kinds = [text(kind_of(tensor)) for tensor in reading.tensors]
    return _core.blake3(
        item(b"B", structure)
        + sequence(b"t", map(text, reading.names))
        + sequence(b"t", kinds)
        + item(b"B", _contents.digest(reading.tensors))
    )


def read(value: Any) -> Reading:
    """Read a function, a module or a nest."""
    return Reading(AnyFramework(), value)


def read_instance(value: Any, skipped: frozenset[str]) -> Reading:
    """Read an object by the code of its class and by its attributes.

    Raises
    ------
    tensorkey.errors.Unsupported
        For an object that holds more than attributes, such as a subclass of list.
    """
    base = hidden_base(type(value))
    if base is not None:
        raise errors.Unsupported(f"what a {base.__qualname__} holds cannot be read; use state=")
    return Reading(AnyFramework(value, skipped), value)


def hidden_base(kind: type) -> type | None:
    """Return a base that is no Python class, and may hold what no attribute shows."""
    for base in kind.__mro__:
        if not base.__flags__ & _HEAP_TYPE and base is not object:
            return base
    return None


def attributes_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object by name, those in slots too."""
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        for key, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType):
                try:
                    found.setdefault(key, member.__get__(value))
                except AttributeError:  # not assigned
                    continue
    return found


def class_name(kind: type) -> bytes:
    """Encode a class by its name."""
    return name("class", f"{kind.__module__}.{kind.__qualname__}")
