"""Compare a lookup by tensor with the idioms that people write today.

One key among up to 1,000 of its shape is looked up again and again, by `TensorKeyDict` and by a
plain dict under what each idiom makes of the tensor:

    ours      d[x]
    bytes     d[(x.shape, x.dtype, x.numpy().tobytes())]
    sha256    d[(x.shape, x.dtype, hashlib.sha256(x.numpy()).digest())]
    blake3    d[(x.shape, x.dtype, blake3.blake3(x.numpy().tobytes()).digest())]
    tuple     d[tuple(x.numpy().flatten().tolist())]                     shape and dtype are lost

(without .numpy() for NumPy; blake3 if the package is there). Every answer is checked: an equal
tensor elsewhere in memory finds the value put in, one with another last element does not. Rounds
alternate between contestants; a ratio is the median over rounds of theirs / ours, above 1 if we are
faster.

    python bench/map/bench_map.py [--rounds 41] [--framework torch] [--identity-cycles 1000000]

prints a table to stderr and JSON to stdout. --identity-cycles makes and drops that many tensors
with by="identity", and fails on a stale hit or on anything left behind.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorkey as tk

try:
    import blake3
except ImportError:
    blake3 = None

ENTRIES = 1000
# float32 elements -> what theirs / ours must be at least, for --framework torch.
BARS = {384: {"bytes": 4.0, "tuple": 30.0}}

Make = Callable[[np.ndarray], Any]

# What each idiom uses as the key in a plain dict; ARRAY stands for the tensor as NumPy array.
IDIOMS = {
    "bytes": "(x.shape, x.dtype, ARRAY.tobytes())",
    "sha256": "(x.shape, x.dtype, hashlib.sha256(ARRAY).digest())",
    "blake3": "(x.shape, x.dtype, blake3.blake3(ARRAY.tobytes()).digest())",
    "tuple": "tuple(ARRAY.flatten().tolist())",
}


def contestants(framework: str, tensors: list[Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Fill each contestant's dict; return its lookup as a statement and the names in it."""
    names = {"hashlib": hashlib, "blake3": blake3}
    ours = tk.TensorKeyDict((x, i) for i, x in enumerate(tensors))
    result = {"ours": ("d[x]", {"d": ours})}
    for name, key in IDIOMS.items():
        if name == "blake3" and blake3 is None:
            continue
        key = key.replace("ARRAY", "x" if framework == "numpy" else "x.numpy()")
        table = {eval(key, {**names, "x": x}): i for i, x in enumerate(tensors)}
        result[name] = (f"d[{key}]", {**names, "d": table})
    return result


def check(statement: str, names: dict[str, Any], arrays: list[np.ndarray], make: Make) -> None:
    """Compare a contestant's answers with what was put in."""
    for i in (0, 1, len(arrays) - 1):
        assert eval(statement, {**names, "x": make(arrays[i].copy())}) == i, statement
        changed = arrays[i].copy()
        changed.reshape(-1)[-1] += 1
        try:
            eval(statement, {**names, "x": make(changed)})
        except KeyError:
            continue
        raise AssertionError(statement)


def measure(framework: str, elements: int, rounds: int, make: Make) -> dict[str, Any]:
    """Time all contestants on one size."""
    generator = np.random.default_rng(elements)
    entries = max(4, min(ENTRIES, (16 << 20) // elements // 4))
    arrays = [generator.standard_normal(elements).astype(np.float32) for _ in range(entries)]
    tensors = [make(a) for a in arrays]
    timers = {}
    for name, (statement, names) in contestants(framework, tensors).items():
        check(statement, names, arrays, make)
        timer = timeit.Timer(statement, globals={**names, "x": tensors[2]})
        calls = max(1, int(0.005 / (timer.timeit(3) / 3)))  # about 5 ms a round
        timers[name] = (timer, calls)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, (timer, calls) in timers.items():
            times[name].append(timer.timeit(calls) / calls * 1e9)
    ours = times["ours"]
    lookups = {}
    for name, theirs in times.items():
        ratios = sorted(t / o for t, o in zip(theirs, ours, strict=True))
        lookups[name] = {
            "ns": round(statistics.median(theirs), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_p10": round(ratios[len(ratios) // 10], 2),
            "ratio_p90": round(ratios[-1 - len(ratios) // 10], 2),
        }
    return {
        "framework": framework,
        "elements": elements,
        "key_bytes": 4 * elements,
        "lookups": lookups,
    }


def run_identity_cycles(make: Make, cycles: int) -> dict[str, Any]:
    """Make, put in and drop many tensors: addresses repeat, and none may be found again."""
    d: tk.TensorKeyDict[int] = tk.TensorKeyDict(by="identity")
    zeros = np.zeros(4, np.float32)
    addresses: set[int] = set()
    stale, objects = 0, 0
    begin = time.perf_counter()
    for i in range(cycles):
        x = make(zeros)
        stale += x in d
        d[x] = i
        addresses.add(id(x))
        if i == cycles // 10:
            gc.collect()
            objects = len(gc.get_objects())
    seconds = time.perf_counter() - begin
    del x
    gc.collect()
    left = len(gc.get_objects()) - objects
    assert stale == 0
    assert len(d) == 0
    assert left < 100
    return {
        "cycles": cycles,
        "addresses": len(addresses),
        "stale_hits": stale,
        "entries_left": len(d),
        "objects_left": max(0, left),
        "us_per_cycle": round(seconds / cycles * 1e6, 2),
    }


def makers() -> dict[str, Make]:
    """Make a framework's tensor of an array; a framework is imported when it is first used."""

    def torch_maker(array: np.ndarray) -> object:
        import torch

        return torch.from_numpy(array.copy())

    return {"numpy": lambda a: a.copy(), "torch": torch_maker}


def show(rows: list[dict[str, Any]], out: Any = sys.stderr) -> None:
    """Print the table."""
    for row in rows:
        print(f"{row['framework']}, {row['key_bytes']} bytes a key", file=out)
        for name, value in row["lookups"].items():
            print(f"  {name:8}{value['ns']:12.0f} ns{value['ratio']:10.2f} x ours", file=out)


def main() -> int:
    """Run, print, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--framework", choices=["numpy", "torch"], action="append")
    parser.add_argument("--elements", type=int, action="append")
    parser.add_argument("--identity-cycles", type=int, default=0)
    options = parser.parse_args()
    make = makers()
    frameworks = options.framework or ["torch", "numpy"]
    sizes = options.elements or [16, 384, 4096, 262144]
    rows = [measure(f, n, options.rounds, make[f]) for f in frameworks for n in sizes]
    show(rows)
    missed = [
        f"{name} at {row['key_bytes']} bytes: {row['lookups'][name]['ratio']} of {bar}"
        for row in rows
        if row["framework"] == "torch"
        for name, bar in BARS.get(row["elements"], {}).items()
        if row["lookups"][name]["ratio"] < bar
    ]
    report: dict[str, Any] = {
        "question": "is a lookup cheaper than the idioms?",
        "machine": {"cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count()},
        "python": platform.python_version(),
        "threads": 1,
        "entries": ENTRIES,
        "rounds": options.rounds,
        "results": rows,
        "missed": missed,
    }
    if options.identity_cycles:
        report["identity"] = {
            f: run_identity_cycles(make[f], options.identity_cycles) for f in frameworks
        }
    json.dump(report, sys.stdout, indent=1)
    print()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
