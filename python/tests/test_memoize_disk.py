"""``memoize`` over a directory: results outlive their process, and no code outlives its edit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorkey as tk

pytest.importorskip("torch")

PROGRAM = """
import collections, sys
import torch
import tensorkey as tk

Pair = collections.namedtuple("Pair", "left right")

@tk.memoize(disk=sys.argv[1], disk_limit="32 MiB")
def encode(x, names=("a",), *, scale=1.0):
    print("ran", end=" ")
    return {"pair": Pair(x * FACTOR * scale, None), "names": list(names), "n": 3}

x = torch.arange(6.0).reshape(2, 3).t()
result = encode(x, scale=0.5)
assert type(result["pair"]) is Pair
assert torch.equal(result["pair"].left, x * FACTOR * 0.5)
assert result["names"] == ["a"]
assert encode(x.clone(), names=("a",), scale=0.5)["n"] == 3
print(encode.stats.hits, encode.stats.misses, encode.stats.assumptions)
"""

ASSUMED = ["global Pair: class __main__.Pair"]

FORK = """
import os, sys
import numpy as np
import tensorkey as tk

runs = []

@tk.memoize(disk=sys.argv[1])
def f(x):
    runs.append(x)
    return x * 2

x = np.arange(3)
f(x)
f.cache.flush()
child = os.fork()
if not child:
    right = f(x).tolist() == [0, 2, 4] and f(x + 1).tolist() == [2, 4, 6] and len(runs) == 2
    os._exit(0 if right else 1)
print(os.waitpid(child, 0)[1])
"""


def run(source: str, directory: Path) -> str:
    script = directory.parent / "script.py"
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, script, directory], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_processes_share_results_and_never_over_an_edit(tmp_path):
    directory = tmp_path / "cache"
    source = PROGRAM.replace("FACTOR", "2")
    assert run(source, directory) == f"ran 1 1 {ASSUMED}"
    assert run(source, directory) == f"2 0 {ASSUMED}"
    edited = PROGRAM.replace("FACTOR", "3")
    assert run(edited, directory) == f"ran 1 1 {ASSUMED}"
    assert run("# moved by a line\n" + source, directory) == f"2 0 {ASSUMED}"
    versioned = source.replace("disk=sys.argv[1]", "version=2, disk=sys.argv[1]")
    assert run(versioned, directory) == f"ran 1 1 {ASSUMED}"
    files = [file.read_bytes() for file in directory.rglob("*") if file.is_file()]
    joined = b"".join(files)
    assert b"__main__:Pair" in joined  # in the description of a result, as data
    for trace in (b"pickle", b"\x80\x04\x95", b"\x80\x05\x95", b"ctorch", b"PK\x03\x04"):
        assert trace not in joined


def test_functions_that_share_a_directory_are_apart(tmp_path):
    def first(x):
        return x + 1

    def second(x):
        return x + 1

    disk = tmp_path / "cache"
    cache = tk.ActivationCache("1 MiB", disk=disk)
    x = np.arange(3)
    one, two = (tk.memoize(cache=cache)(f) for f in (first, second))
    assert one.key(x) != two.key(x)
    one(x), two(x)
    cache.flush()
    one.cache_clear()
    fresh = tk.ActivationCache("1 MiB", disk=disk)
    one, two = (tk.memoize(cache=fresh)(f) for f in (first, second))
    assert (one(x).tolist(), two(x).tolist()) == ([1, 2, 3], [1, 2, 3])
    assert (one.stats.misses, two.stats.hits) == (1, 1)


def test_a_child_of_a_fork_goes_on(tmp_path):
    assert run(FORK, tmp_path / "cache") == "0"


def test_a_directory_that_is_refused_is_told_at_the_first_call(tmp_path):
    (tmp_path / "file").write_text("")
    f = tk.memoize(disk=tmp_path / "file")(lambda: 1)
    with pytest.raises(tk.errors.StoreUnavailable):
        f()
