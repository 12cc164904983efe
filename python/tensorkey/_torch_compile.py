"""Cached layers under torch.compile(fullgraph=True): the lookup as a custom operator.

``tensorkey::cached(handle, call, tensors, integers, floats) -> tensors`` is opaque to the compiler
and answers as an eager call does. `handle` names the layer; `call` is a text that holds the nest of
the arguments, with places for tensors and numbers, which may be symbolic, and the autocast state,
which compiled code does not keep.

The compiler learns the shapes by running the layer on fake tensors with fake weights: symbolic
batch sizes and lengths work. Where gradients of the layer's weights or inputs are recorded, it
traces the layer itself instead.
"""

from __future__ import annotations

import ast
import itertools
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._guards import detect_fake_mode

from tensorkey import errors

if TYPE_CHECKING:
    from tensorkey._torch_layer import CachedLayer

_LAYERS: weakref.WeakValueDictionary[int, CachedLayer] = weakref.WeakValueDictionary()
# From anywhere: a compiled graph that is kept on disk must not fit another process's layer.
_HANDLES = itertools.count(int.from_bytes(os.urandom(6), "little"))
_PLAIN = (bool, int, float, str)


def _constant(function: Any) -> Any:
    """Let the compiler call a function while it traces: what assume_constant_result does."""
    function._dynamo_marked_constant = True
    return function


