"""A model without its cached layers: the same layers and weights, around what was cached."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import keras
from keras.src.layers import InputLayer
from keras.src.models.functional import Functional

from tensorkey._cached import Cached
from tensorkey._keras_layers import base_attributes

# Of Keras's own state: what a copy has in common with its original.
_KEPT = (
    *("built", "_called", "_path", "_build_shapes_dict", "_input_spec", "_trainable", "autocast"),
    *("supports_jit", "_supports_masking", "_convert_input_args", "activity_regularizer"),
    *("_allow_non_tensor_positional_args", "_losses_override", "_auto_config"),
)
_STORES = ("trainable_variables", "non_trainable_variables", "layers", "metrics", "seed_generators")


def strip(model: Any) -> Any:
    """Return a model, or a layer, without its cached layers.

    Parameters
    ----------
    model
        Sequential, functional or subclassed, with cached layers anywhere in it; or a cached layer.
        It stays as it is.

    Returns
    -------
    keras.layers.Layer
        The layer inside for each cached one, and around it the same layers: their weights are those
        of `model`, not copies, so training one trains the other. Models and layers that hold a
        cached one are made anew: a model is not compiled. A model without cached layers is returned
        itself.

    Examples
    --------
    >>> import keras
    >>> from tensorkey.keras import CachedLayer, strip
    >>> encoder = CachedLayer(keras.layers.Dense(8))
    >>> model = keras.Sequential([keras.Input((4,)), encoder, keras.layers.Dense(1)])
    >>> plain = strip(model)
    >>> plain.layers[0] is encoder.layer, plain.layers[1] is model.layers[1]
    (True, True)
    """
    return _Stripped().of(model)


class _Stripped:
    """What was made of the layers of one model. Each is made once."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def of(self, layer: Any) -> Any:
        """Return a layer without cached ones; what is no layer, such as an operation, itself."""
        if not isinstance(layer, keras.layers.Layer) or not _any_cached(layer):
            return layer
        made = self._made.get(id(layer))
        if made is None:
            self._made[id(layer)] = made = self._make(layer)
        return made

    def _make(self, layer: Any) -> Any:
        if isinstance(layer, Cached):
            return self.of(layer.layer)  # type: ignore[attr-defined]
        if isinstance(layer, keras.Sequential):
            return self._sequential(layer)
        return self._functional(layer) if isinstance(layer, Functional) else self._copied(layer)

    def _sequential(self, model: Any) -> Any:
        layers = [self.of(layer) for layer in model.layers]
        first = model._layers[0]
        if isinstance(first, InputLayer):
            layers.insert(0, _input(first.output))
        made = keras.Sequential(layers, name=model.name)
        made._trainable = model._trainable
        return made

    def _functional(self, model: Any) -> Any:
        inputs = keras.tree.map_structure(_input, model.input)
        outputs = model._run_through_graph(inputs, operation_fn=self.of)
        made = keras.Model(inputs, outputs, name=model.name)
        made._trainable = model._trainable
        return made

    def _copied(self, layer: Any) -> Any:
        """Return a layer of the same class with the same attributes, but for the cached layers."""
        kind: Any = type(layer)
        made = kind.__new__(kind)
        base: Any = keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer
        base.__init__(made, name=layer.name, dtype=layer.dtype_policy)
        for name in _STORES:  # first, in their order: an attribute that is there is left alone
            self._fill(made._tracker, layer._tracker, name)
        own = {**vars(layer), **vars(layer).get("_modules", {}), **_parameters(layer)}
        for name, value in own.items():
            if name in _KEPT or (name not in base_attributes() and not name.startswith("_self_")):
                setattr(made, name, self._nest(value))
        if layer._tracker.locked:
            made._lock_state()
        if hasattr(made, "_track_variables"):  # PyTorch
            made._track_variables()
        return made

    def _fill(self, into: Any, tracker: Any, name: str) -> None:
        if name in tracker.config:
            for held in tracker.config[name][1]:
                into.add_to_store(name, self.of(held))

    def _nest(self, value: Any) -> Any:
        if isinstance(value, keras.layers.Layer):
            return self.of(value)
        if type(value).__module__.partition(".")[0] not in ("builtins", "keras", "collections"):
            return value
        if isinstance(value, dict):
            made = {key: self._nest(held) for key, held in value.items()}
            return value if _same(made.values(), value.values()) else made
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            items = [self._nest(held) for held in value]
            if _same(items, value):
                return value
            return items if isinstance(value, list) else tuple(items)
        return value


def _any_cached(layer: Any) -> bool:
    return any(isinstance(part, Cached) for part in layer._flatten_layers())


def _input(tensor: Any) -> Any:
    """Return an input like one that there is."""
    return keras.Input(
        batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name, sparse=tensor.sparse
    )


def _parameters(layer: Any) -> dict[str, Any]:
    """Return parameters and buffers that a layer of PyTorch holds itself."""
    held = vars(layer)
    return {**held.get("_parameters", {}), **held.get("_buffers", {})}


def _same(one: Iterable[Any], other: Iterable[Any]) -> bool:
    return all(map(operator.is_, one, other))
