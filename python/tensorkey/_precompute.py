"""Filling a cache from a loader, with a bar for those who wait."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from tensorkey._layer_runner import arguments_of
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
    total = len(batches) if hasattr(batches, "__len__") else None
    with _bar(total, progress) as bar:
        for number, batch in enumerate(batches):
            if keys:
                ids, inputs = batch
                args, kwargs = (inputs,), {}
                if not callable(inputs) or hasattr(inputs, "shape"):
                    args, kwargs = arguments_of(inputs)
                layer.with_keys(ids)(*args, **kwargs)
            else:
                args, kwargs = arguments_of(batch)
                layer(*args, **kwargs)  # type: ignore[operator]  # a layer is called
            if bar is not None:
                bar.update(number + 1, before, layer.stats)
        layer.cache.flush()
    return layer.stats.since(before)


def _bar(total: int | None, progress: bool | None) -> AbstractContextManager[Bar | None]:
    if progress is False or (progress is None and not sys.stderr.isatty()):
        return nullcontext()
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        if progress:
            raise
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
        done = now.since(before)
        seconds = perf_counter() - self._start
        text = ", ".join(_told(done, seconds, batches, self._total, now.bytes - before.bytes))
        self._progress.update(self._task, completed=batches, text=text)


def _told(
    done: LayerStats, seconds: float, batches: int, total: int | None, grown: int
) -> Iterator[str]:
    yield f"{done.lookups / max(seconds, 1e-9):.0f} rows/s"
    if done.lookups:
        yield f"{done.hits / done.lookups:.0%} hits"
    if total and done.misses and grown > 0:
        yield f"about {format_bytes(grown * total // batches)} in the end"
