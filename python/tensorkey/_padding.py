"""Rows that differ in nothing but trailing padding: noticed, so that stats can name the cure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_MOST = 4096  # texts
HINT = (
    "rows that differ only in their trailing padding were run again: the same text has other keys "
    "in a batch of another length; trim=, such as trim=('attention_mask', 1), makes them hits"
)


class PaddingWatch:
    """Remembers missing rows of integers as they are and without their trailing run of one value.

    Examples
    --------
    >>> import numpy
    >>> watch = PaddingWatch()
    >>> watch.observe(numpy.array([[7, 8]]), [0])
    >>> watch.observe(numpy.array([[7, 8, 0, 0]]), [0])
    >>> watch.rows
    1
    """

    def __init__(self) -> None:
        self.rows = 0
        """Rows that were there already, at another length."""
        self._lengths: dict[bytes, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether no more rows are looked at: the first some thousand tell."""
        return len(self._lengths) >= _MOST

    def observe(self, batch: Any, positions: Sequence[int]) -> None:
        """Look at rows that are run.

        Parameters
        ----------
        batch
            An array of integers, of rank 2.
        positions
            Of the rows.
        """
        import numpy

        length = batch.shape[1]
        if length < 2 or self.is_full:
            return
        rows = numpy.ascontiguousarray(batch[list(dict.fromkeys(positions))])
        others = rows[:, ::-1] != rows[:, -1:]
        kept = numpy.where(others.any(1), length - others.argmax(1), 1)
        for row, end in zip(rows, kept.tolist(), strict=True):
            texts = (row.tobytes(), row[:end].tobytes())
            lengths = [self._lengths.setdefault(text, length) for text in texts]
            self.rows += any(other != length for other in lengths)
