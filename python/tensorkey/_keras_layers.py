"""How a fingerprint reads layers of Keras 3."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras.src.backend.common import variables
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.utils import module_utils

from tensorkey import _core, errors
from tensorkey._fingerprint import Fingerprint
from tensorkey._reading import Reading
from tensorkey._watch import Watch

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_SEED = "(seed "
_ENGINE = frozenset({"_below", "_engine", "_fingerprint", "_options"})
"""Of a cached layer inside another: what it does not compute with."""


# Of all backends; keras.Variable was that of one before Keras 3.7.
_VARIABLE: Any = getattr(variables, "KerasVariable", None) or variables.Variable


def value_of(variable: Any) -> Any:
    """Return what a variable of JAX holds now, uncast; in a StatelessScope, what it says.

    Raises
    ------
    tensorkey.errors.Unsupported
        While fit, evaluate or predict of a model have the contents, and after a step that failed.
    """
    scope = get_stateless_scope()
    value = None if scope is None else scope.get_current_value(variable)
    if value is None:
        value = variable._value
    if value is None:
        raise errors.Unsupported(f"{variable.path} holds no value: fit or predict has it")
    if type(value).__name__ == "ArrayImpl" and value.is_deleted():
        raise errors.Unsupported(f"{variable.path} was donated or deleted")
    return value


class KerasReading(Reading):
    """A reading that also knows the variables, wherever it found them.

    Seeds of layers of Keras do not count: a layer that draws from one is refused, and one that does
    not, such as a Dropout in inference, has another in every process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._variables: dict[int, Any] = {}
        self._seeds: set[str] = set()
        super().__init__(*args, **kwargs)

    def counted(self) -> list[tuple[str, Any]]:
        """Return names and tensors whose contents answers depend on."""
        return [pair for pair in super().counted() if pair[0] not in self._seeds]

    def add_tensor(self, tensor: Any, path: str) -> bytes:
        """Note a tensor under a name; return what stands for it."""
        encoded = super().add_tensor(tensor, path)
        if path.rpartition(".")[2].startswith(_SEED):
            self._seeds.add(self.names[-1])
        return encoded

    @property
    def variables(self) -> list[Any]:
        """The variables."""
        return [*self._variables.values()]

    def _value(self, value: Any, path: str) -> bytes:
        if isinstance(value, _VARIABLE):
            self._variables[id(value)] = value
        return super()._value(value, path)


class KerasFingerprint(Fingerprint):
    """What a layer is; in a StatelessScope, whose variables hold other values, read anew."""

    def read(self) -> KerasReading:
        """Return a reading that is true now."""
        scoped = get_stateless_scope() is not None
        with self._lock:
            reading = self._reading
            if scoped or reading is None or not reading.watch.unchanged():
                reading = KerasReading(self._framework, self._layer(), ignore=self._ignore)
                if not scoped:
                    self._reading = reading
            return reading  # type: ignore[return-value]


class _Unreadable:
    """Stands for a config that get_config() could not give."""


