"""Caches with a disk are written out when their process ends, however it ends by itself.

An interpreter that exits runs ``atexit``. The children of ``multiprocessing`` do not: they end by
``os._exit`` after running that module's finalizers, so a finalizer is registered with it wherever
it is loaded, in a forked child once it has thrown away those of its parent.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol


class Flushable(Protocol):
    """A cache that may have something to write."""

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all is written."""


_PATIENCE = 60.0
_FINALIZER_PRIORITY = 10  # before the finalizers of pools and queues, which have lower ones or none
_caches: weakref.WeakSet[Flushable] = weakref.WeakSet()


def flush_at_exit(cache: Flushable) -> None:
    """Have a cache flushed when the process ends; it is held weakly."""
    _caches.add(cache)
    _register_finalizer()


def _flush_all() -> None:
    for cache in list(_caches):
        cache.flush(_PATIENCE)


def _register_finalizer() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _flush_all, exitpriority=_FINALIZER_PRIORITY)


class _AfterFork:
    """What ``multiprocessing.util.register_after_fork`` holds on to."""


_after_fork = _AfterFork()


def _in_child() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is not None and len(_caches) > 0:
        # Run by multiprocessing when it has cleared the finalizers of the parent.
        util.register_after_fork(_after_fork, lambda _: _register_finalizer())


atexit.register(_flush_all)
os.register_at_fork(after_in_child=_in_child)
