"""Cached layers for PyTorch.

Examples
--------
>>> import torch
>>> from tensorkey.torch import CachedLayer
>>> encoder = CachedLayer(torch.nn.Linear(16, 32).eval().requires_grad_(False), memory="64 MiB")
>>> batch = torch.randn(64, 16)
>>> bool((encoder(batch) == encoder(batch)).all())
True
>>> encoder.stats.hits, encoder.stats.misses
(64, 64)
"""

from __future__ import annotations

import copy
import dataclasses
import os
from time import perf_counter
from typing import Any

import torch
from torch import nn

from tensorkey import _core, errors
from tensorkey._backend import Bypass
from tensorkey._cache import ActivationCache
from tensorkey._chunks import Chunk
from tensorkey._fingerprint import Fingerprint
from tensorkey._frontend import Engine
from tensorkey._options import BypassMode, Codec, Options
from tensorkey._probe import Inputs
from tensorkey._reading import Reading
from tensorkey._stats import LayerStats
from tensorkey._torch_backend import (
    Rows,
    environment,
    transform,
    unfit_inputs,
    unfit_layer,
)
from tensorkey._torch_modules import TorchModules

__all__ = ["CachedLayer", "tensor"]

_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_SHARED = (
    *_REGISTRIES,
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_Module: Any = nn.Module
_MODULE_CALL = nn.Module.__call__  # tracers put their own in its place
_UNFROZEN = (
    "weights are trainable while gradients are recorded: call layer.requires_grad_(False), or run "
    "under torch.no_grad()"
)


class _ModuleRows(Rows):
    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def run(self, inputs: Inputs) -> Any:
        with torch.no_grad():
            return self._layer(*inputs)


class CachedLayer(nn.Module):
    """A module that remembers its answers, row by row, by the content of its inputs.

    It shares the parameters, buffers and submodules of `layer` under the same names: state dicts,
    optimizers, ``to()``, ``train()``, deepcopy and pickle see the layer. What the wrapper has not,
    it takes from the layer. The cache itself is in no state dict, copy or pickle.

    Parameters
    ----------
    layer
        A module that takes tensors by position, which share their first dimension, and returns one
        tensor with as many rows. It is not changed.
    cache
        A cache to share with other layers.
    memory
        Bound of a cache of its own in bytes, metadata included: an int or a text such as "2 GiB";
        "1 GiB" if neither this nor `cache` is given.
    disk
        A directory that keeps the answers over runs and shares them with other processes
        (docs/sharing.md); made if it is not there.
    disk_limit
        Its bound, all files included; "10 GiB" for a new one.
    chunk
        Rows that run together when they are missing: 1, a multiple of 32, or "auto": 32 if the
        first call has at least 16 rows, else 1; and 1 if the probe finds that bits depend on a
        row's place in the chunk.
    scope
        What else the answers depend on, such as the version of a preprocessing step.
    probe
        Whether to check on the first rows that they do not depend on each other.
    codec
        How answers are kept: "raw"; "lossless", compressed; "fp16" or "bf16", floats rounded to
        half the size. A rounded answer is what every call gives, the first one too.
    bypass
        When to run the layer alone: "auto", if the cache costs more than it saves (docs/cache.md);
        "never"; "always".
    secret
        32 bytes; keys then cannot be computed without them. They are in no pickle: a layer loaded
        from one has a random secret.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For an option out of range; at the first call, if the output has another batch size.
    tensorkey.errors.Unsupported
        For a scripted module; at the first call, if the probe refuses the layer: its rows depend on
        each other, or a run changes its buffers, attributes or the random state.

    Examples
    --------
    >>> layer = CachedLayer(nn.Sequential(nn.Linear(8, 4), nn.Tanh()).requires_grad_(False))
    >>> layer(torch.zeros(20, 8)).shape, layer.stats.misses
    (torch.Size([20, 4]), 1)
    """

    def __init__(
        self,
        layer: nn.Module,
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
    ) -> None:
        if not isinstance(layer, nn.Module):
            raise errors.InvalidArgument(
                f"[CachedLayer] layer is {type(layer).__name__}; expected a torch.nn.Module"
            )
        if isinstance(layer, torch.jit.ScriptModule):
            raise errors.Unsupported(
                "[CachedLayer] a scripted module shows no code; wrap the module it was made from"
            )
        vars(self)["inner"] = layer  # `training` asks it before nn.Module.__init__ has run
        super().__init__()
        options = Options(
            cache, memory, disk, disk_limit, chunk, scope, probe, codec, bypass, secret
        )
        self._bind(layer, options)

    def _bind(self, layer: nn.Module, options: Options) -> None:
        own = vars(self)
        own["inner"] = layer
        own["_options"] = options
        engine = Engine(
            _ModuleRows(layer), Fingerprint(TorchModules(), lambda: layer, "strict"), options
        )
        own["_engine"] = engine
        own["_monitor"] = engine.monitor
        for registry in _SHARED:
            own[registry] = vars(layer)[registry]

    # The call.

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run the layer alone where the cache is stepped aside for: at the price of a flag."""
        own = self.__dict__
        if (
            not _is_dynamo_compiling()  # it follows into this function, and stops at foreign calls
            and _Module.__call__ is _MODULE_CALL
            and not own["_forward_hooks"]
            and not own["_forward_pre_hooks"]
            and not own["_backward_hooks"]
            and not own["_backward_pre_hooks"]
            and own["_monitor"].aside()
        ):
            return own["inner"](*inputs, **options)
        return super().__call__(*inputs, **options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Answer from the cache where possible; run the layer for the rest."""
        reason = transform()
        if reason is None and vars(self)["_monitor"].aside():
            return self._run_inner(inputs, options)
        reason = reason or ("keyword arguments" if options else unfit_inputs(inputs))
        if reason is None:
            start = perf_counter()
            engine: Engine = vars(self)["_engine"]
            try:
                reading = engine.reading()
                reason = unfit_layer(reading.modules)
                if reason is None and torch.is_grad_enabled() and _trainable(reading):
                    reason = _UNFROZEN
                if reason is None:
                    return engine.call(inputs, reading, environment(inputs[0]), start)
            except Bypass as bypass:
                reason = str(bypass)
        return self._run_uncached(reason, inputs, options)

    def _run_uncached(self, reason: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not torch.compiler.is_compiling():  # a counter would be a guard of the compiled code
            vars(self)["_monitor"].bypass(reason)
        return self._run_inner(inputs, options)

    def _run_inner(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        inner = vars(self)["inner"]
        if any(isinstance(tensor, torch.fx.Proxy) for tensor in inputs):
            return inner.forward(*inputs, **options)  # a module that the tracer has no path for
        return inner(*inputs, **options)

    @property
    def cache(self) -> ActivationCache:
        """The cache: its own, or the one that it shares."""
        return vars(self)["_engine"].cache  # type: ignore[no-any-return]

    @property
    def bypass(self) -> str:
        """When to run the layer alone: "auto", "never" or "always"."""
        return vars(self)["_monitor"].mode  # type: ignore[no-any-return]

    @bypass.setter
    def bypass(self, mode: BypassMode) -> None:
        own = vars(self)
        own["_monitor"].mode = mode
        own["_options"] = dataclasses.replace(own["_options"], bypass=mode)

    @property
    def stats(self) -> LayerStats:
        """A snapshot of the counters."""
        return vars(self)["_engine"].stats()  # type: ignore[no-any-return]

    def reset_stats(self) -> None:
        """Set the counters to zero; of a shared cache only this layer's."""
        vars(self)["_engine"].reset_stats()

    def cache_clear(self) -> None:
        """Drop the entries of this layer; those of other layers that share the cache stay."""
        vars(self)["_engine"].clear()

    def __repr__(self) -> str:
        stats = self.stats
        chunk = self._options.chunk if stats.chunk is None else stats.chunk
        about = f"cache={self.cache!r}, chunk={chunk!r}, probe={stats.probe!r}"
        return f"{type(self).__name__}({about},\n  {vars(self)['inner']!r}\n)"

    # The alias: everything else is the layer's.

    @property
    def training(self) -> bool:
        """The layer's flag."""
        return vars(self)["inner"].training  # type: ignore[no-any-return]

    @training.setter
    def training(self, mode: bool) -> None:
        if "_engine" in vars(self):  # not while nn.Module.__init__ sets its default
            vars(self)["inner"].training = mode

    def __getattr__(self, name: str) -> Any:
        inner = vars(self).get("inner")
        if inner is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "_engine" not in vars(self) or name in vars(self) or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(vars(self)["inner"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(vars(self)["inner"], name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(vars(self)["inner"])})

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's state dict."""
        return vars(self)["inner"].state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict into the layer."""
        return vars(self)["inner"].load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["inner"]._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> CachedLayer:
        vars(self)["inner"]._apply(fn, recurse)
        return self

    def apply(self, fn: Any) -> CachedLayer:
        """Apply a function to the layer and its submodules."""
        vars(self)["inner"].apply(fn)
        return self

    def train(self, mode: bool = True) -> CachedLayer:
        """Set the training flag of the layer and its submodules."""
        vars(self)["inner"].train(mode)
        return self

    # Copies: the layer and the options, and an empty cache unless a deep copy shares one.

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self).items() if key not in _SHARED}
        del state["_engine"], state["_monitor"]
        options: Options = state["_options"]
        state["_options"] = options.portable()
        state["_keyed"] = options.secret is not None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        options: Options = state["_options"]
        if state.pop("_keyed"):
            options = dataclasses.replace(options, secret=os.urandom(32))
        vars(self).update(state)
        self._bind(state["inner"], options)

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedLayer:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        state = copy.deepcopy(self.__getstate__(), memo)
        del state["_keyed"]
        vars(twin).update(state)
        # In the same process: the secret, and a cache that is shared, are the twin's too.
        twin._bind(state["inner"], vars(self)["_options"])
        return twin


def tensor(stored: _core.EntryTensor) -> torch.Tensor:
    """Return a copy of a tensor of an entry.

    Examples
    --------
    >>> import tensorkey as tk
    >>> cache = tk.ActivationCache()
    >>> x = torch.ones(2, dtype=torch.bfloat16)
    >>> tensor(cache.get_or_compute(tk.key(x), lambda: x * 3)[0])
    tensor([3., 3.], dtype=torch.bfloat16)
    """
    dtype: torch.dtype = getattr(torch, stored.dtype)
    copy = bytearray(stored)  # type: ignore[call-overload]  # a buffer, which no stub can say
    flat = torch.frombuffer(copy, dtype=dtype) if copy else torch.empty(0, dtype=dtype)
    return flat.reshape(stored.shape)


def _trainable(reading: Reading) -> bool:
    return any(tensor.requires_grad for tensor in reading.tensors)
