"""``tk.check``: what caching a layer would come to, before anybody commits to it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tensorkey import errors
from tensorkey._layer_runner import arguments_of
from tensorkey._random_state import RandomState
from tensorkey._sizes import format_bytes

_RUNS = 9  # fingerprint="auto" looks at all weights until it has measured 8
_LONGEST = 2.0  # seconds of such runs, but never fewer than 3


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
    notes: list[str]
    """What else to know."""
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
        lines += [("note", text) for text in self.notes]
        return "\n".join(f"{name:<12} {text}" for name, text in lines)


def check(layer: Any, batch: Any) -> Check:
    """Measure what a cache in front of a layer would come to.

    The layer runs some thirty times, the probe included, as in inference. Nothing is kept: buffers
    and the random state are put back.

    Parameters
    ----------
    layer
        A module of PyTorch or a layer of Keras; or a cached layer, whose options then count, but
        not its cache.
    batch
        A batch as the layer will see it: a tuple is arguments by position, a mapping arguments by
        name, anything else one argument.

    Returns
    -------
    Check
        Print it.

    Raises
    ------
    tensorkey.errors.Unsupported
        For something else than a layer. A layer that is refused is none: the table says why.

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
    alone, cached = _made(layer)
    backend = cached._engine.backend
    state = RandomState(backend)
    saved = backend.save(cached._engine.fingerprint.read().tensors)
    try:
        with cached._inference():
            calls = [functools.partial(one, *args, **kwargs) for one in (alone, cached)]
            return _measured(cached, *calls)
    finally:
        state.restore()
        backend.restore(saved)


def _measured(cached: Any, alone: Callable[[], Any], call: Callable[[], Any]) -> Check:
    alone()  # a first call may build and load
    layer_seconds = _median(alone)
    rows, refused = 1, None
    hit = miss = float("nan")
    try:
        call()  # Keras builds wrappers in a first call; the probe runs in it
        call()
        bypassed = [why for why in cached.stats.bypasses if "first call" not in why]
        refused = f"runs without the cache: {bypassed[0]}" if bypassed else None
    except errors.Error as error:
        refused = str(error)
    if refused is None:
        stats = cached.stats
        rows = stats.lookups // max(1, stats.batches)
        miss = 1e3 * _median(call, cached.cache_clear)
        hit = 1e3 * _median(call)
    stats = cached.stats
    notes = []
    weights = cached._engine.fingerprint.reading().tensors
    if any(getattr(weight, "requires_grad", False) for weight in weights):
        notes.append("while gradients are recorded it runs without the cache: it is trainable")
    return Check(
        rows=rows,
        verdict=stats.probe,
        refused=refused,
        chunk=stats.chunk,
        scope=cached._engine.describe(),
        assumptions=stats.assumptions,
        notes=notes,
        milliseconds_layer=1e3 * layer_seconds,
        milliseconds_miss=miss,
        milliseconds_hit=hit,
        bytes_row=int(statistics.median([entry.bytes for entry in cached.cache.snapshot()] or [0])),
    )


def _made(layer: Any) -> tuple[Callable[..., Any], Any]:
    """Return the layer alone, and wrapped for the measurement."""
    from tensorkey._cached import Cached

    if isinstance(layer, Cached):
        return layer._alone(), layer._twin(memory="1 GiB", bypass="never")
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    frontend = ""
    if keras is not None and isinstance(layer, keras.layers.Layer):
        frontend = "keras"
    elif torch is not None and isinstance(layer, torch.nn.Module):
        frontend = "torch"
    if frontend:
        wrapper: Any = importlib.import_module(f"tensorkey.{frontend}")
        return layer, wrapper.CachedLayer(layer, bypass="never")
    raise errors.Unsupported(
        f"[check] {type(layer).__name__}; expected a torch.nn.Module, a Keras layer or "
        "a CachedLayer"
    )


def _median(call: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> float:
    times: list[float] = []
    while len(times) < _RUNS and (len(times) < 3 or sum(times) < _LONGEST):
        before()
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return statistics.median(times)
