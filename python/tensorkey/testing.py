"""Checks that every frontend's tests share: what a cached layer promises, asked of any of them.

Examples
--------
>>> from tensorkey.testing import random_batches
>>> sizes = [len(batch) for batch in random_batches(rows=10, count=3, seed=0)]
>>> all(1 <= size <= 40 for size in sizes)
True
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["check_hits_equal_chunks", "random_batches", "run_in_chunks"]


def random_batches(rows: int, count: int, seed: int, largest: int = 40) -> Iterator[list[int]]:
    """Yield batches as positions among `rows` rows: any size, any order, with duplicates."""
    source = random.Random(seed)
    for _ in range(count):
        yield [source.randrange(rows) for _ in range(source.randint(1, largest))]


def run_in_chunks(
    run: Callable[[Sequence[int]], Any], rows: Sequence[int], chunk: int
) -> list[Any]:
    """Return the answers to `rows`, computed in padded chunks without any cache.

    Parameters
    ----------
    run
        From positions to the layer's output for these rows, in fresh memory.
    rows
        Positions to answer.
    chunk
        Rows in a chunk.
    """
    answers: list[Any] = []
    for first in range(0, len(rows), chunk):
        part = list(rows[first : first + chunk])
        output = run(part + part[-1:] * (chunk - len(part)))
        answers += [output[i] for i in range(len(part))]
    return answers


def check_hits_equal_chunks(
    cached: Callable[[Sequence[int]], Any],
    run: Callable[[Sequence[int]], Any],
    same_bits: Callable[[Any, Any], bool],
    *,
    rows: int,
    chunk: int,
    count: int,
    seed: int,
    restart: Callable[[], None] | None = None,
) -> None:
    """Assert that whatever the pattern of hits, answers are those of the layer run in chunks.

    Parameters
    ----------
    cached
        From positions to the cached layer's output.
    run
        From positions to the layer's own output.
    same_bits
        Compares one row of both.
    rows, chunk, count, seed
        Rows to draw from, rows in a chunk, number of batches, seed of their choice.
    restart
        Empties the cache; called before one batch in ten.

    Raises
    ------
    AssertionError
        Naming the first batch that differs.
    """
    truth = run_in_chunks(run, range(rows), chunk)
    source = random.Random(seed + 1)
    for number, batch in enumerate(random_batches(rows, count, seed)):
        if restart is not None and source.random() < 0.1:
            restart()
        output = cached(batch)
        if len(output) != len(batch):
            raise AssertionError(f"batch {number}: {len(output)} rows for {len(batch)}")
        wrong = [row for i, row in enumerate(batch) if not same_bits(output[i], truth[row])]
        if wrong:
            raise AssertionError(f"batch {number}: {len(wrong)} of {len(batch)} rows differ")
