"""Compare the digests with the official implementation: batches of rows, one message, two threads.

Ours (tensorkey._core) against the `blake3` package, the official Rust implementation with its
assembly; both in one thread, answers compared. The package digests one message a call, so a batch
of rows is a Python loop there: what a loop in C would take is the call less an empty call, plus
the one compression that an empty message costs too (a 15th of what 1 KiB takes more than 64
bytes). Rounds alternate; a ratio is the median over rounds of theirs / ours, above 1 if we are
faster. The package always takes the best instructions of the CPU: ratios with --target avx2 are
against AVX-512 where the CPU has it.

Two threads: the time of one thread over the CPU time of the busier of the two, which a busy
machine does not hide.

    python bench/digest/bench_digest.py [--rounds 41] [--target avx2] > digest.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import blake3
import numpy as np

from tensorkey import _core

ROWS = 1024
ROW_BARS = {64: 7.0, 256: 6.0, 1024: 5.0, 1536: 5.0, 4096: 1.8}
ROW_BARS_AVX2 = {64: 4.5, 256: 4.5, 1024: 3.5, 1536: 3.5, 4096: 1.2}
MESSAGE_BARS = {65536: 0.85, 64 << 20: 1.05}
MESSAGE_BARS_AVX2 = {65536: 0.85, 64 << 20: 0.9}
THREADS_BAR = 1.6


def official(message: memoryview) -> bytes:
    """Digest one message with the official implementation."""
    return blake3.blake3(message).digest()


def clock(work: Callable[[], object]) -> int:
    """Time one call in ns."""
    begin = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - begin


def rounds_of(count: int, *works: Callable[[], object]) -> list[list[int]]:
    """Time each work once a round; a list of times for each."""
    for work in works:
        work()
    return [
        list(times)
        for times in zip(*([clock(w) for w in works] for _ in range(count)), strict=True)
    ]


def spread(ratios: list[float]) -> dict[str, float]:
    """Reduce the ratios of all rounds to their median and the middle 80 %."""
    ratios = sorted(ratios)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(ratios[len(ratios) // 10], 3),
        "ratio_p90": round(ratios[-1 - len(ratios) // 10], 3),
    }


def one_compression(data: memoryview, rounds: int) -> float:
    """Find what one block more costs the official implementation, in ns."""
    calls = 200

    def repeat(message: memoryview) -> Callable[[], object]:
        return lambda: [official(message) for _ in range(calls)]

    short, long = rounds_of(rounds, repeat(data[:64]), repeat(data[:1024]))
    return (statistics.median(long) - statistics.median(short)) / calls / 15


def rows(array: np.ndarray, size: int, rounds: int, block_ns: float) -> dict[str, object]:
    """Digest many rows in one call and in a loop."""
    batch = array[: ROWS * size].reshape(ROWS, size)
    messages = [memoryview(row) for row in batch]
    nothing = [memoryview(b"")] * ROWS
    assert _core.blake3_rows(batch, threads=1) == b"".join(map(official, messages))
    ours, loop, empty = rounds_of(
        rounds,
        lambda: _core.blake3_rows(batch, threads=1),
        lambda: [official(m) for m in messages],
        lambda: [official(m) for m in nothing],
    )
    theirs = [(a - b) / ROWS + block_ns for a, b in zip(loop, empty, strict=True)]
    return {
        "rows": ROWS,
        "bytes": size,
        "ours_ns": round(statistics.median(ours) / ROWS, 1),
        "official_ns": round(statistics.median(theirs), 1),
        "python_loop_ns": round(statistics.median(loop) / ROWS, 1),
        **spread([t / (o / ROWS) for t, o in zip(theirs, ours, strict=True)]),
    }


def message(array: np.ndarray, size: int, rounds: int) -> dict[str, object]:
    """Digest one message."""
    part = array[:size]
    view = memoryview(part)
    assert _core.blake3(part, threads=1) == official(view)
    calls = max(1, (1 << 20) // size)
    ours, theirs = rounds_of(
        rounds if size < 1 << 24 else max(5, rounds // 4),
        lambda: [_core.blake3(part, threads=1) for _ in range(calls)],
        lambda: [official(view) for _ in range(calls)],
    )
    return {
        "bytes": size,
        "ours_us": round(statistics.median(ours) / calls / 1000, 3),
        "official_us": round(statistics.median(theirs) / calls / 1000, 3),
        **spread([t / o for t, o in zip(theirs, ours, strict=True)]),
    }


def two_threads(array: np.ndarray, rounds: int) -> dict[str, object]:
    """Digest one message with one thread and with two."""
    expected = _core.blake3(array, threads=1)
    ratios = []
    for _ in range(max(5, rounds // 4)):
        begin = time.thread_time_ns()
        _core.blake3(array, threads=1)
        one = time.thread_time_ns() - begin
        begin, begin_all = time.thread_time_ns(), time.process_time_ns()
        digest = _core.blake3(array, threads=2)
        caller = time.thread_time_ns() - begin
        helper = time.process_time_ns() - begin_all - caller
        assert digest == expected
        ratios.append(one / max(caller, helper))
    return {"bytes": array.nbytes, "threads": 2, **spread(ratios)}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--target", choices=_core.digest_targets())
    options = parser.parse_args()
    _core.force_digest_target(options.target)
    target = options.target or _core.digest_targets()[0]
    array = np.random.default_rng(1).integers(0, 256, 64 << 20, dtype=np.uint8)

    block_ns = one_compression(memoryview(array), options.rounds)
    row_bars = ROW_BARS if target == "avx3" else ROW_BARS_AVX2
    message_bars = MESSAGE_BARS if target == "avx3" else MESSAGE_BARS_AVX2
    result = {
        "bench": "digest",
        "target": target,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "blake3": blake3.__version__,
        "rounds": options.rounds,
        "official_block_ns": round(block_ns, 1),
        "rows": [
            {**rows(array, size, options.rounds, block_ns), "bar": bar}
            for size, bar in row_bars.items()
        ],
        "messages": [
            {**message(array, size, options.rounds), "bar": message_bars.get(size)}
            for size in (64, 1024, 1536, 4096, 16384, 65536, 1 << 20, 64 << 20)
        ],
        "two_threads": {**two_threads(array, options.rounds), "bar": THREADS_BAR},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
