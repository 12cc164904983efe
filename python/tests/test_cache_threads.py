"""ActivationCache under threads, signals and fork."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

import tensorkey as tk


def key(number: int) -> tk.Key:
    return tk.key(np.int64(number))


def run_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """Run work(0) ... work(count - 1) at once; return what each returned or raised."""
    barrier = threading.Barrier(count)
    outcomes: list[object] = [None] * count

    def body(number: int) -> None:
        barrier.wait()
        try:
            outcomes[number] = work(number)
        except BaseException as error:
            outcomes[number] = error

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


def test_64_threads_compute_once():
    cache = tk.ActivationCache("1 MiB")
    computing, calls = threading.Event(), []

    def compute() -> np.ndarray:
        calls.append(1)
        computing.wait(0.2)  # nobody sets it: the others arrive meanwhile
        return np.ones(3)

    outcomes = run_threads(64, lambda _: cache.get_or_compute(key(1), compute))
    assert len(calls) == 1
    assert all(np.asarray(entry[0]).tolist() == [1, 1, 1] for entry in outcomes)
    stats = cache.stats
    assert stats.lookups == stats.hits + stats.misses == 64
    assert stats.misses == stats.insertions == 1


def test_a_failure_reaches_all_who_wait():
    cache = tk.ActivationCache("1 MiB")
    waiting = threading.Event()
    calls = []

    def fail() -> np.ndarray:
        calls.append(1)
        waiting.wait(0.3)
        raise ValueError(f"attempt {len(calls)}")

    outcomes = run_threads(16, lambda _: cache.get_or_compute(key(1), fail))
    assert all(isinstance(outcome, ValueError) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == len(calls) < 16
    assert key(1) not in cache
    assert cache.get_or_compute(key(1), lambda: np.ones(1)) is not None


def test_an_interrupted_computation_is_taken_over():
    cache = tk.ActivationCache("1 MiB")
    never, calls = threading.Event(), []

    def compute() -> np.ndarray:
        calls.append(1)
        never.wait(0.2)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return np.ones(1)

    outcomes = run_threads(8, lambda _: cache.get_or_compute(key(1), compute))
    assert sum(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, tk.Entry) for outcome in outcomes) == 7
    assert len(calls) == 2


def test_computations_that_need_each_other_end():
    cache = tk.ActivationCache("1 MiB")
    both = threading.Barrier(2)
    barriers = [None, None, None, None, both, both]  # the first two computations meet

    def make(mine: int, other: int) -> np.ndarray:
        def compute() -> np.ndarray:
            if turns := barriers.pop():
                turns.wait(10)
            needed = cache.get_or_compute(key(other), lambda: np.array([other]))
            return np.asarray(needed[0]) * 0 + mine

        return np.asarray(cache.get_or_compute(key(mine), compute)[0])

    outcomes = run_threads(2, lambda n: make(n, 1 - n))
    assert [np.asarray(outcome).tolist() for outcome in outcomes] == [[0], [1]]


def test_the_bound_holds_and_counters_add_up_while_all_is_changed():
    cache = tk.ActivationCache("1 MiB")
    payload = np.arange(500)

    def work(number: int) -> None:
        random = np.random.default_rng(number)
        for step in range(300):
            which = int(random.integers(0, 400))
            choice = random.integers(0, 20)
            if choice == 0:
                cache.resize(f"{random.integers(300, 1024)} KiB")
            elif choice == 1:
                cache.remove(key(which))
            elif choice == 2:
                cache.purge(b"a")
            elif choice == 3 and step % 50 == 0:
                cache.clear()
            elif choice < 8:
                cache.put(key(which), payload + which, seconds=which, scope=b"a")
            else:
                entry = cache.get_or_compute(key(which), lambda which=which: payload + which)
                assert np.asarray(entry[0])[0] == which
            stats = cache.stats
            assert stats.hits + stats.misses == stats.lookups

    assert run_threads(8, work) == [None] * 8
    cache.resize("1 MiB")
    stats = cache.stats
    assert stats.bytes <= stats.bound
    assert stats.evictions > 0
    assert stats.entries == len(cache.snapshot())


def run_program(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ctrl_c_ends_a_wait():
    out = run_program("""
import _thread, threading, time
import numpy as np, tensorkey as tk
cache, key = tk.ActivationCache(), tk.key(np.ones(1))
started, release = threading.Event(), threading.Event()
def compute():
    started.set()
    release.wait(60)
    return np.ones(1)
thread = threading.Thread(target=cache.get_or_compute, args=(key, compute))
thread.start()
started.wait()
timers = [threading.Timer(delay, _thread.interrupt_main) for delay in (0.2, 5.0)]
for timer in timers:
    timer.start()
try:
    cache.get_or_compute(key, compute)
except KeyboardInterrupt:
    timers[1].cancel()  # for an interrupt that went to something else of Python's
    print("interrupted")
release.set()
thread.join()
print(key in cache)
""")
    assert out.split() == ["interrupted", "True"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on():
    out = run_program("""
import os, signal, threading
import numpy as np, tensorkey as tk
cache = tk.ActivationCache("1 MiB")
keys = [tk.key(np.int64(i)) for i in range(300)]
cache.put(keys[0], np.zeros(1))
cache.pin(keys[0])
stop, computing = threading.Event(), threading.Event()
def churn(seed):
    random = np.random.default_rng(seed)
    while not stop.is_set():
        i = int(random.integers(1, 299))
        cache.get_or_compute(keys[i], lambda: np.full(500, i))
def slow():
    computing.set()
    stop.wait(60)
    return np.ones(1)
threads = [threading.Thread(target=churn, args=(i,)) for i in range(4)]
threads.append(threading.Thread(target=cache.get_or_compute, args=(keys[299], slow)))
for thread in threads: thread.start()
computing.wait()
for turn in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        assert cache.get(keys[0]) is not None
        mine = cache.get_or_compute(keys[299], lambda: np.full(3, turn))  # its thread is gone
        assert np.asarray(mine[0]).tolist() == [turn] * 3
        for i in range(1, 299):
            assert np.asarray(cache.get_or_compute(keys[i], lambda: np.full(500, i))[0])[0] == i
        assert cache.stats.bytes <= cache.stats.bound
        cache.clear()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, turn
stop.set()
for thread in threads: thread.join()
assert cache.get(keys[299])[0].shape == (1,)
print("done")
""")
    assert out.split() == ["done"]