class KerasLayers:
    """How a fingerprint reads layers.

    A layer of Keras itself is known by its config, its variables, its sublayers and the functions
    it holds; any other layer by its code and attributes too.
    """

    roots = frozenset({"keras", "tensorflow", "torch", "jax", "tensorkey"})

    def __init__(self) -> None:
        below = keras.backend.backend()
        guarded = below == "torch"  # there variables are its tensors
        self._scoped = below == "jax"
        self.unguarded: str | None = (
            None if guarded else f"variables of Keras on {below} count no versions"
        )

    def tensor(self, value: Any) -> Any | None:
        """Return what to digest of a variable or tensor."""
        if isinstance(value, _VARIABLE):
            return value_of(value) if self._scoped else value._value
        if keras.ops.is_tensor(value) and not isinstance(value, keras.KerasTensor):
            return value
        return None

    def leaf(self, value: Any) -> str | None:
        """Return the name of a dtype policy or of a backend's dtype."""
        if isinstance(value, keras.DTypePolicy):
            return f"{value.name} {value.compute_dtype} {value.variable_dtype}"
        if type(value).__name__ in ("DType", "dtype") and type(value).__module__ != "numpy":
            return str(value)
        return None

    def is_module(self, value: Any) -> bool:
        """Whether this is a layer."""
        return isinstance(value, keras.layers.Layer)

    def attributes(self, module: Any) -> dict[str, Any]:
        """Return what counts."""
        own = {key: value for key, value in vars(module).items() if key not in base_attributes()}
        own = {
            key: value
            for key, value in own.items()
            if not key.startswith("_self_") and key not in _ENGINE
        }
        by_keras = type(module).__module__.partition(".")[0] == "keras"
        if by_keras:
            own = {key: value for key, value in own.items() if _foreign(value)}
        if by_keras or isinstance(module, keras.Model):
            own["(config)"] = _config(module)
        own["(policy)"] = module.dtype_policy
        own["(trainable)"] = module.trainable
        own = dict(sorted(own.items()))
        if by_keras:
            own |= {f"{_SEED}{i})": seed.state for i, seed in enumerate(module._seed_generators)}
        own |= {f"variables[{i}]": variable for i, variable in enumerate(variables_of(module))}
        own |= {f"layers[{i}]": layer for i, layer in enumerate(module._layers)}
        return own

    def containers(self, module: Any) -> Iterator[Any]:
        """Yield the lists of variables and sublayers."""
        yield module._trainable_variables
        yield module._non_trainable_variables
        yield module._seed_generators
        yield module._layers
        for variable in variables_of(module):
            yield vars(variable)

    def foreign(self, module: Any, path: str, reading: Reading) -> bytes | None:
        """Return None: no layer has a form of its own."""
        return None

    def guard(self, tensors: Sequence[Any], modules: Sequence[Any]) -> Any:
        """Return a guard on PyTorch, None elsewhere.

        Arrays of NumPy among the tensors are left to the strict check.
        """
        if self.unguarded is not None:
            return None
        try:
            return _LayerGuard(self, tensors, modules)
        except errors.Unsupported:  # a tensor made in inference mode
            return None


class _LayerGuard:
    """Whether tensors of PyTorch have their versions and layers their attributes and variables."""

    def __init__(
        self, framework: KerasLayers, tensors: Sequence[Any], modules: Sequence[Any]
    ) -> None:
        self._watch = Watch()
        for module in modules:
            self._watch.add_object(module)
            for container in framework.containers(module):
                if isinstance(container, dict):
                    self._watch.add_dict(container)
                else:
                    self._watch.add_sequence(container)
        hooks = [getattr(m, name) for m in modules for name in _HOOKS if hasattr(m, name)]
        plain = [tensor for tensor in tensors if type(tensor).__module__ != "numpy"]
        self._guard = _core.Guard(plain, hooks, [])

    def unchanged(self) -> bool:
        return self._watch.unchanged() and self._guard.unchanged()

    def hooked(self) -> bool:
        return self._guard.hooked()

    def trainable(self) -> bool:
        return self._guard.trainable()


def _foreign(value: Any) -> bool:
    """Whether an attribute of one of Keras's own layers may say more than its config does."""
    root = type(value).__module__.partition(".")[0]
    return isinstance(value, types.FunctionType) or root not in ("keras", "builtins")


@functools.cache
def base_attributes() -> frozenset[str]:
    """Return the names of what every layer or model of Keras holds."""
    return frozenset(vars(keras.layers.Layer())) | frozenset(vars(keras.Model()))


def variables_of(layer: Any) -> list[Any]:
    seeds = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *seeds]


@contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Keep Keras from loading TensorFlow, where it is not, to ask whether a value is of it."""
    lazy = module_utils.tensorflow
    if "tensorflow" in sys.modules or lazy._available is not None:
        yield
        return
    lazy._available = False
    try:
        yield
    finally:
        lazy._available = None


def _config(layer: Any) -> Any:
    try:
        with _without_tensorflow():
            config = layer.get_config()
    except Exception:  # whatever a user's get_config raises
        return _Unreadable()
    # Functions are read as code; a serialized one would carry the name of its file.
    return {
        key: value
        for key, value in config.items()
        if key != "name" and not isinstance(getattr(layer, key, None), types.FunctionType)
    }
