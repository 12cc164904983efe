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
import importlib
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope

from tensorkey import errors
from tensorkey._backend import Bypass, Unsuited
from tensorkey._cache import ActivationCache
from tensorkey._chunks import Chunk
from tensorkey._fingerprint import Fingerprint
from tensorkey._frontend import Engine
from tensorkey._keras_layers import KerasLayers, variables_of
from tensorkey._options import BypassMode, Codec, Options
from tensorkey._probe import Inputs
from tensorkey._stats import LayerStats

__all__ = ["CachedLayer"]

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


def _rows_of(layer: CachedLayer, below: Any) -> Any:
    """Return the engine's backend: the framework below, running a Keras layer."""

    class LayerRows(below.Rows):  # type: ignore[misc]
        name = f"keras-{keras.backend.backend()}"

        def run(self, inputs: Inputs) -> Any:
            return layer._run_rows(inputs)

        def save(self, tensors: Sequence[Any]) -> Any:
            kept = []
            for part in layer.layer._flatten_layers():
                kept += variables_of(part)[len(part._trainable_variables) :]
            return [(variable, keras.ops.copy(variable.value)) for variable in kept]

        def restore(self, saved: Any) -> None:
            for variable, value in saved:
                variable.assign(value)

    return LayerRows()


@keras.saving.register_keras_serializable(package="tensorkey")
class CachedLayer(keras.layers.Wrapper):  # type: ignore[misc]
    """A layer that remembers its answers, row by row, by the content of its inputs.

    Eager calls are cached. Symbolic calls, tf.function, and fit or predict without
    ``run_eagerly=True`` run the layer itself. A layer without trainable weights runs as in
    inference, also inside fit.

    Parameters
    ----------
    layer
        A Keras layer or model that takes one tensor, several by position or a list of them, which
        share their first dimension, and returns one tensor with as many rows.
    cache, memory, disk, disk_limit, chunk, scope, probe, codec, bypass, secret
        As in :class:`tensorkey.torch.CachedLayer`.
    **kwargs
        Of keras.layers.Layer, such as name.

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

    def __init__(
        self,
        layer: Any,
        *,
        cache: ActivationCache | None = None,
        memory: int | str | None = None,
        disk: str | os.PathLike[str] | None = None,
        disk_limit: int | str | None = None,
        chunk: Chunk = "auto",
        scope: bytes | str = b"",
        probe: bool = True,
        codec: Codec = "raw",
        bypass: BypassMode = "auto",
        secret: bytes | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise errors.InvalidArgument(
                f"[CachedLayer] layer is {type(layer).__name__}; expected a Keras layer"
            )
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("autocast", layer.autocast)
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        self.supports_jit = layer.supports_jit
        self._options = Options(
            cache, memory, disk, disk_limit, chunk, scope, probe, codec, bypass, secret
        )
        self._below = _load_backend()
        self._engine = Engine(
            _rows_of(self, self._below),
            Fingerprint(KerasLayers(), lambda: self.layer, "strict"),
            self._options,
        )

    # The call.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a layer without trainable weights as in inference, below too."""
        symbolic = any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(args))
        if not symbolic and not self.layer.trainable_weights:
            kwargs["training"] = False
        if not symbolic and self.built and self.layer.built and self._engine.monitor.aside():
            return self.layer(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, *more: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Answer from the cache where possible; run the layer for the rest."""
        below, engine = self._below, self._engine
        start = perf_counter()
        # A tuple goes to the layer by position, a list as one argument.
        rows: Any = inputs if type(inputs) is list and not more else (inputs, *more)
        reason = below.transform() or ("keyword arguments" if kwargs else None)
        reason = reason or self._unfit(rows) or below.unfit_inputs(rows)
        if reason is None and below.recording():
            if below.differentiated(rows):
                reason = "a gradient with respect to the input is recorded"
            elif self.layer.trainable_weights:
                reason = _UNFROZEN
        if reason is None and training and self.layer.trainable_weights:
            reason = "training=True and trainable weights: set layer.trainable = False"
        if reason is None:
            try:
                reading = engine.reading()
                reason = below.unfit_layer(reading.modules)
                if reason is None:
                    form = type(rows).__name__
                    environment = (*below.environment(rows[0]), *_settings(), form)
                    return engine.call(rows, reading, environment, start)
            except Bypass as bypass:
                reason = str(bypass)
        engine.monitor.bypass(reason)
        return self.layer(inputs, *more, **kwargs)

    def _unfit(self, rows: Sequence[Any]) -> str | None:
        if not self.layer.built:
            return "the first call builds the layer"
        if in_stateless_scope():
            return "a stateless call"
        for tensor in rows:
            if getattr(tensor, "_keras_mask", None) is not None:
                return "an input with a mask"
        return None

    def _run_rows(self, inputs: Inputs) -> Any:
        layer = self.layer
        with self._below.inference():
            output = layer(*inputs) if type(inputs) is tuple else layer(inputs)
        if any(part._losses for part in layer._flatten_layers()):
            layer._clear_losses()
            raise Unsuited("it adds losses, which a hit would leave out")
        return output

    @property
    def cache(self) -> ActivationCache:
        """The cache: its own, or the one that it shares."""
        return self._engine.cache

    @property
    def bypass(self) -> str:
        """When to run the layer alone: "auto", "never" or "always"."""
        return self._engine.monitor.mode

    @bypass.setter
    def bypass(self, mode: BypassMode) -> None:
        self._engine.monitor.mode = mode
        self._options = dataclasses.replace(self._options, bypass=mode)

    @property
    def stats(self) -> LayerStats:
        """A snapshot of the counters."""
        return self._engine.stats()

    def reset_stats(self) -> None:
        """Set the counters to zero; of a shared cache only this layer's."""
        self._engine.reset_stats()

    def cache_clear(self) -> None:
        """Drop the entries of this layer; those of other layers that share the cache stay."""
        self._engine.clear()

    def __repr__(self) -> str:
        stats = self.stats
        chunk = self._options.chunk if stats.chunk is None else stats.chunk
        return (
            f"<CachedLayer name={self.name} layer={self.layer!r} cache={self.cache!r} "
            f"chunk={chunk!r} probe={stats.probe!r}>"
        )

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
        return {
            **super().get_config(),
            "memory": options.memory,
            "chunk": options.chunk,
            "scope": scope.hex(),
            "probe": options.probe,
            "codec": options.codec,
            "bypass": options.bypass,
            "keyed": self._options.secret is not None,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CachedLayer:
        """Rebuild the layer with an empty cache, and with a random secret if it had one."""
        config = dict(config)
        config["scope"] = bytes.fromhex(config["scope"])
        config["secret"] = os.urandom(32) if config.pop("keyed") else None
        return super().from_config(config, custom_objects)  # type: ignore[no-any-return]
