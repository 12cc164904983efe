"""Are our digests as fast as the official implementation, and how much faster on rows?

Ours (tensorkey._core) against the `blake3` package, the official Rust implementation with its
assembly; both in one thread, answers compared. The package digests one message a call, so a batch
of rows is a Python loop there: what a loop in C would take is the call less an empty call, plus
the one compression that an empty message costs too (a 15th of what 1 KiB takes more than 64
bytes). A ratio is their time over ours: above 1 if we are faster. The package always takes the best
instructions of the CPU, so with --target avx2 the ratios are against AVX-512 where the CPU has it.

Two threads: the time of one thread over the CPU time of the busier of the two, which a busy
machine does not hide.

    python bench/digest/bench_digest.py [--rounds 31] [--target avx2] > digest.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from blake3 import blake3
from common import Row, interleaved, show, spread

from tensorkey import _core

ROWS = 1024
# Of the widest target; (AVX-512, AVX2) of rows and of one message.
ROW_BARS = {64: (7.0, 4.5), 256: (6.0, 4.5), 1024: (5.0, 3.5), 1536: (5.0, 3.5), 4096: (1.8, 1.2)}
MESSAGE_BARS = {65536: (0.85, 0.85), 64 << 20: (1.05, 0.9)}
MESSAGES = (64, 1024, 1536, 4096, 16384, 65536, 1 << 20, 64 << 20)
THREADS_BAR = 1.6


def official(message: memoryview) -> bytes:
    """Digest one message with the official implementation."""
    return blake3(message).digest()


def one_compression(data: memoryview, rounds: int) -> float:
    """Find what one block more costs the official implementation, in ns."""
    works = {"64": lambda: official(data[:64]), "1024": lambda: official(data[:1024])}
    times = interleaved(works, rounds)
    return (statistics.median(times["1024"]) - statistics.median(times["64"])) / 15


def rows(array: np.ndarray, size: int, rounds: int, block_ns: float) -> Row:
    """Digest many rows in one call, and in a loop less the loop."""
    batch = array[: ROWS * size].reshape(ROWS, size)
    messages = [memoryview(row) for row in batch]
    nothing = [memoryview(b"")] * ROWS
    assert _core.blake3_rows(batch, threads=1) == b"".join(map(official, messages))
    works = {
        "ours": lambda: _core.blake3_rows(batch, threads=1),
        "loop": lambda: [official(m) for m in messages],
        "empty": lambda: [official(m) for m in nothing],
    }
    times = interleaved(works, rounds)
    loop_and_empty = zip(times["loop"], times["empty"], strict=True)
    theirs = [(loop - empty) / ROWS + block_ns for loop, empty in loop_and_empty]
    ours = [t / ROWS for t in times["ours"]]
    return {
        "name": f"{ROWS:,} rows of {size:,} B",
        "ns": round(statistics.median(ours), 1),
        "official_ns": round(statistics.median(theirs), 1),
        **spread([t / o for t, o in zip(theirs, ours, strict=True)]),
    }


def message(array: np.ndarray, size: int, rounds: int) -> Row:
    """Digest one message."""
    part = array[:size]
    view = memoryview(part)
    assert _core.blake3(part, threads=1) == official(view)
    works = {"ours": lambda: _core.blake3(part, threads=1), "official": lambda: official(view)}
    times = interleaved(works, rounds if size < 1 << 24 else max(5, rounds // 4))
    return {
        "name": f"one message of {size:,} B",
        "ns": round(statistics.median(times["ours"]), 1),
        "official_ns": round(statistics.median(times["official"]), 1),
        **spread([t / o for t, o in zip(times["official"], times["ours"], strict=True)]),
    }


def two_threads(array: np.ndarray, rounds: int) -> Row:
    """Digest one message with one thread and with two."""
    expected = _core.blake3(array, threads=1)
    ratios = []
    for _ in range(rounds):
        begin = time.thread_time_ns()
        _core.blake3(array, threads=1)
        one = time.thread_time_ns() - begin
        begin, begin_all = time.thread_time_ns(), time.process_time_ns()
        digest = _core.blake3(array, threads=2)
        caller = time.thread_time_ns() - begin
        helper = time.process_time_ns() - begin_all - caller
        assert digest == expected
        ratios.append(one / max(caller, helper))
    return {"name": "two threads over one, by CPU time", **spread(ratios), "bar": THREADS_BAR}


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--target", choices=_core.digest_targets())
    options = parser.parse_args()
    _core.force_digest_target(options.target)
    target = options.target or _core.digest_targets()[0]
    array = np.random.default_rng(1).integers(0, 256, 64 << 20, dtype=np.uint8)
    block_ns = one_compression(memoryview(array), options.rounds)

    bars = {"avx3": 0, "avx2": 1}

    def with_bar(row: Row, bar: tuple[float, float] | None) -> Row:
        return {**row, "bar": bar[bars[target]]} if bar and target in bars else row

    tables = {
        f"rows, {target}": [
            with_bar(rows(array, size, options.rounds, block_ns), bar)
            for size, bar in ROW_BARS.items()
        ],
        f"one message, {target}": [
            with_bar(message(array, size, options.rounds), MESSAGE_BARS.get(size))
            for size in MESSAGES
        ],
        "threads": [two_threads(array, options.rounds)],
    }
    show("digest", __doc__, tables, rounds=options.rounds, threads=1, target=target)


if __name__ == "__main__":
    main()
