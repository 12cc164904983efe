"""Are rows on disk cheaper with us than with what one would use instead?

Rows of 1.5 KB (384 float32) from Python under ready keys, the same on all sides, no memory tier:
64 in a call (as 64 values, and in a table of 64 x 384), one in a call, and written (by us 256 in a
call, and one in a call). Against
diskcache, a function cached by joblib.Memory, blobs in SQLite, and one file per entry. A ratio is
their time over ours: above 1 if we are faster. All others have rows as plain bytes, which is what
they are fastest with. Reads are of random rows out of as many entries for all but joblib, which
has 2,000; files are in the page cache. diskcache maps 64 MiB of its file into memory: 20,000 rows
fit in it, 100,000 do not. Every value that is read is compared before anything is timed, and every
row that was written is found again.

Not compared: bounds (only ours and diskcache's have one, which none reaches), checksums (only ours
has one), several processes, and what an fsync costs (nobody asks for one).

    python bench/disk/bench_disk.py [--rounds 21] > disk.json
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import Row, against, interleaved, show
from contestants import (
    Blobs,
    BlobsOneByOne,
    Contestant,
    DiskCache,
    Files,
    Joblib,
    Rows,
    TensorKey,
    TensorKeyOneByOne,
)

import tensorkey as tk

READ = (100_000, 20_000)  # entries that are read from
READ_JOBLIB = 2_000
BATCH = 64
WIDTH = 384
WRITTEN = 100_000
# Of a round of writing; the time of a row is what is compared.
OTHERS_WRITTEN = {
    TensorKeyOneByOne: 100_000,
    DiskCache: 10_000,
    Joblib: 1_000,
    Blobs: 20_000,
    Files: 10_000,
}
WRITE_ROUNDS = 3
OURS = TensorKey.name


def rows_of(count: int, seed: int) -> Rows:
    """Keys and their rows."""
    values = np.random.default_rng(seed).random((count, WIDTH), dtype=np.float32)
    return {tk.key(value): value for value in values}


def some(rows: Rows, count: int) -> Rows:
    """Return the first of the rows."""
    return dict(itertools.islice(rows.items(), count))


def check(contestant: Contestant, rows: Rows) -> None:
    """Compare all that it has with what was written."""
    keys = list(rows)
    table = np.empty((BATCH, WIDTH), dtype=np.float32)
    for at in range(0, len(keys), BATCH):
        part = keys[at : at + BATCH]
        contestant.fill(part, table[: len(part)])
        values = contestant.get_many(part)
        for i, (key, value) in enumerate(zip(part, values, strict=True)):
            assert bytes(memoryview(value).cast("B")) == rows[key].tobytes(), contestant.name
            assert table[i].tobytes() == rows[key].tobytes(), contestant.name
    assert bytes(memoryview(contestant.get(keys[0])).cast("B")) == rows[keys[0]].tobytes()


def measure_reads(folder: Path, count: int, rounds: int) -> dict[str, list[Row]]:
    """Time reading, in turns."""
    folder.mkdir()
    rows = rows_of(count, 1)
    contestants, batches = [], {}
    for kind in (TensorKey, DiskCache, Joblib, Blobs, BlobsOneByOne, Files):
        contestant = kind(folder)
        has = some(rows, READ_JOBLIB if kind is Joblib else count)
        if kind is not BlobsOneByOne:
            contestant.write(has)
        check(contestant, has)
        keys = list(has)
        random.Random(1).shuffle(keys)
        contestants.append(contestant)
        whole = len(keys) - len(keys) % BATCH
        batches[contestant.name] = [keys[i : i + BATCH] for i in range(0, whole, BATCH)]

    def times(call: Callable[[Contestant, list[tk.Key]], object], size: int) -> dict[str, list]:
        def work(contestant: Contestant) -> Callable[[], object]:
            turns = itertools.cycle(batches[contestant.name])
            return lambda: call(contestant, next(turns))

        works = {each.name: work(each) for each in contestants}
        found = interleaved(works, rounds, 0.02)
        return {name: [time / size for time in part] for name, part in found.items()}

    def one_by_one(contestant: Contestant, keys: list[tk.Key]) -> None:
        get = contestant.get
        for key in keys:
            get(key)

    table = np.empty((BATCH, WIDTH), dtype=np.float32)
    title = f"a row of 1.5 KB out of {count:,}"
    bars = {DiskCache.name: 7, Joblib.name: 100}
    one = times(one_by_one, BATCH)
    del one[BlobsOneByOne.name]
    tables = {
        f"{title}, {BATCH} in a call": against(
            times(lambda each, keys: each.get_many(keys), BATCH), OURS, bars
        ),
        f"{title}, {BATCH} in a call, into a table": against(
            times(lambda each, keys: each.fill(keys, table), BATCH), OURS, bars
        ),
        f"{title}, one in a call": against(one, OURS, {DiskCache.name: 4}),
    }
    stats = contestants[0].cache.stats.disk
    assert stats.misses == stats.corrupt == stats.errors == 0
    return tables


def measure_writes(folder: Path) -> list[Row]:
    """Time writing into new stores, in turns."""
    times: dict[str, list[float]] = {}
    for turn in range(WRITE_ROUNDS):
        rows = rows_of(WRITTEN, 2 + turn)
        for kind in (TensorKey, *OTHERS_WRITTEN):
            place = folder / f"{kind.__name__}{turn}"
            place.mkdir()
            contestant = kind(place)
            part = some(rows, OTHERS_WRITTEN.get(kind, WRITTEN))
            os.sync()  # nobody waits for the pages that others have left
            start = time.perf_counter_ns()
            contestant.write(part)
            took = (time.perf_counter_ns() - start) / len(part)
            times.setdefault(contestant.name, []).append(took)
            if isinstance(contestant, TensorKey):
                stats = contestant.cache.stats.disk
                assert stats.insertions == stats.entries == WRITTEN
                assert stats.dropped == stats.rejections == stats.errors == 0
            check(contestant, part)
    table = against(times, OURS, {DiskCache.name: 10, Joblib.name: 100})
    for row, count in zip(table, (WRITTEN, *OTHERS_WRITTEN.values()), strict=True):
        row["note"] = f"{count:,} rows a round"
    return table


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="tensorkey-bench-") as folder:
        tables = {}
        for count in READ:
            tables |= measure_reads(Path(folder) / str(count), count, rounds)
        table = measure_writes(Path(folder))
    tables["a row of 1.5 KB, written, flush() included"] = table
    show("disk", __doc__, tables, rounds=rounds, threads=1)


if __name__ == "__main__":
    main()
