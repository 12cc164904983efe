"""The cached layer of PyTorch: a module in the place of another, with all that is the other's.

It *shares the registries* of the layer (parameters, buffers, submodules are the same dicts), keeps
the layer in its ``__dict__``, and asks it for everything else.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import _symbolic_trace

from tensorkey import errors
from tensorkey._backend import Bypass
from tensorkey._cached import Cached
from tensorkey._fingerprint import Fingerprint
from tensorkey._frontend import Engine
from tensorkey._options import Options, parsed
from tensorkey._own_keys import Id, KeyedLayer, answer_keyed
from tensorkey._torch_backend import (
    Rows,
    any_global_hook,
    environment,
    trainable,
    transform,
    unfit_inputs,
    unfit_layer,
)
from tensorkey._torch_modules import TorchModules
from tensorkey._torch_script import called

Compile = Literal["island", "operator"]

_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_SHARED = (
    *_REGISTRIES,
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_OWN = ("_engine", "_core", "_operator", "_compiled_call_impl", *_SHARED)  # in no copy
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_exporting = torch.compiler.is_exporting
_Module: Any = nn.Module
_MODULE_CALL = nn.Module.__call__  # tracers put their own in its place
_NOWHERE = torch.empty(0)
_UNFROZEN = (
    "weights are trainable while gradients are recorded: call layer.requires_grad_(False), or run "
    "under torch.no_grad()"
)


class _ModuleRows(Rows):
    """How the engine runs a method of a module."""

    def __init__(self, layer: nn.Module, options: Options, method: str) -> None:
        self._layer = layer
        self._method = method
        self._follows = options.index == "cpu_input"
        self.fingerprint = Fingerprint(
            TorchModules(), lambda: layer, options.fingerprint, options.ignore, options.state
        )

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the method without gradients."""
        with torch.no_grad():
            return target(self._layer, self._method)(*args, **kwargs)

    def take(self, tensors: Sequence[torch.Tensor], rows: Sequence[int]) -> list[torch.Tensor]:
        """Copy rows; with index="cpu_input" to where the layer is."""
        if self._follows:
            self.device = self.home()
        return super().take(tensors, rows)

    def home(self) -> torch.device:
        """Return where the layer is."""
        return next(self._layer.parameters(), _NOWHERE).device

    unfit_inputs = staticmethod(unfit_inputs)

    def unfit_layer(self) -> str | None:
        """Return why the layer must run itself: hooks, weights that are being trained."""
        reason = unfit_layer(self.fingerprint)
        if reason is None and torch.is_grad_enabled() and trainable(self.fingerprint):
            return _UNFROZEN
        return reason

    def environment(self, tensor: torch.Tensor | None, portable: bool) -> tuple[object, ...]:
        """Return what else the bits depend on, where the layer runs."""
        if tensor is None or self._follows:
            tensor = next(self._layer.parameters(), _NOWHERE)
        return environment(tensor, portable)


def target(layer: nn.Module, method: str) -> Any:
    """Return what to call: the module itself for its forward, with its hooks."""
    return layer if method == "forward" else getattr(layer, method)


