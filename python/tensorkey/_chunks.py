"""Chunks: the misses of a batch run in groups of exactly B rows, the last one padded.

Running only the missing rows of a batch is not bit-identical to running the batch; chunks of one
fixed size, in freshly allocated memory, are what makes the answer to a row independent of the
pattern of hits (docs/frontends/pytorch.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from tensorkey import errors

DEFAULT = 32
"""Rows in a chunk: the smallest size without scalar tails in float32 kernels."""

Chunk = int | Literal["auto"]


def check_chunk(chunk: Chunk) -> Chunk:
    """Return `chunk` if it is "auto", 1 or a positive multiple of 32."""
    if chunk == "auto":
        return chunk
    if type(chunk) is int and (chunk == 1 or (chunk > 0 and chunk % 32 == 0)):
        return chunk
    raise errors.InvalidArgument(
        f"[CachedLayer] chunk is {chunk!r}; expected 'auto', 1 or a multiple of 32"
    )


def first_chunk(chunk: Chunk, rows: int) -> int:
    """Resolve `chunk` at the first call, which has `rows` rows."""
    if chunk == "auto":
        return DEFAULT if rows >= 16 else 1
    return chunk


def chunks(rows: Sequence[int], size: int) -> Iterator[tuple[int, int, list[int]]]:
    """Yield for each chunk: its first place in `rows`, how many count, the padded positions.

    Examples
    --------
    >>> list(chunks([4, 5, 9], 2))
    [(0, 2, [4, 5]), (2, 1, [9, 9])]
    """
    for first in range(0, len(rows), size):
        part = list(rows[first : first + size])
        count = len(part)
        yield first, count, part + part[-1:] * (size - count)
