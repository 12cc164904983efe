"""How a fingerprint reads functions of JAX, and the pytrees and modules that they use.

A function is known by its code, its defaults and what its code reaches: variables of its closure,
what ``functools.partial`` and bound methods hold, and globals, all of these read in turn. Functions
of installed packages are known by name and version, and by what they enclose: ``jax.vmap(f)`` and
``jax.jit(f)`` are read as f. Modules of Flax and Equinox and instances of one's own classes are
read by their classes and attributes.

A variable that the function itself writes to is left out: it runs when a function is traced, not
when it is called.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from tensorkey._encoding import code, name, sequence, text, version_of
from tensorkey._globals import (
    MISSING,
    Code,
    code_of,
    installed,
    library_or_constant,
)
from tensorkey._readers import attributes_of, hidden_base, leaf_of
from tensorkey._reading import Readable, Reading

JIT: Any = type(jax.jit(lambda: None))
"""Of functions that ``jax.jit`` returns."""

_LIBRARIES = frozenset({"jax", "jaxlib", "numpy", "ml_dtypes", "flax", "equinox", "optax"})
_LINEN = frozenset({"parent", "name"})  # fields of every module of Flax that are no options
_WRAPPERS = frozenset({"jax", "jaxlib", "equinox", "tensorkey"})
_MARKS = frozenset({"__wrapped__", "__signature__"})  # of functools.wraps, on functions
_NAMESPACES = (types.SimpleNamespace,)


class Root:
    """What is cached: a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class JaxFunctions:
    """How a fingerprint reads a function.

    Parameters
    ----------
    root
        What is read.
    """

    roots = _LIBRARIES | {"tensorkey"}
    unguarded: str | None = None

    def __init__(self, root: Any) -> None:
        self._root = root
        self._watch: Any = None

    def tensor(self, value: Any) -> Any | None:
        """Return an array; of a key for random numbers its data."""
        if not isinstance(value, jax.Array) or getattr(value, "weak_type", False):
            return None
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return jax.random.key_data(value)
        return value

    def leaf(self, value: Any) -> str | None:
        """Return the text of a device, a sharding, the structure of a tree and the like."""
        if isinstance(value, (jax.sharding.Sharding, jax.tree_util.PyTreeDef)):
            shown = str(value)
            return None if " at 0x" in shown else shown
        if isinstance(value, jax.Device):
            return f"{value.platform}:{value.id}"
        if type(value) is object:  # stands for what was not given
            return ""
        return leaf_of(value)

    def is_module(self, value: Any) -> bool:
        """Whether this is walked: functions, instances of classes, and classes of one's own."""
        if value is self._root:
            return not _is_nest(value)
        if isinstance(value, (types.FunctionType, JIT, jax.Array)):
            return True
        if isinstance(value, type):
            return not self._is_library(value)
        if isinstance(value, (types.ModuleType, Readable)) or _is_nest(value):
            return False
        kind = type(value)
        if isinstance(value, _NAMESPACES):
            return True
        if hidden_base(kind) is not None:
            return False
        root = kind.__module__.partition(".")[0]
        if root in _LIBRARIES or dataclasses.is_dataclass(kind):
            return True
        return not installed(root) or _is_pytree(value)

    def _is_library(self, kind: type) -> bool:
        root = kind.__module__.partition(".")[0]
        return root in self.roots or installed(root)

    def attributes(self, module: Any) -> dict[str, Any]:
        """Return what counts."""
        wrapped = getattr(module, "__wrapped__", None)
        root = type(module).__module__.partition(".")[0]
        if root in _WRAPPERS and callable(wrapped):
            return {"__wrapped__": wrapped}  # custom_jvp, checkpoint, a cached function
        flax = sys.modules.get("flax")
        if flax is not None:
            linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
            if linen is not None and isinstance(module, linen.Module):
                return _of_linen(module)
            if nnx is not None and isinstance(module, nnx.Variable):
                return {"value": module.get_raw_value(), **module.get_metadata()}
            if nnx is not None and isinstance(module, nnx.Module):
                own = attributes_of(module)
                return {key: own[key] for key in sorted(own) if not key.startswith("_pytree__")}
        return dict(sorted(attributes_of(module).items()))

    def containers(self, module: Any) -> Iterator[Any]:
        """Yield nothing: attributes are those of ``vars``, or watched one by one."""
        yield from ()

    def foreign(self, module: Any, path: str, reading: Reading) -> bytes | None:
        """Encode functions and classes."""
        if module is self._root:
            self._watch = reading.watch
            return None
        if isinstance(module, types.FunctionType):
            return _Function(module, path, reading).encoded()
        if isinstance(module, jax.Array):  # weakly typed: what it is added to says the dtype
            traced = isinstance(module, jax.core.Tracer)
            return name("jax", "weak") + reading.add_tensor(
                module if traced else np.asarray(module), path
            )
        if isinstance(module, JIT):
            return name("jax", "jit") + reading.value(module.__wrapped__, path)
        if isinstance(module, type):
            return reading.class_of(module)
        for key in attributes_of(module).keys() - getattr(module, "__dict__", {}).keys():
            reading.watch.add_call(_Held(lambda key=key: getattr(module, key)))  # type: ignore[misc]
        return None

    def guard(self, tensors: Sequence[Any], modules: Sequence[Any]) -> Any:
        """Return a guard; arrays of NumPy, which can be written to, are left to strict checks."""
        return _Guard(self._watch, tensors)


