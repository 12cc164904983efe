"""Filling a cache from a loader, with a bar for those who wait."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from tensorkey import errors
from tensorkey._layer_runner import arguments_of
from tensorkey._own_keys import is_function
from tensorkey._sizes import format_bytes
from tensorkey._stats import LayerStats

if TYPE_CHECKING:
    from tensorkey._cached import Cached


class Bar(Protocol):
    """A bar that is shown, or none."""

    def update(self, batches: int, before: LayerStats, now: LayerStats) -> None:
        """Show how far the fill is."""


def precompute(
    layer: Cached, batches: Iterable[Any], *, keys: bool, progress: bool | None
) -> LayerStats:
    """Run a layer over everything that a loader yields; return what was counted."""
    before = layer.stats
    core = layer._engine.core
    mode = core.mode
    total = operator.length_hint(batches) or None
    with _bar(total, progress) as bar:
        if mode == "auto":
            core.mode = "never"  # what nothing is found of yet looks not worth its cost
        try:
            for number, batch in enumerate(batches):
                with layer._inference():
                    _fill(layer, batch, keys)
                if bar is not None:
                    bar.update(number + 1, before, layer.stats)
        finally:
            core.mode = mode
        layer.cache.flush()
    return layer.stats.since(before)


def _fill(layer: Cached, batch: Any, keys: bool) -> None:
    call: Any = layer
    if keys:
        ids, batch = batch
        call = layer.with_keys(ids)
        if is_function(batch):
            call(batch)
            return
    if type(batch) is list:  # as a DataLoader makes of tuples
        batch = tuple(batch)
    args, kwargs = arguments_of(batch)
    call(*args, **kwargs)


def _bar(total: int | None, progress: bool | None) -> AbstractContextManager[Bar | None]:
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return nullcontext()
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        if progress:
            raise errors.Unsupported(
                "[precompute] the package rich is not installed: pip install tensorkey[cli]"
            ) from None
        return nullcontext()
    return _RichBar(total)


class _RichBar(AbstractContextManager["_RichBar"]):
    """A bar of rich, on the error stream."""

    def __init__(self, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._total = total
        self._start = perf_counter()
        self._progress = Progress(
            TextColumn("precompute"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total}" if total else "{task.completed:.0f}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("precompute", total=total, text="")

    def __enter__(self) -> _RichBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, batches: int, before: LayerStats, now: LayerStats) -> None:
        seconds = perf_counter() - self._start
        text = ", ".join(told(now.since(before), seconds, batches, self._total))
        self._progress.update(self._task, completed=batches, text=text)


def told(done: LayerStats, seconds: float, batches: int, total: int | None) -> Iterator[str]:
    """Tell how far a fill is.

    Parameters
    ----------
    done
        What it counted so far.
    seconds
        That it took.
    batches, total
        Of the loader: done, and all of them if that is known.

    Examples
    --------
    >>> from tensorkey._stats import CacheStats
    >>> done = LayerStats(lookups=200, hits=50, misses=150, cache=CacheStats(bytes=300, entries=3))
    >>> list(told(done, 2.0, 10, 40))
    ['100 rows/s', '25% hits', 'about 58.6 KiB new in the end']
    """
    yield f"{done.lookups / max(seconds, 1e-9):.0f} rows/s"
    if done.lookups:
        yield f"{done.hits / done.lookups:.0%} hits"
    if total and done.entries:
        a_row = done.bytes / done.entries
        yield f"about {format_bytes(int(a_row * done.misses * total / batches))} new in the end"
