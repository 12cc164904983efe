"""How much of what the system gives does a read of 1 MiB get, checked as it is?

Entries of 1 MiB from Python: cache.read(key, out) into a buffer of the caller's, against os.preadv
of as many bytes from one plain file into the same buffer, in the same order. Ours verifies a
checksum of all bytes. Warm: all is in the page cache. Cold: it was dropped from there before each
round (posix_fadvise), and the disk really read it. The ratio is their time over ours: 1 where
checking costs nothing. Every value that is read is compared first.

    python bench/disk/bench_large.py [--rounds 21] > large.json
"""

from __future__ import annotations

import argparse
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

import tensorkey as tk

ENTRIES = 128
SIZE = 1 << 20
COLD_ROUNDS = 9
OURS = "tensorkey.ActivationCache.read"
PLAIN = "os.preadv into the same buffer"


def drop(files: list[Path]) -> None:
    """Take files out of the page cache."""
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def read_from_disk() -> int:
    """Return how many bytes the disk has given this process."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    values = np.random.default_rng(1).integers(0, 255, (ENTRIES, SIZE), dtype=np.uint8)
    out = np.empty(SIZE, dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="tensorkey-bench-") as name:
        plain = Path(name) / "plain"
        values.tofile(plain)
        folder = Path(name) / "cache"
        cache = tk.ActivationCache(memory=None, disk=folder, disk_limit="1 GiB")
        keys = [tk.key(number.to_bytes(8, "little")) for number in range(ENTRIES)]
        for key, value in zip(keys, values, strict=True):
            cache.put(key, value, 1.0)
            cache.flush()
        segments = sorted(folder.glob("*.seg"))
        file = os.open(plain, os.O_RDONLY)
        order = list(range(ENTRIES))
        random.Random(1).shuffle(order)

        def ours() -> None:
            read = cache.read
            for number in order:
                read(keys[number], out)

        def theirs() -> None:
            read = os.preadv
            for number in order:
                read(file, [out], number * SIZE)

        for number in order:
            assert cache.read(keys[number], out)
            assert np.array_equal(out, values[number])
            assert os.preadv(file, [out], number * SIZE) == SIZE
            assert np.array_equal(out, values[number])
        works: dict[str, Callable[[], None]] = {OURS: ours, PLAIN: theirs}
        tables: dict[str, list[Row]] = {}
        tables["1 MiB, warm"] = against(interleaved(works, rounds), OURS, {PLAIN: 0.5})
        times: dict[str, list[float]] = {each: [] for each in works}
        for turn in range(COLD_ROUNDS):
            for each in list(works) if turn % 2 else reversed(works):
                files = segments if each is OURS else [plain]
                drop(files)
                before = read_from_disk()
                start = time.perf_counter_ns()
                works[each]()
                times[each].append(time.perf_counter_ns() - start)
                assert read_from_disk() - before >= ENTRIES * SIZE, "they were in the page cache"
        tables["1 MiB, cold"] = against(times, OURS, {PLAIN: 0.9})
        stats = cache.stats.disk
        assert stats.misses == stats.corrupt == stats.errors == 0
        os.close(file)
    for table in tables.values():
        for row in table:
            row["ns"] = round(row["ns"] / ENTRIES)
    show("large", __doc__, tables, rounds=rounds, threads=1)


if __name__ == "__main__":
    main()
