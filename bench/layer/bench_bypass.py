"""What does a cached layer cost where there is nothing to find?

Two bars. A stream in which no row comes twice, as bypass="auto" finds out: it must cost at most 2 %
more than the same rows run in chunks of 32, for layers of about 1 ms and 50 ms a batch; learning,
probes and all are in the time. And a call of a layer of about 20 us that is stepped aside for: at
most 1 us more than the bare module. Every answer is compared with the layer's own: bit by bit
with the chunks while in the cache, and to rounding once a batch runs as a whole. A ratio is their
time over that of the cached layer; the bar is the least that is wanted.

    python bench/layer/bench_bypass.py [--seconds 8] > bypass.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from common import Row, interleaved, show
from torch import Tensor, nn

from tensorkey.torch import CachedLayer

ROWS = 64
CHUNK = 32
BLOCK = 0.25
"""Seconds that each side runs before the other takes its turn."""


class Repeated(nn.Module):
    """A layer that is run again and again: as long as one likes, whatever the machine."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        """Run the inner layer, so many times."""
        for _ in range(self.times):
            x = torch.tanh(self.inner(x))
        return x


def seconds_of(layer: nn.Module, batch: Tensor, rounds: int = 9) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        layer(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def layer_of(seconds: float, width: int) -> nn.Module:
    """Return a frozen layer that takes about as long for a batch."""
    batch = torch.randn(ROWS, width)
    unit = seconds_of(Repeated(width, 8).eval().requires_grad_(False), batch) / 8
    return Repeated(width, max(1, round(seconds / unit))).eval().requires_grad_(False)


def in_chunks(layer: nn.Module, batch: Tensor) -> Tensor:
    """Run the layer as misses are run: on fresh copies of 32 rows."""
    return torch.cat([layer(part.clone()) for part in batch.split(CHUNK)])


def stream(target: float, width: int, seconds: float) -> list[Row]:
    """Time a stream without reuse, in turns with the same rows in chunks."""
    layer = layer_of(target, width)
    cached = CachedLayer(layer, memory="256 MiB", chunk=CHUNK)
    cached(torch.randn(ROWS, width))  # the probe of the layer, once
    cached.reset_stats()
    block = max(1, round(BLOCK / target))
    ours, theirs, calls = 0.0, 0.0, 0
    while theirs < seconds or calls < 60:
        batches = torch.randn(block, ROWS, width)
        start = time.perf_counter()
        answers = [cached(batch) for batch in batches]
        middle = time.perf_counter()
        expected = [in_chunks(layer, batch) for batch in batches]
        ours += middle - start
        theirs += time.perf_counter() - middle
        calls += block
        for answer, truth in zip(answers, expected, strict=True):
            assert torch.equal(answer, truth) or torch.allclose(answer, truth, atol=1e-5)
    stats = cached.stats
    assert stats.hits == 0
    aside = sum(stats.bypasses.values())
    assert stats.batches + aside == calls
    note = f"{calls} calls, {aside} stepped aside for; {stats.decision}"
    return [
        {"name": "cached", "ns": round(ours / calls * 1e9), "ratio": 1.0, "note": note},
        {
            "name": "in chunks of 32, no cache",
            "ns": round(theirs / calls * 1e9),
            "ratio": round(theirs / ours, 4),
            "bar": 0.98,
        },
    ]


def bypassed(rounds: int) -> list[Row]:
    """Time a call of a small layer that is stepped aside for."""
    torch.set_num_threads(1)  # of microseconds, whose threads would wait for each other
    layer = nn.Sequential(nn.Linear(256, 96), nn.ReLU()).eval().requires_grad_(False)
    batch = torch.randn(16, 256)

    def fresh() -> Tensor:
        return batch.add_(1e-3)  # never seen before

    with torch.no_grad():
        cached = CachedLayer(layer)
        for _ in range(20_000):
            cached(fresh())
        assert cached.stats.bypasses  # found out, not told
        assert torch.allclose(cached(batch), layer(batch), atol=1e-3)
        times = interleaved(
            {"stepped aside": lambda: cached(fresh()), "bare": lambda: layer(fresh())}, rounds
        )
    pairs = zip(times["stepped aside"], times["bare"], strict=True)
    extra = statistics.median([ours - bare for ours, bare in pairs])
    bare = statistics.median(times["bare"])
    return [
        {"name": "bare", "ns": round(bare), "ratio": 1.0, "note": cached.stats.decision},
        {
            "name": "stepped aside, more than bare",
            "ns": round(extra),
            "ratio": round(1000 / max(extra, 1.0), 2),
            "bar": 1.0,
            "note": "1 us over the extra time, probes included",
        },
    ]


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=201)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with torch.no_grad():
        tables = {
            "a stream without reuse, 1 ms a batch": stream(1e-3, 384, arguments.seconds),
            "a stream without reuse, 50 ms a batch": stream(50e-3, 768, arguments.seconds),
            "a layer of 20 us": bypassed(arguments.rounds),
        }
    show("bypass", __doc__, tables, threads=threads)


if __name__ == "__main__":
    main()
