"""One directory and many processes: what they store reaches it however they end by themselves."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tensorkey as tk

# A test process has threads, which is what forking is warned of.
# Other tests may have imported JAX, whose threads no child here needs.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning"),
]
METHODS = ["fork", "spawn"]
PATIENCE = 120


def key(number: int) -> tk.Key:
    return tk.key(np.int64(number))


def row(number: int) -> np.ndarray:
    return np.arange(64, dtype=np.float32) + number


def put(cache: tk.ActivationCache, numbers: range) -> None:
    for number in numbers:
        assert cache.put(key(number), row(number), seconds=0.01)


def missing(disk: Path, numbers: range) -> list[int]:
    """Which numbers a cache of its own does not find; what it finds must be right."""
    entries = tk.ActivationCache(None, disk=disk).get_many([key(number) for number in numbers])
    for number, entry in zip(numbers, entries, strict=True):
        if entry is not None:
            np.testing.assert_array_equal(np.asarray(entry[0]), row(number))
    return [number for number, entry in zip(numbers, entries, strict=True) if entry is None]


def run_all(context, target, arguments) -> None:
    children = [context.Process(target=target, args=each) for each in arguments]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == 0


@pytest.fixture
def disk(tmp_path) -> Path:
    return tmp_path / "activations"


# --- Children of multiprocessing, which end by os._exit.


def write_and_end(disk: Path, numbers: range) -> None:
    """The cache is alive when the process ends."""
    cache = tk.ActivationCache("1 MiB", disk=disk)
    globals()["kept"] = cache
    put(cache, numbers)


@pytest.mark.parametrize("method", METHODS)
def test_children_that_end_have_written_all(disk, method):
    parts = [range(first, first + 500) for first in range(0, 2000, 500)]
    run_all(multiprocessing.get_context(method), write_and_end, [(disk, part) for part in parts])
    assert missing(disk, range(2000)) == []


def write_inherited(cache: tk.ActivationCache, numbers: range) -> None:
    put(cache, numbers)


def test_forked_children_go_on_with_the_cache_that_they_inherit(disk):
    cache = tk.ActivationCache("1 MiB", disk=disk)
    put(cache, range(10))
    parts = [range(first, first + 100) for first in range(10, 310, 100)]
    context = multiprocessing.get_context("fork")
    run_all(context, write_inherited, [(cache, part) for part in parts])
    put(cache, range(310, 320))  # the parent does, too
    assert cache.flush(PATIENCE)
    assert missing(disk, range(320)) == []
    cache.refresh()
    assert all(entry is not None for entry in cache.get_many([key(n) for n in range(320)]))


def in_pool(task: tuple[Path, int]) -> None:
    disk, number = task
    caches = globals().setdefault("caches", {})
    cache = caches.setdefault(disk, None) or tk.ActivationCache("1 MiB", disk=disk)
    caches[disk] = cache
    put(cache, range(number, number + 10))


@pytest.mark.parametrize("method", METHODS)
def test_workers_of_a_pool(disk, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        pool.map(in_pool, [(disk, first) for first in range(0, 200, 10)])
        pool.close()
        pool.join()
    assert missing(disk, range(200)) == []


def write_in_grandchild(disk: Path) -> None:
    cache = tk.ActivationCache("1 MiB", disk=disk)
    globals()["kept"] = cache
    put(cache, range(5))
    context = multiprocessing.get_context("fork")
    run_all(context, write_inherited, [(cache, range(5, 10))])


def test_children_of_children(disk):
    run_all(multiprocessing.get_context("fork"), write_in_grandchild, [(disk,)])
    assert missing(disk, range(10)) == []


def test_what_the_parent_had_not_written_is_written_once(disk):
    cache = tk.ActivationCache("1 MiB", disk=disk)
    put(cache, range(100))
    child = os.fork()
    if child == 0:
        cache.flush(30)
        os._exit(0 if cache.get(key(99)) is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.flush(PATIENCE)
    assert missing(disk, range(100)) == []
    assert cache.stats.disk.insertions == 100


# --- Other ends.


def test_an_accepted_write_reaches_the_file_soon(disk):
    tk.ActivationCache("1 MiB", disk=disk)
    child = os.fork()
    if child == 0:
        cache = tk.ActivationCache("1 MiB", disk=disk)
        put(cache, range(20))
        time.sleep(0.3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert missing(disk, range(20)) == []


PROGRAM = """
import sys
import numpy as np
import tensorkey as tk
cache = tk.ActivationCache("1 MiB", disk=sys.argv[1])
for number in range(300):
    cache.put(tk.key(np.int64(number)), np.arange(64, dtype=np.float32) + number)
exec(sys.argv[2])
"""


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "raise SystemExit", "1 / 0", "del cache"])
def test_an_interpreter_that_exits_has_written_all(disk, end):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, disk, end], capture_output=True, timeout=PATIENCE
    )
    assert (done.returncode == 0) == (end != "1 / 0")
    assert missing(disk, range(300)) == []


def test_a_cache_that_is_collected_has_written_all(disk):
    cache = tk.ActivationCache("1 MiB", disk=disk)
    put(cache, range(300))
    del cache
    gc.collect()
    assert missing(disk, range(300)) == []


def test_a_killed_process_damages_nothing(disk):
    program = PROGRAM + "\nprint('written', flush=True)\nsys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, disk, "cache.flush()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert missing(disk, range(300)) == []
    cache = tk.ActivationCache("1 MiB", disk=disk)
    put(cache, range(300, 400))
    assert cache.flush(PATIENCE)
    assert missing(disk, range(400)) == []
    assert len(list(disk.glob("*.seg"))) == 1  # the segment was taken over


# --- One computation over processes.

RACER = """
import os, sys, time
import numpy as np
import tensorkey as tk
cache = tk.ActivationCache("1 MiB", disk=sys.argv[1], lease_timeout=60)
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def compute(number):
    os.write(log, b"%d " % number)
    time.sleep(0.05)
    return np.arange(64, dtype=np.float32) + number
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    entry = cache.get_or_compute(tk.key(np.int64(number)), lambda: compute(number))
    assert np.asarray(entry[0])[0] == number
disk = cache.stats.disk
print(disk.lease_waits, disk.lease_timeouts, flush=True)
"""


def test_a_key_is_computed_once(disk, tmp_path):
    log = tmp_path / "log"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, disk, log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    printed = [racer.communicate(timeout=PATIENCE)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(20))
    assert sum(int(waits) for waits, _ in printed) > 0
    assert [timeouts for _, timeouts in printed] == [b"0", b"0"]


HOLDER = """
import sys, time
import numpy as np
import tensorkey as tk
cache = tk.ActivationCache("1 MiB", disk=sys.argv[1])
def compute():
    print("computing", flush=True)
    sys.stdin.readline()
    return np.arange(64, dtype=np.float32) + 1
cache.get_or_compute(tk.key(np.int64(1)), compute)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_who_is_too_slow_or_dead_is_not_waited_for(disk, killed):
    cache = tk.ActivationCache("1 MiB", disk=disk, lease_timeout=60 if killed else 0.1)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"computing\n"
        if killed:
            holder.kill()
            holder.wait()
        entry = cache.get_or_compute(key(1), lambda: row(1))
        np.testing.assert_array_equal(np.asarray(entry[0]), row(1))
        assert cache.stats.disk.lease_timeouts == (0 if killed else 1)
        if not killed:
            holder.communicate(b"\n", timeout=PATIENCE)
            assert holder.returncode == 0  # a late writer is harmless
    assert cache.flush(PATIENCE)
    assert missing(disk, range(1, 2)) == []
    assert cache.stats.disk.entries == 1
