"""What does a key of one tensor cost, beside the ways that people use today?

    python bench/key/bench_key.py [--rounds 31] > key.json

A ratio is their time over ours: above 1 if we are faster. Whether a contestant finds an equal
tensor again, and tells elements, shape and dtype apart, is tried and printed beside it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from blake3 import blake3
from common import Row, against, interleaved, show
from contestants import CONTESTANTS, flaws

import tensorkey as tk

SIZES = {"64 B": 16, "1.5 KB": 384, "64 KiB": 16384, "16 MiB": 1 << 22}
# tk.key takes at most 0.35 (64 B) and 0.75 (1.5 KB) of the blake3 idiom.
BARS = {"64 B": {"blake3 of bytes": 2.86}, "1.5 KB": {"blake3 of bytes": 1.33}}


def one_tensor(size: str, rounds: int) -> list[Row]:
    """All contestants on a tensor of this size."""
    torch.manual_seed(0)
    x = torch.rand(SIZES[size]) + 1
    notes = {name: flaws(make, x) for name, make in CONTESTANTS.items()}
    assert notes["tensorkey.key"] == ""
    works = {name: (lambda make=make: make(x)) for name, make in CONTESTANTS.items()}
    if x.nbytes > 1 << 20:
        works.pop("tuple of floats")
        rounds = max(3, rounds // 4)
    rows = against(interleaved(works, rounds), "tensorkey.key", BARS.get(size))
    return [{**row, "note": notes[row["name"]]} for row in rows]


def rows_of_a_batch(rounds: int) -> list[Row]:
    """Row keys of 1,024 NumPy rows of 1 KiB: at most 1/8 of the loop."""
    batch = np.random.default_rng(0).integers(0, 256, (1024, 1024), np.uint8)
    keys = tk.row_keys(batch)
    assert all(keys[i] == tk.key(batch[i]) for i in range(0, 1024, 97))
    works = {
        "tensorkey.row_keys": lambda: tk.row_keys(batch),
        "blake3 of bytes, row by row": lambda: [blake3(r.tobytes()).digest() for r in batch],
        "tensorkey.key, row by row": lambda: [tk.key(row) for row in batch],
    }
    times = interleaved(works, rounds)
    return against(times, "tensorkey.row_keys", {"blake3 of bytes, row by row": 8.0})


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    tables = {size: one_tensor(size, rounds) for size in SIZES}
    tables["1,024 rows of 1 KiB"] = rows_of_a_batch(rounds)
    show("key", __doc__, tables, rounds=rounds, threads=1)


if __name__ == "__main__":
    main()
