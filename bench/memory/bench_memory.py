"""Is a hit of the cache from Python as cheap as one of the caches that one would write instead?

Keys are ready, values are of 64 B or 1.5 KB, 10,000 entries, requests by Zipf's law.
ActivationCache.get against cachetools.LRUCache and LFUCache, functools.lru_cache and a plain dict,
all without a lock but ours; they count entries, hold what they were given and hand it out to be
changed. A ratio is their time over ours: above 1 if we are faster. A plain dict bounds nothing and
evicts nothing: it is the floor, not a rival. Then the same at half the room, where each miss
inserts and evicts, and what is hit differs: see bench/policy for that. Every value that is found
is compared.

Not compared: threads, the bytes that each takes, and values that are copied or checked on the way
out. Ours copies a value in, and hands out a read-only view.

    python bench/memory/bench_memory.py [--rounds 21] > memory.json
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cachetools
from common import Row, against, interleaved, show

import tensorkey as tk

ENTRIES = 10_000
SIZES = {64: 390, 1536: 1950}  # of a value: bytes of our bound, so that as many entries fit
REQUESTS = 2_000

Lookup = Callable[[tk.Key], object]


def values(size: int) -> dict[tk.Key, bytes]:
    """Keys, and values that tell which key they belong to."""
    keys = [tk.key(i.to_bytes(8, "little")) for i in range(ENTRIES)]
    return {key: key.bytes * (size // 32) for key in keys}


def stream(keys: list[tk.Key]) -> list[tk.Key]:
    """Requests by Zipf's law, exponent 0.99."""
    weights = [(i + 1) ** -0.99 for i in range(len(keys))]
    return random.Random(1).choices(keys, weights, k=REQUESTS)


def lookups(table: dict[tk.Key, bytes], entries: int, footprint: int) -> dict[str, Lookup]:
    """Each contestant as a function from a key to its value, computed if it is not there."""
    ours = tk.ActivationCache(memory=entries * footprint)
    lru = cachetools.LRUCache(entries)
    lfu = cachetools.LFUCache(entries)
    plain: dict[tk.Key, bytes] = {}

    def from_ours(key: tk.Key) -> object:
        entry = ours.get(key)
        if entry is not None:
            return entry[0]
        ours.put(key, table[key], seconds=0.001)
        return table[key]

    def from_mapping(cache) -> Lookup:
        def lookup(key: tk.Key) -> object:
            try:
                return cache[key]
            except KeyError:
                value = cache[key] = table[key]
                return value

        return lookup

    return {
        "tensorkey.ActivationCache": from_ours,
        "functools.lru_cache": functools.lru_cache(entries)(table.__getitem__),
        "cachetools.LRUCache": from_mapping(lru),
        "cachetools.LFUCache": from_mapping(lfu),
        "dict, unbounded": from_mapping(plain),
    }


def measure(table: dict[tk.Key, bytes], entries: int, footprint: int, rounds: int) -> list[Row]:
    """Time all contestants, in turns, over one stream."""
    requests = stream(list(table))
    contestants = lookups(table, entries, footprint)
    for lookup in contestants.values():
        for key in requests * 3:
            assert bytes(memoryview(lookup(key)).cast("B")) == table[key]

    def work(lookup: Lookup) -> Callable[[], None]:
        def run() -> None:
            for key in requests:
                lookup(key)

        return run

    works = {name: work(lookup) for name, lookup in contestants.items()}
    rows = against(interleaved(works, rounds), "tensorkey.ActivationCache")
    for row in rows:
        row["ns"] = round(row["ns"] / REQUESTS, 1)
    return rows


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    tables = {}
    for size, footprint in SIZES.items():
        table = values(size)
        used = len(set(stream(list(table))))
        title = f"a lookup of {size:,} B"
        tables[f"{title}, all of it there"] = measure(table, ENTRIES, footprint, rounds)
        tables[f"{title}, room for half of the {used:,} keys asked for"] = measure(
            table, used // 2, footprint, rounds
        )
    show("memory", __doc__, tables, rounds=rounds, threads=1)


if __name__ == "__main__":
    main()
