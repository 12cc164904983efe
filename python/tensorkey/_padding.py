"""Rows that differ in nothing but trailing padding: noticed, so that stats can name the cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MOST = 4096
HINT = (
    "rows that differ only in their trailing padding were run again: the same text has other keys "
    "in a batch of another length; trim=('attention_mask', 1) would make them hits"
)


class PaddingWatch:
    """Remembers missing rows of integers without their trailing run of one value.

    Examples
    --------
    >>> import numpy
    >>> watch = PaddingWatch()
    >>> watch.observe([numpy.array([[7, 8, 0]])], [0])
    >>> watch.observe([numpy.array([[7, 8, 0, 0]])], [0])
    >>> watch.rows
    1
    """

    def __init__(self) -> None:
        self.rows = 0
        """Rows that were there already, at another length."""
        self._seen: dict[bytes, int] = {}

    def observe(self, tensors: Sequence[Any], positions: Sequence[int]) -> None:
        """Look at rows that are run.

        Parameters
        ----------
        tensors
            Arrays of integers of rank 2, of one batch: what else there is should be left out.
        positions
            Of the rows.
        """
        if not tensors or len(self._seen) >= _MOST:
            return
        first = tensors[0]
        length = first.shape[1]
        for position in dict.fromkeys(positions):
            row = first[position]
            if length < 2:
                continue
            kept = length
            while kept > 1 and row[kept - 1] == row[length - 1]:
                kept -= 1
            text = row[:kept].tobytes()
            seen = self._seen.setdefault(text, length)
            if seen != length:
                self.rows += 1
