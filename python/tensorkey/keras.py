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
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any, ClassVar, Literal

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope

from tensorkey import errors
from tensorkey._backend import Bypass
from tensorkey._cached import Cached
from tensorkey._frontend import Engine
from tensorkey._keras_below import Below
from tensorkey._keras_layers import KerasFingerprint, KerasLayers
from tensorkey._keras_rows import KerasSignature, rows_of, signature_of
from tensorkey._keras_strip import strip
from tensorkey._options import Options
from tensorkey._stats import LayerStats

__all__ = ["CachedLayer", "strip"]

_OPTIONS = frozenset(field.name for field in dataclasses.fields(Options))
_SAVED = (
    *("memory", "rows", "chunk", "by", "fingerprint", "ignore", "environment", "trim", "probe"),
    *("bits", "bypass", "on_error", "verify", "tolerance", "codec"),
)
_SERIALIZED = ("state", "outputs")


def _apart(function: Callable[..., Any]) -> Any:
    """Keep torch.compile, which Keras calls for jit_compile=True, from what a function does."""
    if keras.backend.backend() != "torch":
        return function
    importlib.import_module("tensorkey._torch_layer").keep_off()
    compiler: Any = importlib.import_module("torch.compiler")
    return compiler.disable(function)


def _load_backend() -> Below:
    name = keras.backend.backend()
    if name not in ("tensorflow", "torch", "jax"):
        raise errors.Unsupported(
            f"[CachedLayer] the Keras backend is {name!r}; expected 'tensorflow', 'torch' or 'jax'"
        )
    below: Any = importlib.import_module(f"tensorkey._{name}_backend")
    return below  # type: ignore[no-any-return]


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
    training
        What becomes of the ``training=True`` that fit passes to every layer: "inference" keeps it
        from a layer without trainable weights, "follow" passes it on, and runs uncached then.
    **options
        Those of :class:`tensorkey.torch.CachedLayer` but `method`, `compile` and
        ``index="cpu_input"``; and those of keras.layers.Layer, such as name.

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

    autograph_info__: ClassVar[dict[str, Any]] = {}
    """Has TensorFlow call this as it stands, where it converts the functions around it."""

    def __init__(
        self, layer: Any, *, training: Literal["inference", "follow"] = "inference", **options: Any
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise errors.InvalidArgument(
                f"[CachedLayer] layer is {type(layer).__name__}; expected a Keras layer"
            )
        if training not in ("inference", "follow"):
            raise errors.InvalidArgument(
                f"[CachedLayer] training is {training!r}; expected 'inference' or 'follow'"
            )
        own = {key: options.pop(key) for key in list(options) if key in _OPTIONS}
        converts = getattr(layer, "_convert_input_args", True)
        options.setdefault("dtype", layer.dtype_policy)
        options.setdefault("autocast", layer.autocast and converts)
        super().__init__(layer, **options)
        self._below: Below = _load_backend()
        self.supports_masking = layer.supports_masking
        self.supports_jit = layer.supports_jit and self._below.supports_jit
        # Keras looks for masks, and for the first argument, by the names of the layer's own.
        self._call_signature = signature_of(layer)
        self._allow_non_tensor_positional_args = layer._allow_non_tensor_positional_args
        self._training = training
        self._options = chosen = Options(**own)
        if chosen.index != "input":
            raise errors.Unsupported(
                f"[CachedLayer] index is {chosen.index!r}; expected 'input': Keras moves inputs to "
                "the device of the layer before it is called"
            )
        self._fingerprint = KerasFingerprint(
            KerasLayers(), lambda: self.layer, chosen.fingerprint, chosen.ignore, chosen.state
        )
        backend = rows_of(self, self._below)
        self._engine = Engine(backend, self._fingerprint, chosen, layer.call, "call")
        self._engine.signature = KerasSignature(self, backend, whole=self._engine.whole)

    # The call.

    @_apart
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a layer without trainable weights as in inference, below too."""
        if not _is_symbolic(args, kwargs):
            self._set_training(kwargs)
            # Where it is traced, a graph asks again whenever it runs. aside() counts the call.
            ready = self.built and self.layer.built and not self._below.traced(args, kwargs)
            if ready and self._engine.core.aside():
                return self.layer(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _set_training(self, kwargs: dict[str, Any]) -> None:
        if self._training == "inference" and not self.layer.trainable_weights:
            kwargs["training"] = False

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Answer from the cache where possible; run the layer for the rest."""
        start = perf_counter()
        traced = self._below.traced(args, kwargs)
        reason = self._reason_to_bypass(traced)
        if reason is None and training:
            if self.layer.trainable_weights:
                reason = "training=True and trainable weights: set layer.trainable = False"
            elif self._training == "follow":
                reason = "training=True, which training='follow' passes on"
        if reason is None:
            try:
                if traced:
                    return self._below.traced_call(self, args, kwargs)
                return self._engine.call(args, kwargs, start)
            except Bypass as bypass:
                reason = str(bypass)
        return self._run_alone(args, kwargs, reason)

    def _reason_to_bypass(self, traced: bool = False) -> str | None:
        below = self._below
        reason = below.transform()
        if reason is None and not below.answers_stateless and in_stateless_scope():
            return "a stateless call"
        if reason is not None or traced:
            return reason
        if below.traced((), {}):
            return "inside a graph, which has no keys of the caller's own"
        return None if self.layer.built else "the first call builds the layer"

    def _run_inner(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = dict(kwargs)
        self._set_training(kwargs)
        return self.layer(*args, **kwargs)

    def _alone(self) -> Any:
        """Return the layer as a call of it without the cache runs."""

        def alone(*args: Any, **kwargs: Any) -> Any:
            with self._below.inference():
                return self._run_inner(args, kwargs)

        return alone

    def _twin(self, **options: Any) -> CachedLayer:
        """Return a wrapper of the same layer with other options and a cache of its own."""
        changed = {"cache": None, "disk": None, "disk_limit": None} | options
        kept = dataclasses.replace(self._options, **changed)
        given = {field.name: getattr(kept, field.name) for field in dataclasses.fields(kept)}
        return CachedLayer(self.layer, training=self._training, **given)

    def cache_clear(self) -> None:
        """Drop the entries of this layer, and the programs that were compiled of it."""
        super().cache_clear()
        backend: Any = self._engine.backend
        getattr(backend.run_layer, "clear", _nothing)()

    def precompute(
        self, batches: Iterable[Any], *, keys: bool = False, progress: bool | None = None
    ) -> LayerStats:
        """Fill the cache; see :meth:`tensorkey.torch.CachedLayer.precompute`."""
        if not self.layer.built:
            batches = _first_twice(batches)
        return super().precompute(batches, keys=keys, progress=progress)

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
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{name: getattr(options, name) for name in _SAVED},
            **{name: serialize(getattr(options, name)) for name in _SERIALIZED},
            "scope": scope.hex(),
            "keyed": self._options.secret is not None,
            "training": self._training,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CachedLayer:
        """Rebuild the layer with an empty cache, and with a random secret if it had one."""
        config = dict(config)
        config["scope"] = bytes.fromhex(config["scope"])
        config["secret"] = os.urandom(32) if config.pop("keyed") else None
        for name in _SERIALIZED:
            value = config.get(name)
            config[name] = keras.saving.deserialize_keras_object(value, custom_objects)
        for name in ("ignore", "trim", "outputs"):
            value = config.get(name)
            config[name] = tuple(value) if isinstance(value, list) else value
        return super().from_config(config, custom_objects)  # type: ignore[no-any-return]


def _nothing() -> None:
    """Do nothing."""


def _is_symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if len(args) == 1 and not kwargs and keras.ops.is_tensor(args[0]):
        return isinstance(args[0], keras.KerasTensor)
    return any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs)))


def _first_twice(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield batches, the first one twice: it builds the layer, and runs uncached."""
    for number, batch in enumerate(batches):
        if not number:
            yield batch
        yield batch
