"""``tk.check``: what caching a layer would come to, before anybody commits to it."""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tensorkey import errors
from tensorkey._layer_runner import arguments_of
from tensorkey._sizes import format_bytes

_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found; printed, one table."""

    rows: int
    """Of the batch."""
    verdict: str
    """What the probe measured: whether rows are independent, and the layer deterministic."""
    refused: str | None
    """Why rows cannot be cached, or why calls like this one run without the cache."""
    chunk: int | None
    """Rows that run together."""
    scope: list[str]
    """What the answers are known to depend on besides the rows."""
    assumptions: list[str]
    """What could not be read."""
    milliseconds_layer: float
    """A call of the layer alone, the median of some."""
    milliseconds_miss: float
    """A call through the cache in which no row is known; NaN if it is refused."""
    milliseconds_hit: float
    """A call through the cache in which all rows are known; NaN if it is refused."""
    bytes_row: int
    """What a row takes of the cache's bound."""

    @property
    def break_even(self) -> float:
        """The share of hits from which the cache is worth its cost; above 1: it never is."""
        saved = self.milliseconds_miss - self.milliseconds_hit
        extra = max(0.0, self.milliseconds_miss - self.milliseconds_layer)
        return extra / saved if saved > 0 else float("inf")

    def __str__(self) -> str:
        times = f"{self.milliseconds_layer:.3f} ms for {self.rows} rows"
        lines = [("verdict", self.refused or self.verdict), ("layer alone", times)]
        if self.refused is None:
            worth = self.break_even
            lines += [
                ("all hits", f"{self.milliseconds_hit:.3f} ms"),
                ("no hit", f"{self.milliseconds_miss:.3f} ms, in chunks of {self.chunk}"),
                ("worth it", f"from {worth:.1%} hits" if worth <= 1 else "never: it is too cheap"),
                ("a row", format_bytes(self.bytes_row)),
            ]
        lines += [("depends on", text) for text in self.scope]
        lines += [("assumed", text) for text in self.assumptions or ["nothing"]]
        return "\n".join(f"{name:<12} {text}" for name, text in lines)


def check(layer: Any, batch: Any) -> Check:
    """Measure what a cache in front of a layer would come to.

    The layer runs some twenty times on the batch, the probe included. Nothing is kept.

    Parameters
    ----------
    layer
        A module of PyTorch or a layer of Keras; or a cached layer, whose options then count.
    batch
        A batch as the layer will see it: a tuple is arguments by position, a mapping arguments by
        name, anything else one argument.

    Returns
    -------
    Check
        Print it.

    Examples
    --------
    >>> import torch
    >>> import tensorkey as tk
    >>> layer = torch.nn.Linear(16, 8).eval().requires_grad_(False)
    >>> found = tk.check(layer, torch.randn(32, 16))
    >>> found.refused is None, found.chunk, found.bytes_row > 32
    (True, 32, True)
    """
    args, kwargs = arguments_of(batch)
    alone, make = _makers(layer)
    alone(*args, **kwargs)  # a first call may build and load
    layer_seconds = _median(lambda: alone(*args, **kwargs))
    cached = make()
    rows, refused = 1, None
    hit = miss = float("nan")
    try:
        cached(*args, **kwargs)  # Keras builds wrappers in a first call; the probe runs in it
        cached(*args, **kwargs)
        bypassed = [why for why in cached.stats.bypasses if "first call" not in why]
        refused = f"runs without the cache: {bypassed[0]}" if bypassed else None
    except errors.Error as error:
        refused = str(error)
    stats = cached.stats
    if refused is None:
        rows = stats.lookups // max(1, stats.batches)
        hit = 1e3 * _median(lambda: cached(*args, **kwargs))
        miss = 1e3 * _median_of_misses(cached, lambda: cached(*args, **kwargs))
        stats = cached.stats
    return Check(
        rows=rows,
        verdict=stats.probe,
        refused=refused,
        chunk=stats.chunk,
        scope=cached._engine.describe(),
        assumptions=stats.assumptions,
        milliseconds_layer=1e3 * layer_seconds,
        milliseconds_miss=miss,
        milliseconds_hit=hit,
        bytes_row=(stats.bytes - stats.cache.metadata) // max(1, stats.entries),
    )


def _makers(layer: Any) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Return the layer alone, and a function that wraps it for the measurement."""
    from tensorkey._cached import Cached

    if isinstance(layer, Cached):
        return layer._alone(), lambda: layer._twin(memory="1 GiB", bypass="never")
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if keras is not None and isinstance(layer, keras.layers.Layer):
        from tensorkey.keras import CachedLayer as OfKeras

        return layer, lambda: OfKeras(layer, bypass="never")
    if torch is not None and isinstance(layer, torch.nn.Module):
        from tensorkey.torch import CachedLayer

        return torch.no_grad()(layer), lambda: CachedLayer(layer, bypass="never")
    raise errors.Unsupported(
        f"[check] {type(layer).__name__}; expected a torch.nn.Module, a Keras layer or "
        "a CachedLayer"
    )


def _median(call: Callable[[], Any]) -> float:
    return statistics.median(_seconds(call) for _ in range(_RUNS))


def _median_of_misses(cached: Any, call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_RUNS):
        cached.cache_clear()
        times.append(_seconds(call))
    return statistics.median(times)


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
