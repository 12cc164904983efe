"""What a cached layer was called under before: what explain() compares with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from tensorkey._fingerprint import State

_MOST = 32


class Seen(NamedTuple):
    """What the rows of a call belong to."""

    about: bytes
    weights: bytes
    structure: bytes
    environment: tuple[object, ...]
    form: bytes
    when: float
    """time.time() of the last call."""


Shape = tuple[tuple[str, tuple[int, ...]], ...]
"""Name of the dtype and shape of a row, for each tensor."""


class History:
    """The last calls that differ, the latest last."""

    def __init__(self) -> None:
        self._calls: dict[tuple[bytes, bytes], Seen] = {}
        self._parts: dict[bytes, tuple[bytes, tuple[object, ...], bytes]] = {}
        self.shapes: dict[Shape, None] = {}
        """Of rows that were looked up."""

    def describe(
        self, about: bytes, structure: bytes, environment: tuple[object, ...], form: bytes
    ) -> None:
        """Note what an `about` stands for."""
        if len(self._parts) >= _MOST:
            self._parts.clear()
        self._parts[about] = (structure, environment, form)

    def called(self, about: bytes, weights: bytes) -> None:
        """Note a call; REQUIRES that it differs from the last one."""
        parts = self._parts.get(about)
        if parts is None:
            return
        self._calls.pop((about, weights), None)
        self._calls[about, weights] = Seen(about, weights, *parts, time.time())
        while len(self._calls) > _MOST:
            self._calls.pop(next(iter(self._calls)))

    def shaped(self, shape: Shape) -> None:
        """Note what rows look like."""
        if len(self.shapes) < _MOST:
            self.shapes[shape] = None

    def about(self, about: bytes, state: State) -> Iterator[tuple[Seen, str]]:
        """Yield calls under something else than this, the nearest first, and how they differ."""
        from tensorkey._explain import told

        parts = self._parts.get(about)
        if parts is None:
            return
        now = Seen(about, state.weights, *parts, time.time())
        others = [seen for key, seen in self._calls.items() if key != (about, state.weights)]

        def distance(seen: Seen) -> tuple[int, float]:
            apart = (
                seen.structure != now.structure,
                seen.environment != now.environment,
                seen.form != now.form,
            )
            return sum(apart), -seen.when

        for seen in sorted(others, key=distance):
            yield seen, told(seen, now)