class CachedLayer(Cached, nn.Module):
    """A module that remembers its answers, row by row, by the content of its inputs.

    It shares the parameters, buffers and submodules of `layer` under the same names: state dicts,
    optimizers, ``to()``, ``train()``, deepcopy and pickle see the layer. What the wrapper has not,
    it takes from the layer. The cache itself is in no state dict, copy or pickle.

    Parameters
    ----------
    layer
        A module. Its arguments are any nest of tensors and plain values: tensors with the batch
        dimension (the first dim of the first one) make the rows, everything else a part of every
        key. So is its output: each tensor in it has a row for each input row, or is the same for
        all. It is not changed.
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
    rows
        "each" row is a key; or the whole "batch" is one, for layers whose rows depend on each
        other.
    chunk
        Rows that run together when they are missing: 1, a multiple of 32, or "auto": 32 if the
        first call has at least 16 rows, else 1; and 1 if the probe finds that bits depend on a
        row's place in the chunk.
    by
        "content"; or "structure", the claim that the output depends on shapes, dtypes and devices
        of the inputs alone, which one call in a hundred checks by running the layer.
    fingerprint
        How closely the weights are looked at (docs/layers.md): "strict", every byte on
        every call; "guard", addresses, versions and shapes; "auto", the guard on every call and
        all bytes so often that it costs 1 %; "manual", nothing: `scope` says what the layer is.
    scope
        What else the answers depend on, such as the version of a preprocessing step.
    state
        The same as content: tensors, plain values, nests of them, or a function that returns such.
    ignore
        Names of attributes, or dotted paths below the layer, that its answers do not depend on.
    environment
        "exact"; or "portable", which shares answers between CPUs and numbers of threads: they are
        then equal to rounding.
    outputs
        Two functions for an output that is no nest of tensors: to one, and back.
    trim
        Name of the mask among the arguments and its dim of tokens, such as ("attention_mask", 1):
        rows are keyed and run by their unpadded part, whatever they are padded to.
    probe
        Whether to check on the first rows that they do not depend on each other.
    bits
        "chunk"; or "slot", which accepts that the last bits of a row may depend on its place in
        the chunk, instead of running it alone.
    index
        "input"; or "cpu_input": inputs come on the CPU, where they are looked up, and missing rows
        are moved to the layer.
    bypass
        When to run the layer alone: "auto", if the cache costs more than it saves (docs/cache.md);
        "never"; "always".
    on_error
        What to do when `verify` finds a difference: "count" it, "warn", "raise", or "drop" all
        entries of the layer.
    verify
        Share of hits that are computed again and compared, such as 0.001.
    tolerance
        Absolute difference that `verify` accepts; 0: none.
    codec
        How answers are kept: "raw"; "lossless", compressed; "fp16" or "bf16", floats rounded to
        half the size. A rounded answer is what every call gives, the first one too.
    secret
        32 bytes; keys then cannot be computed without them. They are in no pickle: a layer loaded
        from one has a random secret.
    method
        The method that is cached, forward if None. Both ``wrapper.method(x)`` and ``wrapper(x)``
        call it; every other method is the layer's own. Methods do not share answers.
    compile
        What ``torch.compile`` makes of a call. "island": the call runs as without it, between two
        compiled graphs. "operator": one operator in the graph, which ``fullgraph=True`` needs; its
        arguments and output are then tensors, plain values and tuples, lists and dicts of these,
        its output is contiguous, and no ``torch.func`` transform is inside the compiled function.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For an option out of range; at the first call, if a tensor of the output has neither a row
        for each input row nor the same value for all of them.
    tensorkey.errors.Unsupported
        At the first call, if the probe refuses the layer: its rows depend on each other, or a run
        changes its buffers, attributes or the random state.

    Examples
    --------
    >>> import torch
    >>> layer = CachedLayer(torch.nn.Linear(8, 4).requires_grad_(False))
    >>> layer(torch.zeros(20, 8)).shape, layer.stats.misses
    (torch.Size([20, 4]), 1)
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        method: str | None = None,
        compile: Compile = "island",
        **options: Any,
    ) -> None:
        if not isinstance(layer, nn.Module):
            raise errors.InvalidArgument(
                f"[CachedLayer] layer is {type(layer).__name__}; expected a torch.nn.Module"
            )
        _check_method(layer, method)
        if compile not in ("island", "operator"):
            raise errors.InvalidArgument(
                f"[CachedLayer] compile is {compile!r}; expected 'island' or 'operator'"
            )
        vars(self)["inner"] = layer  # `training` asks it before nn.Module.__init__ has run
        super().__init__()
        vars(self)["_method"] = method or "forward"
        vars(self)["_compile"] = compile
        self._bind(layer, parsed(options))

    def _bind(self, layer: nn.Module, options: Options) -> None:
        own = vars(self)
        own["inner"] = layer
        own["_options"] = options
        method = own["_method"]
        rows = _ModuleRows(layer, options, method)
        engine = Engine(rows, rows.fingerprint, options, called(layer, method), method)
        own["_engine"] = engine
        own["_core"] = engine.core
        own["_operator"] = _operator_of(self, layer) if own["_compile"] == "operator" else None
        for registry in _SHARED:
            own[registry] = vars(layer)[registry]

    # The call.

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Answer, or run the layer alone, past what a module looks at before its forward."""
        own = self.__dict__
        if (
            not _is_dynamo_compiling()  # it follows into this function, and stops at foreign calls
            and _Module.__call__ is _MODULE_CALL
            and not own["_forward_hooks"]
            and not own["_forward_pre_hooks"]
            and not own["_backward_hooks"]
            and not own["_backward_pre_hooks"]
        ):
            if own["_core"].aside():
                return target(own["inner"], own["_method"])(*inputs, **options)
            if transform() is None and not any_global_hook():
                start = perf_counter()
                try:
                    return own["_engine"].call(inputs, options, start)
                except Bypass as bypass:
                    reason = str(bypass)
                return self._run_alone(inputs, options, reason)
        return super().__call__(*inputs, **options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Answer from the cache where possible; run the layer for the rest."""
        if _is_dynamo_compiling():
            if _is_exporting():
                _count_export(self)
                return self._run_inner(inputs, options)
            keep_off()
            operator = self.__dict__["_operator"]
            if operator is None:
                return _island(self, inputs, options)
            return operator.traced(self, inputs, options)
        return self._eager(inputs, options)

    def _eager(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        reason = transform()
        if reason is None:
            own = self.__dict__
            if own["_core"].aside():
                return self._run_inner(inputs, options)
            start = perf_counter()
            try:
                return own["_engine"].call(inputs, options, start)
            except Bypass as bypass:
                reason = str(bypass)
        return self._run_alone(inputs, options, reason)

    def _run_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        vars(self)["_core"].bypass(reason)
        return self._run_inner(args, kwargs)

    def with_keys(self, ids: Sequence[Id]) -> KeyedLayer:
        """Return the layer for one batch under keys of the caller's own, one a row.

        See :meth:`tensorkey._cached.Cached.with_keys`.
        """
        if _is_dynamo_compiling():
            keep_off()
        return super().with_keys(ids)

    def _reason_to_bypass(self) -> str | None:
        return transform()

    def _run_inner(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        own = self.__dict__
        inner, method = own["inner"], own["_method"]
        if method == "forward" and _symbolic_trace._is_fx_tracing_flag:
            return inner.forward(*inputs, **options)  # a module that the tracer has no path for
        return target(inner, method)(*inputs, **options)

    _inference = staticmethod(torch.no_grad)

    def _alone(self) -> Any:
        """Return the layer as a call of it without the cache runs."""
        return torch.no_grad()(target(vars(self)["inner"], vars(self)["_method"]))

    def _twin(self, **options: Any) -> CachedLayer:
        """Return a wrapper of the same layer with other options and a cache of its own."""
        own = vars(self)
        changed = {"cache": None, "disk": None, "disk_limit": None} | options
        kept = dataclasses.replace(own["_options"], **changed)
        given = {field.name: getattr(kept, field.name) for field in dataclasses.fields(kept)}
        return CachedLayer(own["inner"], method=own["_method"], **given)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._describe()},\n  {vars(self)['inner']!r}\n)"

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
        if name == vars(self).get("_method"):
            return self.__call__
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
        self._look_closely()
        return vars(self)["inner"].load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._look_closely()
        vars(self)["inner"]._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> CachedLayer:
        self._look_closely()
        vars(self)["inner"]._apply(fn, recurse)
        return self

    def apply(self, fn: Any) -> CachedLayer:
        """Apply a function to the layer and its submodules."""
        self._look_closely()
        vars(self)["inner"].apply(fn)
        return self

    def train(self, mode: bool = True) -> CachedLayer:
        """Set the training flag of the layer and its submodules."""
        self._look_closely()
        vars(self)["inner"].train(mode)
        return self

    def _look_closely(self) -> None:
        """Have the next call read all weights."""
        vars(self)["_engine"].fingerprint.demand()

    # Copies: the layer and the options, and an empty cache unless a copy shares one.

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self).items() if key not in _OWN}
        options: Options = state["_options"]
        state["_options"] = options.portable()
        state["_keyed"] = options.secret is not None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        options: Options = state["_options"]
        if state.pop("_keyed"):
            options = dataclasses.replace(options, secret=os.urandom(32))
        vars(self).update({"_method": "forward", "_compile": "island"} | state)
        self._bind(state["inner"], options)

    def __copy__(self) -> CachedLayer:
        return self._copied({**self.__getstate__(), "inner": copy.copy(vars(self)["inner"])})

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedLayer:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        return self._copied(copy.deepcopy(self.__getstate__(), memo), twin)

    def _copied(self, state: dict[str, Any], twin: CachedLayer | None = None) -> CachedLayer:
        """Return a copy in this process: the secret, and a cache that is shared, are its too."""
        twin = type(self).__new__(type(self)) if twin is None else twin
        del state["_keyed"]
        vars(twin).update(state)
        twin._bind(state["inner"], vars(self)["_options"])
        return twin


CachedLayer.__module__ = "tensorkey.torch"  # where pickles look for it


def _check_method(layer: nn.Module, method: str | None) -> None:
    if method is None or method == "forward":
        return
    if not isinstance(method, str) or not callable(getattr(layer, method, None)):
        near = difflib.get_close_matches(str(method), dir(layer), 1)
        raise errors.InvalidArgument(
            f"[CachedLayer] {type(layer).__name__} has no method {method!r}"
            + (f"; is {near[0]!r} meant?" if near else "")
        )
    if hasattr(CachedLayer, method):
        raise errors.InvalidArgument(
            f"[CachedLayer] {method!r} is a method of the wrapper, too; expected one of the "
            "layer's own"
        )


# Under torch.compile. Importing the compiler takes seconds, so what its decorators set is set here
# by hand, and the rest is done when it first meets a cached layer.


def _island(layer: CachedLayer, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Answer between two compiled graphs."""
    return layer._eager(inputs, options)


def keep_off() -> bool:
    """Keep the compiler from what runs between two graphs. It calls this while it traces."""
    compiler: Any = importlib.import_module("torch._dynamo.eval_frame")
    skipped: tuple[Any, ...] = (CachedLayer.forward, _island, KeyedLayer.__call__)
    for function in skipped:
        compiler.skip_code(function.__code__)
    skip = compiler.FrameAction.SKIP
    everything = compiler.FrameExecStrategy(skip, skip)  # what it calls, too
    avoided: tuple[Any, ...] = (CachedLayer._eager, answer_keyed)
    for function in avoided:
        compiler.set_code_exec_strategy(function.__code__, everything)
    return True


def _count_export(layer: CachedLayer) -> bool:
    """Count a bypass, while the compiler traces."""
    vars(layer)["_core"].bypass("torch.export")
    return True


_ISLAND: Any = _island
_ISLAND._torchdynamo_disable = True
_ISLAND._torchdynamo_disable_msg = (
    "a cached layer answers between two graphs; fullgraph=True needs "
    "CachedLayer(..., compile='operator')"
)
_called_while_tracing: Any
for _called_while_tracing in (keep_off, _count_export):
    _called_while_tracing._dynamo_marked_constant = True


def _operator_of(layer: CachedLayer, inner: nn.Module) -> Any:
    from tensorkey._torch_compile import Operator

    return Operator(layer, inner)
