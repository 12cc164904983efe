"""Is a lookup by tensor cheaper than the idioms that people write today?

One key among up to 1,000 of its shape is looked up again and again, by `TensorKeyDict` and by a
plain dict under what each idiom makes of the tensor. Every answer is checked: an equal tensor
elsewhere in memory finds the value put in, one with another last element does not. A ratio is their
time over ours: above 1 if we are faster.

    python bench/map/bench_map.py [--rounds 31] > map.json
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from blake3 import blake3
from common import Row, against, interleaved, show

import tensorkey as tk

ENTRIES = 1000
SIZES = {"64 B": 16, "1.5 KB": 384, "16 KiB": 4096, "1 MiB": 262144}
BARS = {("torch", "1.5 KB"): {"(shape, dtype, bytes)": 4.0, "tuple of floats": 30.0}}
# What each idiom makes of the tensor x, as people write it; ARRAY is x as a NumPy array.
IDIOMS = {
    "(shape, dtype, bytes)": "(x.shape, x.dtype, ARRAY.tobytes())",
    "(shape, dtype, sha256)": "(x.shape, x.dtype, hashlib.sha256(ARRAY).digest())",
    "(shape, dtype, blake3)": "(x.shape, x.dtype, blake3(ARRAY.tobytes()).digest())",
    "tuple of floats": "tuple(ARRAY.flatten().tolist())",
}
ARRAY = {"torch": "x.numpy()", "numpy": "x"}
NAMES = {"hashlib": hashlib, "blake3": blake3}
Find = Callable[[], int]


def lookups(framework: str, arrays: list[np.ndarray]) -> dict[str, Callable[[Any], Find]]:
    """Each contestant: a function that takes a tensor and gives the lookup of it, ready to time."""
    tensors = [torch.from_numpy(a) for a in arrays] if framework == "torch" else arrays
    ours = tk.TensorKeyDict((x, i) for i, x in enumerate(tensors))
    result = {"TensorKeyDict": eval("lambda x: lambda: d[x]", {"d": ours})}
    for name, key in IDIOMS.items():
        key = key.replace("ARRAY", ARRAY[framework])
        make = eval(f"lambda x: {key}", NAMES)
        table = {make(x): i for i, x in enumerate(tensors)}
        result[name] = eval(f"lambda x: lambda: d[{key}]", {**NAMES, "d": table})
    return result


def check(lookup: Callable[[Any], Find], framework: str, arrays: list[np.ndarray]) -> None:
    """Compare a contestant's answers with what was put in."""
    for i in (0, 1, len(arrays) - 1):
        same, other = arrays[i].copy(), arrays[i].copy()
        other[-1] += 1
        if framework == "torch":
            same, other = torch.from_numpy(same), torch.from_numpy(other)
        assert lookup(same)() == i
        try:
            lookup(other)()
        except KeyError:
            continue
        raise AssertionError("another tensor was found")


def measure(framework: str, size: str, rounds: int) -> list[Row]:
    """Time all contestants on one size."""
    generator = np.random.default_rng(0)
    elements = SIZES[size]
    entries = max(4, min(ENTRIES, (4 << 20) // elements))
    arrays = [generator.standard_normal(elements).astype(np.float32) for _ in range(entries)]
    asked = torch.from_numpy(arrays[2].copy()) if framework == "torch" else arrays[2].copy()
    works = {}
    for name, lookup in lookups(framework, arrays).items():
        check(lookup, framework, arrays)
        works[name] = lookup(asked)
    return against(interleaved(works, rounds), "TensorKeyDict", BARS.get((framework, size)))


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    tables = {
        f"{framework}, {size}": measure(framework, size, rounds)
        for framework in ARRAY
        for size in SIZES
    }
    show("map", __doc__, tables, rounds=rounds, threads=1, entries=ENTRIES)


if __name__ == "__main__":
    main()
