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

import torch

from tensorkey import _core
from tensorkey._torch_function import cached
from tensorkey._torch_layer import CachedLayer
from tensorkey._torch_swap import cache_submodule, uncache

__all__ = ["CachedLayer", "cache_submodule", "cached", "tensor", "uncache"]


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
