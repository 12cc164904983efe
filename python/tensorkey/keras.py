"""Cached layers for Keras 3, on its TensorFlow and PyTorch backends.

Examples
--------
>>> import keras, numpy as np
>>> from tensorkey.keras import CachedLayer
>>> encoder = keras.layers.Dense(8)
>>> encoder.trainable = False
>>> encoder = CachedLayer(encoder, memory="64 MiB")
>>> batch = np.ones((4, 3), dtype="float32")
>>> bool((encoder(batch) == encoder(batch)).numpy().all())
True
>>> encoder.stats.misses
1
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope

from tensorkey import errors
from tensorkey._backend import Bypass, Unsuited
from tensorkey._cached import Cached
from tensorkey._fingerprint import Fingerprint
from tensorkey._frontend import Engine
from tensorkey._keras_layers import KerasLayers, variables_of
from tensorkey._options import Options

__all__ = ["CachedLayer"]

_OPTIONS = frozenset(field.name for field in dataclasses.fields(Options))
_SAVED = (
    *("memory", "rows", "chunk", "by", "fingerprint", "ignore", "environment", "trim", "probe"),
    *("bits", "index", "bypass", "on_error", "verify", "tolerance", "codec"),
)
_UNFROZEN = (
    "weights are trainable while gradients are recorded: set layer.trainable = False, or call it "
    "outside the GradientTape"
)


_flash_attention: Any = getattr(keras.config, "is_flash_attention_enabled", lambda: None)


def _settings() -> tuple[object, ...]:
    """Return the settings of Keras that layers look at when they run."""
    config = keras.config
    return (
        keras.__version__,
        config.floatx(),
        config.epsilon(),
        config.image_data_format(),
        _flash_attention(),
    )


def _load_backend() -> Any:
    name = keras.backend.backend()
    if name not in ("tensorflow", "torch"):
        raise errors.Unsupported(
            f"[CachedLayer] the Keras backend is {name!r}; expected 'tensorflow' or 'torch'"
        )
    return importlib.import_module(f"tensorkey._{name}_backend")


def _backend_of(wrapper: CachedLayer, below: Any) -> Any:
    """Return the engine's backend: the framework below, running a Keras layer."""

    class KerasRows(below.Rows):  # type: ignore[misc]
        name = f"keras-{keras.backend.backend()}"

        def run(self, *args: Any, **kwargs: Any) -> Any:
            return wrapper._run_rows(args, kwargs)

        def unfit_inputs(self, tensors: Sequence[Any]) -> str | None:
            return wrapper._unfit_inputs(tensors)

        def unfit_layer(self) -> str | None:
            return below.unfit_layer(wrapper._fingerprint)  # type: ignore[no-any-return]

        def environment(self, tensor: Any, portable: bool) -> tuple[object, ...]:
            return (*below.environment(tensor, portable), *_settings())

        def save(self, tensors: Sequence[Any]) -> Any:
            kept = []
            for part in wrapper.layer._flatten_layers():
                kept += variables_of(part)[len(part._trainable_variables) :]
            return [(variable, keras.ops.copy(variable.value)) for variable in kept]

        def restore(self, saved: Any) -> None:
            for variable, value in saved:
                variable.assign(value)

    return KerasRows()


