"""What does a directory cost that has many entries, many readers, or a long history?

Opening: 10^6 entries of 64 B; in a fresh process, which has imported the library, the time from
the constructor to the first hit, and until the copy of the index in memory is complete: until the
thread that fills it sleeps. The files are in the page cache.

Four readers: processes that read random rows of 1.5 KB out of 100,000, 64 in a call, by the CPU
time of a row, their background threads included; the ratio is the time of one alone over that of
the slowest of four.

Index: bytes of index.db an entry, after everything in the directory has been replaced ten times by
entries that are worth more.

    python bench/disk/bench_directory.py [--rounds 7] > directory.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import Row, show, spread

import tensorkey as tk

MANY = 1_000_000
ROWS = 100_000
BATCH = 64
READS = 800 * BATCH
PROCESSES = 4

# In a process of its own: [ms to the first hit, ms to the whole index, bytes of it].
OPEN = """
import json, pathlib, sys, time
import tensorkey as tk

def asleep():
    states = [path.read_text().rpartition(")")[2].split()[0] for path in tasks.glob("*/stat")]
    return sorted(states) == ["R", "S"]  # this thread runs, the other waits for work

tasks = pathlib.Path("/proc/self/task")
key = tk.key(int(sys.argv[2]).to_bytes(8, "little"))
absent = tk.key(b"absent")
start = time.perf_counter()
cache = tk.ActivationCache(memory=None, disk=sys.argv[1])
entry = cache.get(key)
hit = time.perf_counter() - start
assert bytes(entry[0]) == key.bytes * 2
seen = 0
while seen < 5:
    seen = seen + 1 if asleep() else 0
    if seen == 1:
        full = time.perf_counter() - start
    time.sleep(0.001)
size = cache.stats.disk.index_bytes
time.sleep(0.7)  # nothing is added then
assert cache.stats.disk.index_bytes == size
assert cache.get(absent) is None
print(json.dumps([1000 * hit, 1000 * full, size]))
"""


def key(number: int) -> tk.Key:
    """Return the key of an entry."""
    return tk.key(number.to_bytes(8, "little"))


def measure_opening(folder: Path, rounds: int) -> list[Row]:
    """Build a large directory, and open it in fresh processes."""
    cache = tk.ActivationCache(memory=None, disk=folder, disk_limit="4 GiB")
    for number in range(MANY):
        name = key(number)
        cache.put(name, name.bytes * 2, 1.0)
    cache.flush()
    stats = cache.stats.disk
    assert stats.entries == MANY
    assert stats.dropped == stats.errors == 0
    del cache
    runs = []
    for turn in range(rounds):
        number = str(turn * MANY // rounds)
        command = [sys.executable, "-c", OPEN, str(folder), number]
        runs.append(json.loads(subprocess.run(command, check=True, stdout=-1).stdout))
    hit, full, size = (sorted(part)[rounds // 2] for part in zip(*runs, strict=True))
    worst = [max(part) for part in zip(*runs, strict=True)]
    return [
        {"name": "first hit, ms", "figures": {"median": hit, "most": worst[0]}, "bar": 50},
        {"name": "index complete, ms", "figures": {"median": full, "most": worst[1]}, "bar": 500},
        {
            "name": "index in memory, bytes an entry",
            "figures": {"median": size / MANY, "most": worst[2] / MANY},
            "bar": 48,
        },
    ]


def reader(folder: Path, seed: int, orders, results) -> None:
    """Read as often as it is told to, and tell the CPU time of a row."""
    cache = tk.ActivationCache(memory=None, disk=folder)
    numbers = [random.Random(seed).randrange(ROWS) for _ in range(READS)]
    keys = [key(number) for number in numbers]
    batches = [keys[at : at + BATCH] for at in range(0, READS, BATCH)]
    for number, entry in zip(numbers, cache.get_many(keys), strict=True):
        assert np.frombuffer(entry[0], np.float32)[-1] == number
    time.sleep(1)  # the index is in memory
    while orders.get():
        start = time.process_time_ns()
        for batch in batches:
            cache.get_many(batch)
        results.put((time.process_time_ns() - start) / READS)
    stats = cache.stats.disk
    assert stats.misses == stats.corrupt == stats.errors == 0


def measure_readers(folder: Path, rounds: int) -> list[Row]:
    """Time one reader alone and all at once, in turns."""
    cache = tk.ActivationCache(memory=None, disk=folder, disk_limit="1 GiB")
    for number in range(ROWS):
        cache.put(key(number), np.full(384, number, dtype=np.float32), 1.0)
    cache.flush()
    context = multiprocessing.get_context("spawn")
    queues = [(context.Queue(), context.Queue()) for _ in range(PROCESSES)]
    workers = [
        context.Process(target=reader, args=(folder, seed, *pair))
        for seed, pair in enumerate(queues)
    ]
    for worker in workers:
        worker.start()

    def read(count: int) -> float:
        for orders, _ in queues[:count]:
            orders.put(True)
        return max(results.get(timeout=120) for _, results in queues[:count])

    read(PROCESSES)
    times = [(read(1), read(PROCESSES)) for _ in range(rounds)]
    for orders, _ in queues:
        orders.put(False)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    alone, together = (sorted(part)[rounds // 2] for part in zip(*times, strict=True))
    return [
        {"name": "one process alone", "ns": alone, "ratio": 1.0},
        {
            "name": "the slowest of four at once",
            "ns": together,
            **spread([one / four for one, four in times]),
            "bar": 0.8,
        },
    ]


def measure_index(folder: Path, size: int, limit: int) -> Row:
    """Replace all entries ten times, and look at the index."""
    cache = tk.ActivationCache(memory=None, disk=folder, disk_limit=limit)
    number, worth, replaced = 0, 0.001, 0.0
    for _ in range(20):
        before = cache.stats.disk
        # Half as many again as fit, as the first of them have to wait for room.
        for _ in range(3 * limit // (2 * (size + 250))):
            cache.put(key(number), bytes(size), worth)
            number += 1
        cache.flush()
        after = cache.stats.disk
        replaced += (after.evictions - before.evictions) / max(before.entries, after.entries)
        worth *= 3
        if replaced >= 10:
            break
    assert replaced >= 10
    entries = cache.stats.disk.entries
    log = (folder / "index.db-wal").stat().st_size
    open_size = (folder / "index.db").stat().st_size
    del cache
    closed_size = (folder / "index.db").stat().st_size
    return {
        "name": f"{size:,} B, limit {limit >> 20} MiB",
        "figures": {
            "bytes an entry": closed_size / entries,
            "while open": open_size / entries,
            "log": log / entries,
            "entries": entries,
            "replaced": replaced,
        },
        "bar": 300,
    }


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="tensorkey-bench-") as name:
        folder = Path(name)
        index = [measure_index(folder / "small", 64, 16 << 20)]
        index.append(measure_index(folder / "rows", 1536, 64 << 20))
        readers = measure_readers(folder / "readers", rounds)
        opening = measure_opening(folder / "many", rounds)
    tables = {
        "opening 10^6 entries; bars: at most": opening,
        "CPU time of a row of 1.5 KB, 64 in a call": readers,
        "index.db after ten replacements; bar: at most": index,
    }
    show("directory", __doc__, tables, rounds=rounds)


if __name__ == "__main__":
    main()
