"""What does a key of one tensor cost, beside the ways that people use today?

    python bench/key/bench_key.py [--rounds 31] > key.json

Whether a contestant finds an equal tensor again, and tells elements, shape and dtype apart, is tried
and printed beside it. Bars: at most 0.75 of `blake3 of bytes` at 1.5 KB
and 0.35 at 64 B; row keys of 1,024 rows of 1 KiB at most 1/8 of the loop.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from blake3 import blake3
from common import against, interleaved, rounds_option, show
from contestants import CONTESTANTS, flaws

import tensorkey as tk

SIZES = {"64 B": 16, "1.5 KB": 384, "64 KiB": 16384, "16 MiB": 1 << 22}


def one_tensor(floats: int, rounds: int) -> list[dict[str, object]]:
    """All contestants on a tensor of this many floats."""
    torch.manual_seed(floats)
    x = torch.rand(floats) + 1
    notes = {name: flaws(make, x) for name, make in CONTESTANTS.items()}
    assert notes["tensorkey.key"] == ""
    works = {name: (lambda make=make: make(x)) for name, make in CONTESTANTS.items()}
    if floats > 100_000:
        works.pop("tuple of floats")
        rounds = max(3, rounds // 4)
    rows = against(interleaved(works, rounds), "tensorkey.key")
    return [{**row, "note": notes[row["name"]]} for row in rows]


def rows_of_a_batch(rounds: int) -> list[dict[str, object]]:
    """Row keys of 1,024 NumPy rows of 1 KiB."""
    batch = np.random.default_rng(0).integers(0, 256, (1024, 1024), np.uint8)
    keys = tk.row_keys(batch)
    assert all(keys[i] == tk.key(batch[i]) for i in range(0, 1024, 97))
    works = {
        "tensorkey.row_keys": lambda: tk.row_keys(batch),
        "blake3 of bytes, row by row": lambda: [blake3(r.tobytes()).digest() for r in batch],
        "tensorkey.key, row by row": lambda: [tk.key(row) for row in batch],
    }
    return against(interleaved(works, rounds), "tensorkey.row_keys")


def main() -> None:
    """Print JSON and tables."""
    rounds = rounds_option()
    tables = {name: one_tensor(floats, rounds) for name, floats in SIZES.items()}
    tables["1,024 rows of 1 KiB"] = rows_of_a_batch(rounds)
    show({"bench": "key", "rounds": rounds}, tables)


if __name__ == "__main__":
    main()
