"""The counters of a memoized function."""

from __future__ import annotations

import threading
from collections import Counter

from tensorkey._fork import renew_after_fork

MAX_REASONS = 64


class Counts:
    """The counters of one function. Thread-safe."""

    def __init__(self) -> None:
        self.renew_locks()
        self.reset()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Set everything to zero."""
        with self._lock:
            self.hits = self.misses = 0
            self.seconds_saved = 0.0
            self.bypasses: Counter[str] = Counter()
            self.errors: Counter[str] = Counter()

    def hit(self, seconds: float) -> None:
        """Count a call that was answered."""
        with self._lock:
            self.hits += 1
            self.seconds_saved += seconds

    def miss(self) -> None:
        """Count a call that was computed and stored."""
        with self._lock:
            self.misses += 1

    def bypass(self, reason: str) -> None:
        """Count a call that ran the function only."""
        with self._lock:
            known = reason in self.bypasses or len(self.bypasses) < MAX_REASONS
            self.bypasses[reason if known else "other reasons"] += 1

    def error(self, error: BaseException) -> None:
        """Count an exception of the function."""
        with self._lock:
            self.errors[type(error).__name__] += 1
