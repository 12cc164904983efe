"""What a cached layer was called under before: what explain() compares with."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

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


def shape_of(tensors: Sequence[Any]) -> Shape:
    """Return what rows of these tensors look like.

    Examples
    --------
    >>> import numpy
    >>> shape_of([numpy.zeros((3, 8), "float32")])
    (('float32', (8,)),)
    """
    return tuple((_name(tensor.dtype), tuple(tensor.shape[1:])) for tensor in tensors)


def _name(dtype: Any) -> str:
    return getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]


class History:
    """The last calls that differ, the latest last.

    Parameters
    ----------
    names
        Of what is in an environment, for people.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._calls: dict[tuple[bytes, bytes], Seen] = {}
        self._parts: dict[bytes, tuple[bytes, tuple[object, ...], bytes]] = {}
        self.shapes: dict[Shape, None] = {}
        """Of rows that were run."""
        self.clock = perf_counter()
        """perf_counter() at the end of the last call."""

    def describe(
        self, about: bytes, structure: bytes, environment: tuple[object, ...], form: bytes
    ) -> None:
        """Note what an `about` stands for."""
        if len(self._parts) >= _MOST:
            self._parts.clear()
        self._parts[about] = (structure, environment, form)

    def called(self, about: bytes, weights: bytes) -> None:
        """Note a call that differs from the last one."""
        self._date()
        parts = self._parts.get(about)
        if parts is None:
            return
        self._calls.pop((about, weights), None)
        self._calls[about, weights] = Seen(about, weights, *parts, time.time())
        while len(self._calls) > _MOST:
            self._calls.pop(next(iter(self._calls)))

    def _date(self) -> None:
        """Note when calls like the last one were."""
        if self._calls:
            place, seen = self._calls.popitem()
            when = time.time() - (perf_counter() - self.clock)
            self._calls[place] = seen._replace(when=max(when, seen.when))

    def shaped(self, shape: Shape) -> None:
        """Note what rows look like."""
        if len(self.shapes) < _MOST:
            self.shapes[shape] = None

    def others(self, about: bytes, weights: bytes, form: bytes) -> Iterator[tuple[Seen, str]]:
        """Yield calls under something else than this, the nearest first, and how they differ."""
        from tensorkey._explain import told

        parts = self._parts.get(about)
        if parts is None:
            return
        self._date()
        now = Seen(about, weights, *parts, time.time())
        others = [seen for place, seen in self._calls.items() if place != (about, weights)]

        def distance(seen: Seen) -> tuple[int, float]:
            apart = (
                seen.structure != now.structure,
                seen.environment != now.environment,
                seen.form != now.form,
            )
            return sum(apart), -seen.when

        for seen in sorted(others, key=distance):
            yield seen, told(seen, now, self._names)
