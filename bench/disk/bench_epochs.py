"""How much do repeated epochs find on disk alone, when half of them fits?

20,000 rows of 1.5 KB of equal cost, no memory tier, a directory with room for half of them. Data
loaders read batches of 64 by get_many() and put() what is missing, twenty epochs or as many
requests. Statistics of use are written once a second, which is shorter than any epoch of a real
training; here they are written ten times an epoch, by flush(), so that an epoch need not take
seconds. Hit ratios are in %, over all requests, the first epoch's too; what is hit is compared.

Four processes share one directory, each reading a quarter of each epoch (as a distributed sampler
deals it), or all of it in an order of its own. `written` is bytes written per byte inserted: what
an evicted segment has that is worth keeping is written again.

    python bench/disk/bench_epochs.py [--epochs 20] > epochs.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import Row, show

import tensorkey as tk

KEYS = 20_000
BATCH = 64
COST = 0.001  # seconds that computing a row is said to take
PROCESSES = 4
REPORTS = 10  # an epoch

Stream = Iterator[np.ndarray]  # numbers of rows, an epoch at a time


def row_of(number: int) -> np.ndarray:
    """Return a row that tells its number."""
    return np.full(384, number, dtype=np.float32)


class Reader:
    """One process of a training: reads through a cache, and counts."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.cache = tk.ActivationCache(memory=None, disk=folder, disk_limit=limit)
        self.keys: dict[int, tk.Key] = {}

    def _key(self, number: int) -> tk.Key:
        key = self.keys.get(number)
        if key is None:
            key = self.keys[number] = tk.key(number.to_bytes(8, "little"))
        return key

    def epoch(self, numbers: np.ndarray) -> int:
        """Read all of them; return the number of hits."""
        hits = 0
        batches = np.array_split(numbers, max(1, len(numbers) // BATCH))
        for turn, batch in enumerate(batches):
            numbered = [int(number) for number in batch]
            keys = [self._key(number) for number in numbered]
            for number, key, entry in zip(numbered, keys, self.cache.get_many(keys), strict=True):
                if entry is None:
                    self.cache.put(key, row_of(number), COST)
                else:
                    hits += 1
                    assert np.frombuffer(entry[0], np.float32)[-1] == number
            if turn % max(1, len(batches) // REPORTS) == 0:
                self.cache.flush()
        self.cache.flush()
        return hits


def reshuffled(seed: int, epochs: int, first: int = 0) -> Stream:
    """All rows once an epoch, each time in another order."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        yield random.permutation(KEYS) + first


def fixed(seed: int, epochs: int) -> Stream:
    """All rows once an epoch, always in the same order."""
    order = np.random.default_rng(seed).permutation(KEYS)
    for _ in range(epochs):
        yield order


def zipf(seed: int, epochs: int) -> Stream:
    """Rows by Zipf's law, exponent 0.99."""
    random = np.random.default_rng(seed)
    weights = np.arange(1, KEYS + 1) ** -0.99
    for _ in range(epochs):
        yield random.choice(KEYS, KEYS, p=weights / weights.sum())


def full_size(folder: Path) -> int:
    """Bytes that a directory with all rows takes, without room that is free still."""
    reader = Reader(folder, 1 << 30)
    reader.epoch(np.arange(KEYS))
    inserted = reader.cache.stats.disk.inserted_bytes
    del reader
    return inserted + (folder / "index.db").stat().st_size


def figures(requests: int, hits: int, stats) -> dict[str, float]:
    """What is told of a stream."""
    assert stats.corrupt == 0
    offered = (requests - hits) * stats.inserted_bytes / max(1, stats.insertions)
    return {
        "hits, %": round(100 * hits / requests, 2),
        "written": round(stats.written_bytes / max(1, stats.inserted_bytes), 2),
        "inserted of offered, %": round(100 * stats.inserted_bytes / max(1.0, offered), 1),
        "dropped, %": round(100 * stats.dropped / max(1, requests - hits), 2),
    }


def run(folder: Path, limit: int, *streams: Stream) -> list[dict[str, float]]:
    """One process through one stream after the other, each with figures of its own."""
    reader = Reader(folder, limit)
    result = []
    for stream in streams:
        requests = hits = 0
        for numbers in stream:
            hits += reader.epoch(numbers)
            requests += len(numbers)
        stats = reader.cache.stats.disk
        assert stats.bytes <= limit
        result.append(figures(requests, hits, stats))
        reader.cache.reset_stats()
    return result


def worker(folder: Path, limit: int, rank: int, epochs: int, dealt: bool, barrier, results) -> None:
    """One process of several."""
    reader = Reader(folder, limit)
    requests = hits = 0
    for numbers in reshuffled(1 if dealt else rank, epochs):
        barrier.wait()
        part = numbers[rank::PROCESSES] if dealt else numbers
        hits += reader.epoch(part)
        requests += len(part)
    results.put((requests, hits, reader.cache.stats.disk))


def run_many(folder: Path, limit: int, epochs: int, dealt: bool) -> dict[str, float]:
    """Several processes that share the directory."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    workers = [
        context.Process(target=worker, args=(folder, limit, rank, epochs, dealt, barrier, results))
        for rank in range(PROCESSES)
    ]
    for each in workers:
        each.start()
    parts = [results.get(timeout=600) for _ in workers]
    for each in workers:
        each.join()
        assert each.exitcode == 0
    used = sum(file.stat().st_blocks * 512 for file in os.scandir(folder))
    assert used <= limit
    stats = parts[0][2].merge(part[2] for part in parts)
    return figures(sum(part[0] for part in parts), sum(part[1] for part in parts), stats)


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    rows: list[Row] = []

    def row(name: str, of: dict[str, float], bar: float | None = None) -> None:
        rows.append({"name": name, "figures": of} | ({} if bar is None else {"bar": bar}))

    with tempfile.TemporaryDirectory(prefix="tensorkey-bench-") as name:
        folder = Path(name)
        half = full_size(folder / "all") // 2
        row("reshuffled", *run(folder / "reshuffled", half, reshuffled(1, epochs)), 40)
        row("fixed order", *run(folder / "fixed", half, fixed(1, epochs)), 40)
        first, then = run(
            folder / "phases", half, reshuffled(1, epochs // 2), reshuffled(2, epochs, KEYS)
        )
        row(f"{epochs // 2} epochs of other rows", first)
        row("and then reshuffled", then)
        row("Zipf 0.99", *run(folder / "zipf", half, zipf(1, epochs)))
        row(
            "Zipf 0.99, room for an eighth",
            *run(folder / "tenth", max(half // 5, 4 << 20), zipf(1, epochs)),
        )
        dealt = run_many(folder / "dealt", half, epochs, True)
        row("4 processes, a quarter each", dealt, 30)
        all_of_it = run_many(folder / "alone", half, epochs // 2, False)
        row("4 processes, all of it each", all_of_it, 30)
    title = "hit ratio in %, room for half; bars: hits, and 2 bytes written per byte inserted"
    show("epochs", __doc__, {title: rows}, rounds=1, epochs=epochs)


if __name__ == "__main__":
    main()