@keras.saving.register_keras_serializable(package="tensorkey")
class CachedLayer(Cached, keras.layers.Wrapper):  # type: ignore[misc]
    """A layer that remembers its answers, row by row, by the content of its inputs.

    Eager calls are cached. Symbolic calls, tf.function, and fit or predict without
    ``run_eagerly=True`` run the layer itself. A layer without trainable weights runs as in
    inference, also inside fit.

    Parameters
    ----------
    layer
        A Keras layer or model. Its inputs and outputs are nests of tensors; see
        :class:`tensorkey.torch.CachedLayer`.
    **options
        Those of :class:`tensorkey.torch.CachedLayer` but `method`, by keyword; and those of
        keras.layers.Layer, such as name.

    Examples
    --------
    >>> import keras
    >>> inner = keras.layers.Rescaling(1 / 255)
    >>> layer = CachedLayer(inner, chunk=1)
    >>> x = keras.ops.ones((2, 4))
    >>> (layer(x) == layer(x)).shape  # the first call builds the layer, uncached
    TensorShape([2, 4])
    >>> layer.stats.misses, layer.stats.hits
    (1, 1)
    """

    def __init__(self, layer: Any, **options: Any) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise errors.InvalidArgument(
                f"[CachedLayer] layer is {type(layer).__name__}; expected a Keras layer"
            )
        own = {key: options.pop(key) for key in list(options) if key in _OPTIONS}
        options.setdefault("dtype", layer.dtype_policy)
        options.setdefault("autocast", layer.autocast)
        super().__init__(layer, **options)
        self.supports_masking = layer.supports_masking
        self.supports_jit = layer.supports_jit
        self._options = Options(**own)
        self._below = _load_backend()
        chosen = self._options
        self._fingerprint = Fingerprint(
            KerasLayers(), lambda: self.layer, chosen.fingerprint, chosen.ignore, chosen.state
        )
        backend = _backend_of(self, self._below)
        self._engine = Engine(backend, self._fingerprint, chosen, layer.call, "call")

    # The call.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a layer without trainable weights as in inference, below too."""
        symbolic = any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(args))
        if not symbolic and not self.layer.trainable_weights and self._has_training:
            kwargs["training"] = False
        if not symbolic and self.built and self.layer.built and self._engine.core.aside():
            return self.layer(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    @functools.cached_property
    def _has_training(self) -> bool:
        return bool(self.layer._call_has_training_arg)

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Answer from the cache where possible; run the layer for the rest."""
        below, engine = self._below, self._engine
        start = perf_counter()
        reason = below.transform() or self._unfit(args)
        if reason is None and training and self.layer.trainable_weights:
            reason = "training=True and trainable weights: set layer.trainable = False"
        if reason is None:
            try:
                return engine.call(args, kwargs, start)
            except Bypass as bypass:
                reason = str(bypass)
        engine.core.bypass(reason)
        return self.layer(*args, **kwargs)

    def _unfit(self, args: Sequence[Any]) -> str | None:
        if not self.layer.built:
            return "the first call builds the layer"
        if in_stateless_scope():
            return "a stateless call"
        for tensor in keras.tree.flatten(args):
            if getattr(tensor, "_keras_mask", None) is not None:
                return "an input with a mask"
        return None

    def _unfit_inputs(self, tensors: Sequence[Any]) -> str | None:
        below = self._below
        reason: str | None = below.unfit_inputs(tensors)
        if reason is None and below.recording():
            if below.differentiated(tensors):
                return "a gradient with respect to the input is recorded"
            if self.layer.trainable_weights:
                return _UNFROZEN
        return reason

    def _run_rows(self, args: Any, kwargs: Any) -> Any:
        layer = self.layer
        with self._below.inference():
            output = layer(*args, **kwargs)
        if any(part._losses for part in layer._flatten_layers()):
            layer._clear_losses()
            raise Unsuited("it adds losses, which a hit would leave out")
        return output

    def __repr__(self) -> str:
        return f"<CachedLayer name={self.name} layer={self.layer!r} {self._describe()}>"

    # Symbolic calls and saving: the layer's.

    def build(self, input_shape: Any = None) -> None:
        """Leave building to the layer, which knows how many inputs it has."""
        self.built = True

    def compute_output_spec(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Return the layer's own."""
        if self.layer.built:
            return self.layer.compute_output_spec(*args, **kwargs)
        output = self.layer(*args, **kwargs)  # builds it
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), output)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's own."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Return the layer's own."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """Return the options; of a secret only that there was one, of a shared cache its bound.

        A directory stays behind: the file of a model may be loaded on another machine.
        """
        options = self._options.portable()
        scope = options.scope.encode() if isinstance(options.scope, str) else options.scope
        kept = {name: getattr(options, name) for name in _SAVED}
        return {
            **super().get_config(),
            **kept,
            "scope": scope.hex(),
            "keyed": self._options.secret is not None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CachedLayer:
        """Rebuild the layer with an empty cache, and with a random secret if it had one."""
        config = dict(config)
        config["scope"] = bytes.fromhex(config["scope"])
        config["secret"] = os.urandom(32) if config.pop("keyed") else None
        for name in ("ignore", "trim"):
            config[name] = config[name] and tuple(config[name])
        return super().from_config(config, custom_objects)  # type: ignore[no-any-return]
