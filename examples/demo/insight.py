"""What a cached layer tells of itself: before it is used, about a batch, and about its own hits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from encoder import CHUNK, Texts
from torch import nn

import tensorkey as tk
from tensorkey.torch import CachedLayer


def checked(encoder: nn.Module, texts: Texts) -> str:
    """Measure what a cache would come to for a chunk of texts."""
    return str(tk.check(encoder, texts.batch(list(range(min(CHUNK, len(texts)))))))


def explained(layer: CachedLayer, texts: Texts, indices: list[int], length: int) -> str:
    """Say of a known batch, and of it in two other forms, which rows would be hits, and why."""
    ids, mask = texts.batch(indices, length)
    with torch.no_grad():
        told = {
            "as it was": layer.explain(ids, mask),
            f"padded to {length + 8} tokens": layer.explain(*texts.batch(indices, length + 8)),
        }
        with torch.autocast("cpu", torch.bfloat16):
            told["in bfloat16"] = layer.explain(ids, mask)
    return "\n".join(
        f"explain, a batch {name}: {line}"
        for name, explanation in told.items()
        for line in str(explanation).splitlines()
    )


def verified(
    layer: CachedLayer, texts: Texts, batches: Iterable[tuple[list[int], int]], share: float
) -> tuple[int, int, int]:
    """Ask for all texts once more, through a layer that computes a share of its hits again.

    Returns the hits, how many of them were computed again, and how many of these differ.
    """
    careful = CachedLayer(layer.inner, cache=layer.cache, chunk=CHUNK, bypass="never", verify=share)
    with torch.no_grad():
        for indices, length in batches:
            careful(*texts.batch(indices, length))
    stats = careful.stats
    return stats.hits, stats.verified, stats.deviating