class Operator:
    """What one layer keeps for the operator. The compiler reads `handle` and `registries`."""

    def __init__(self, layer: CachedLayer, inner: nn.Module) -> None:
        self.handle = next(_HANDLES)
        self.registries: list[dict[str, nn.Parameter | None]] = []
        self.results: dict[str, Any] = {}
        self._inner = inner
        self._children: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self._walk()
        _LAYERS[self.handle] = layer

    def _walk(self) -> None:
        """Note all registries: compiled code must not look at the modules themselves."""
        modules = list(self._inner.modules())
        self.registries = [module._parameters for module in modules]
        self._children = [(module._modules, tuple(module._modules.values())) for module in modules]

    def check_modules(self) -> None:
        """Refuse a submodule with trainable weights that compiled code does not know of."""
        if all(tuple(now.values()) == known for now, known in self._children):
            return
        was_trainable = trainable(self.registries)
        self._walk()
        if trainable(self.registries) and not was_trainable:
            raise errors.Unsupported(
                "[CachedLayer] a submodule with trainable weights was put into the layer after "
                "torch.compile; the next call compiles anew"
            )

    def traced(self, layer: CachedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the operator, or the layer itself where gradients are recorded: what is compiled."""
        tensors: list[torch.Tensor] = []
        integers: list[int] = []
        floats: list[float] = []
        nest = fold((args, kwargs), tensors, integers, floats)
        if not tensors:
            return layer._run_inner(args, kwargs)
        if torch.is_grad_enabled() and (
            any(tensor.requires_grad for tensor in tensors) or trainable(self.registries)
        ):
            return layer._run_inner(args, kwargs)
        kind = tensors[0].device.type
        autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
        call = _text_of(nest, autocast)
        results = torch.ops.tensorkey.cached(self.handle, call, tensors, integers, floats)
        return unfold(_result_of(self.handle, call), results)


def trainable(registries: list[dict[str, nn.Parameter | None]]) -> bool:
    """Whether a parameter requires grad. The compiler traces this, and guards what it reads."""
    for registry in registries:
        for parameter in registry.values():
            if parameter is not None and parameter.requires_grad:
                return True
    return False


# A nest as plain data: ("t", 0) is the first tensor, ("i", 0) the first int, ("f", 0) the first
# float, ("p", value) any other plain value; tuples, lists and dicts are "T", "L" and "D".


def fold(
    value: Any,
    tensors: list[torch.Tensor],
    integers: list[int] | None = None,
    floats: list[float] | None = None,
) -> Any:
    """Put the tensors of a nest into a list, and numbers if asked; return the nest without them."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return ("t", len(tensors) - 1)
    kind = type(value)
    if integers is not None and kind is int:
        integers.append(value)
        return ("i", len(integers) - 1)
    if floats is not None and kind is float:
        floats.append(value)
        return ("f", len(floats) - 1)
    if value is None or kind in _PLAIN:
        return ("p", value)
    if kind is tuple:
        return ("T", *[fold(part, tensors, integers, floats) for part in value])
    if kind is list:
        return ("L", *[fold(part, tensors, integers, floats) for part in value])
    if kind is dict and all(type(key) is str for key in value):
        return (
            "D",
            *[(key, fold(part, tensors, integers, floats)) for key, part in value.items()],
        )
    raise errors.Unsupported(
        f"[CachedLayer] compile='operator' takes and gives tensors, plain values and nests of "
        f"tuples, lists and dicts of these; not {kind.__name__}: use compile='island'"
    )


def unfold(
    nest: Any,
    tensors: Sequence[torch.Tensor],
    integers: Sequence[int] = (),
    floats: Sequence[float] = (),
) -> Any:
    """Put everything back into its nest."""
    kind = nest[0]
    if kind == "t":
        return tensors[nest[1]]
    if kind == "i":
        return integers[nest[1]]
    if kind == "f":
        return floats[nest[1]]
    if kind == "p":
        return nest[1]
    if kind == "D":
        return {key: unfold(part, tensors, integers, floats) for key, part in nest[1:]}
    parts = [unfold(part, tensors, integers, floats) for part in nest[1:]]
    return tuple(parts) if kind == "T" else parts


@_constant
def _text_of(nest: Any, autocast: str) -> str:
    return repr((nest, autocast))


@_constant
def _result_of(handle: int, call: str) -> Any:
    """Return the nest that the last run on fake tensors gave: it was just now."""
    operator: Operator = vars(_layer(handle))["_operator"]
    return operator.results[call]


def _layer(handle: int) -> CachedLayer:
    layer = _LAYERS.get(handle)
    if layer is None:
        raise errors.InvalidArgument(
            f"[CachedLayer] there is no layer with the handle {handle} in this process: it was "
            "deleted, or the compiled program comes from another process; compile it anew"
        )
    return layer


class _Arguments:
    """A call, taken apart again."""

    def __init__(
        self,
        call: str,
        tensors: Sequence[torch.Tensor],
        integers: Sequence[int],
        floats: Sequence[float],
    ) -> None:
        nest, autocast = ast.literal_eval(call)
        self.args: tuple[Any, ...]
        self.kwargs: dict[str, Any]
        self.args, self.kwargs = unfold(nest, tensors, integers, floats)
        name = autocast.removeprefix("torch.")
        self.autocast = torch.autocast(
            tensors[0].device.type, getattr(torch, name) if name else None, enabled=bool(name)
        )


@torch.library.custom_op("tensorkey::cached", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def cached(
    handle: int,
    call: str,
    tensors: list[torch.Tensor],
    integers: list[int],
    floats: list[float],
) -> list[torch.Tensor]:
    """Answer as an eager call does, in fresh contiguous tensors."""
    layer = _layer(handle)
    operator: Operator = vars(layer)["_operator"]
    operator.check_modules()
    given = _Arguments(call, tensors, integers, floats)
    with given.autocast:
        output = layer._eager(given.args, given.kwargs)
    results: list[torch.Tensor] = []
    nest = fold(output, results)
    known = operator.results.setdefault(call, nest)
    if nest != known:
        raise errors.Unsupported(
            f"[CachedLayer] the layer was compiled with an output of the form {known} and now "
            f"gives {nest}; use compile='island'"
        )
    taken = {_storage(tensor) for tensor in tensors}
    fresh = []
    for result in results:
        result = result.detach().contiguous()
        if _storage(result) in taken:  # a layer that ran alone may give what it got
            result = result.clone()
        taken.add(_storage(result))
        fresh.append(result)
    return fresh


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@cached.register_fake
def _shapes(
    handle: int,
    call: str,
    tensors: list[torch.Tensor],
    integers: list[int],
    floats: list[float],
) -> list[torch.Tensor]:
    """Run the layer on fake tensors."""
    layer = _layer(handle)
    own = vars(layer)
    mode = detect_fake_mode(tensors)
    if mode is None:
        raise errors.Unsupported(
            "[tensorkey::cached] expected fake tensors: meta tensors have no answers"
        )
    given = _Arguments(call, tensors, integers, floats)
    target = _Target(own["inner"], own["_method"])
    state = {**dict(target.named_parameters()), **dict(target.named_buffers())}
    fake: dict[str, torch.Tensor] = {
        name: mode.from_tensor(tensor, static_shapes=True) for name, tensor in state.items()
    }
    try:
        with torch.no_grad(), given.autocast:
            output = torch.func.functional_call(target, fake, given.args, given.kwargs)
    except AssertionError as error:
        raise errors.Unsupported(
            "[CachedLayer] compile='operator' cannot run this layer on fake tensors; does it hold "
            "tensors that are neither parameters nor buffers? use compile='island'"
        ) from error
    results: list[torch.Tensor] = []
    own["_operator"].results[call] = fold(output, results)
    return [torch.empty(r.shape, dtype=r.dtype, device=r.device) for r in results]


class _Target(nn.Module):
    """The method of a layer as a module, which functional_call asks for."""

    def __init__(self, inner: nn.Module, method: str) -> None:
        super().__init__()
        self.inner = inner
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.method == "forward":
            return self.inner(*args, **kwargs)
        return getattr(self.inner, self.method)(*args, **kwargs)
