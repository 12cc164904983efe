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

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._contextlib import _DecoratorContextManager

from tensorkey import _core, errors
from tensorkey._torch_function import cached
from tensorkey._torch_layer import CachedLayer
from tensorkey._torch_swap import cache_submodule, uncache

__all__ = ["CachedLayer", "cache_submodule", "cached", "tensor", "uncache"]

_UNREAD = frozenset(vars(nn.Module())) - {"training"} | {
    *("_engine", "_monitor", "_options", "_operator"),
    "_is_torch_compile",  # a mark that torch.compile leaves on what it was given
}


class TorchModules:
    """How a fingerprint reads modules."""

    roots = frozenset({"torch", "tensorkey"})

    def tensor(self, value: Any) -> torch.Tensor | None:
        """Return a tensor as it is."""
        return value if isinstance(value, torch.Tensor) else None

    def leaf(self, value: Any) -> str | None:
        """Return the name of a dtype, device, layout or memory format."""
        if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
            return str(value)
        if isinstance(value, _DecoratorContextManager):  # no_grad and the like, in a closure
            return str(getattr(value, "mode", ""))
        return None

    def is_module(self, value: Any) -> bool:
        """Whether this is a module."""
        return isinstance(value, nn.Module)

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        """Return what counts: attributes, parameters and buffers by name, submodules in order."""
        if isinstance(module, torch.jit.ScriptModule):
            raise errors.Unsupported("a scripted module shows no code")
        own = {key: value for key, value in vars(module).items() if key not in _UNREAD}
        own |= module._parameters
        own |= module._buffers
        return dict(sorted(own.items())) | module._modules

    def containers(self, module: nn.Module) -> Iterator[dict[str, Any]]:
        """Yield the registries."""
        yield module._parameters
        yield module._buffers
        yield module._modules


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
