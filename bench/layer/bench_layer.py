"""Is a hit cheaper than running the layer, and what does a miss cost on top of it?

Batches of 64 rows in a cached layer: all rows known, none known (every batch is new), against the
bare layer, the layer run in chunks of 32 as misses are, and indexing a precomputed table, which is
what one writes by hand. Every answer is compared, bit by bit, with the layer run in chunks. A ratio
is their time over that of the cached layer with all rows known: above 1 if a hit is cheaper.

    python bench/layer/bench_layer.py [--rounds 21] > layer.json
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from common import Row, against, interleaved, show
from torch import Tensor, nn

from tensorkey.torch import CachedLayer

ROWS = 64
CHUNK = 32


def layers() -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Frozen layers and how to draw a batch for each."""
    small = nn.Sequential(nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 384))
    wide = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(384, 12, 1536, batch_first=True),
        6,
        enable_nested_tensor=False,
    )
    return {
        "two Linear of 384": (small, lambda: torch.randn(ROWS, 384)),
        "a feed-forward block of 768 x 3072": (wide, lambda: torch.randn(ROWS, 768)),
        "six encoder layers on 32 x 384": (encoder, lambda: torch.randn(ROWS, 32, 384)),
    }


def in_chunks(layer: nn.Module, batch: Tensor) -> Tensor:
    """Run the layer as misses are run: on fresh copies of 32 rows."""
    return torch.cat([layer(part.clone()) for part in batch.split(CHUNK)])


def measure(layer: nn.Module, draw: Callable[[], Tensor], rounds: int) -> list[Row]:
    """Time all contestants on one layer."""
    layer = layer.eval().requires_grad_(False)
    cached = CachedLayer(layer, memory="256 MiB")
    known = draw()
    expected = in_chunks(layer, known)
    assert torch.equal(cached(known), expected)
    assert torch.equal(cached(known), expected)
    assert cached.stats.hits == ROWS
    indices = torch.randperm(ROWS)
    fresh = itertools.cycle([draw() for _ in range(8)])
    new = itertools.count()

    def miss() -> Tensor:
        batch = next(fresh)
        batch[:, ..., 0] = float(next(new))  # a batch that was never seen
        return cached(batch)

    works = {
        "cached, all rows known": lambda: cached(known),
        "cached, no row known": miss,
        "in chunks of 32, no cache": lambda: in_chunks(layer, known),
        "bare, no cache": lambda: layer(known),
        "a precomputed table": lambda: expected.index_select(0, indices),
    }
    with torch.no_grad():
        rows = against(interleaved(works, rounds), "cached, all rows known")
    stats = cached.stats
    assert stats.hits + stats.misses == stats.lookups
    assert not stats.bypasses, stats.bypasses
    return rows


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    tables = {
        f"{name}, {ROWS} rows": measure(layer, draw, rounds)
        for name, (layer, draw) in layers().items()
    }
    show("layer", __doc__, tables, rounds=rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