class _Guard:
    """Whether everything is the same objects, and no array was deleted."""

    def __init__(self, watch: Any, tensors: Sequence[Any]) -> None:
        self._watch = watch
        self._arrays = [tensor for tensor in tensors if isinstance(tensor, jax.Array)]

    def unchanged(self) -> bool:
        if any(array.is_deleted() for array in self._arrays):
            return False
        return bool(self._watch.unchanged())

    def hooked(self) -> bool:
        return False

    def trainable(self) -> bool:
        return False


class _Held:
    """Whether a place that no Watch knows holds the very same object."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get
        self._seen = get()

    def __call__(self) -> bool:
        try:
            return self._get() is self._seen
        except AttributeError:
            return False


class _Function:
    """A function that is being read."""

    def __init__(self, function: types.FunctionType, path: str, reading: Reading) -> None:
        self._function = function
        self._path = path
        self._reading = reading
        self._own = code_of(function)
        # Not function.__module__: jax.vmap(f) and functools.wraps give it that of f.
        self._home = str(function.__globals__.get("__name__", ""))
        self._modules: set[int] = set()

    def encoded(self) -> bytes:
        function, reading, path = self._function, self._reading, self._path
        watch = reading.watch
        watch.add_function(function)
        root = self._home.partition(".")[0]
        if function.__code__.co_qualname.startswith("__create_fn__"):
            return name("function", "of a dataclass")  # its fields say the rest
        library = root in JaxFunctions.roots or installed(root)
        if library:
            known = name("function", f"{self._home}.{function.__code__.co_qualname}")
            parts = [known, text(version_of(self._home))]
        else:
            parts = [code(function.__code__), *self._globals()]
        parts.append(reading.value(function.__defaults__, path))
        parts.append(reading.value(function.__kwdefaults__, path))
        for key, value in vars(function).items():
            if key not in _MARKS:
                parts += [text(key), reading.value(value, f"{path}.{key}")]
        for variable, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            where = f"{path}, closure {variable}"
            if variable in self._own.written:
                if not library:
                    reading.unread.append(f"{where}: the function writes it")
                continue
            try:
                content = cell.cell_contents
            except ValueError:  # not yet assigned
                continue
            watch.add_cell(cell)
            parts += [text(variable), reading.value(content, where)]
        return sequence(b"F", parts)

    def _globals(self) -> Iterator[bytes]:
        own, space = self._own, self._function.__globals__
        for key in own.globals:
            where = f"{self._path}, global {key}"
            if key in own.written_globals:
                self._reading.unread.append(f"{where}: the function writes it")
                continue
            self._reading.watch.add_call(_Held(lambda key=key: space.get(key, MISSING)))  # type: ignore[misc]
            value = space.get(key, MISSING)
            if value is not MISSING:
                yield text(key) + self._value(value, where, own)

    def _value(self, value: Any, where: str, own: Code) -> bytes:
        known = library_or_constant(value)
        if known is not None:
            return known
        if not isinstance(value, types.ModuleType):
            return self._reading.value(value, where)
        # A module of one's own: what the code may ask it for, by name.
        parts = [name("module", value.__name__)]
        if id(value) in self._modules:
            return parts[0]
        self._modules.add(id(value))
        space = vars(value)
        for key in sorted(_names_of(self._function.__code__) & space.keys()):
            self._reading.watch.add_call(_Held(lambda key=key: space.get(key, MISSING)))  # type: ignore[misc]
            parts += [text(key), self._value(space[key], f"{where}.{key}", own)]
        return sequence(b"t", parts)


def _names_of(value: types.CodeType) -> set[str]:
    names = set(value.co_names)
    for constant in value.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names


def _is_nest(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict, set, frozenset))


def _is_pytree(value: Any) -> bool:
    return not jax.tree_util.all_leaves([value])


def _of_linen(module: Any) -> dict[str, Any]:
    fields = [field.name for field in dataclasses.fields(module) if field.name not in _LINEN]
    own = {key: getattr(module, key) for key in fields if hasattr(module, key)}
    if module.scope is not None:  # bound to its variables
        own["(variables)"] = module.variables
    return own
