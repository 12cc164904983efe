"""Cached layers and their cache: sharing, one computation a row, stepping aside, kill switches."""

import collections
import copy
import gc
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

# What a test counts and does inside a layer: globals, so that it is no part of the layer.
CALLS = collections.Counter()
HOOKS = {}

RECORDS = 2  # entries of a plan beside its rows: what the probe found, how outputs are made


class Scale(nn.Module):
    """x times a factor."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        CALLS[id(self)] += 1
        if id(self) in HOOKS:
            HOOKS[id(self)](x)
        return x * self.factor


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()
    HOOKS.clear()


def cached_scale(hook=None, **options):
    """Return a cached layer of one row a chunk, and its layer."""
    layer = Scale()
    cached = CachedLayer(layer, chunk=1, probe=False, **options)
    if cached.bypass != "always":
        cached(torch.full((1, 2), -1.0))  # settles the chunk
    cached.cache_clear()
    cached.reset_stats()
    CALLS.clear()
    if hook is not None:
        HOOKS[id(layer)] = hook
    return cached, layer


# --- One cache for several layers.


def test_layers_share_a_cache_and_never_answers():
    cache = tk.ActivationCache("1 MiB")
    two, three = (CachedLayer(Scale(f), cache=cache) for f in (2.0, 3.0))
    x = torch.randn(20, 4)
    for _ in range(2):
        assert torch.equal(two(x), x * 2)
        assert torch.equal(three(x), x * 3)
    assert two.cache is three.cache is cache
    assert (two.stats.misses, two.stats.hits) == (20, 20)
    assert len(cache) == two.stats.entries == 40 + 2 * RECORDS
    two.cache_clear()
    assert len(cache) == 20 + 2 * RECORDS - 1  # what the probe found holds for any weights
    three(x)
    assert three.stats.hits == 40
    two.reset_stats()
    assert two.stats.lookups == 0
    assert cache.stats.lookups == 100 + 2 * RECORDS


def test_equal_layers_that_share_a_cache_share_answers():
    cache = tk.ActivationCache("1 MiB")
    one, other = (CachedLayer(Scale(), cache=cache) for _ in range(2))
    x = torch.randn(20, 4)
    one(x)
    assert torch.equal(other(x), x * 2)
    assert other.stats.hits == 20


def test_a_cache_and_a_bound_exclude_each_other():
    cache = tk.ActivationCache("1 MiB")
    with pytest.raises(errors.InvalidArgument, match="expected one of them"):
        CachedLayer(Scale(), cache=cache, memory="1 GiB")
    with pytest.raises(errors.InvalidArgument, match="expected an ActivationCache"):
        CachedLayer(Scale(), cache={})
    assert CachedLayer(Scale()).stats.bound == 1 << 30
    assert CachedLayer(Scale(), memory="2 MiB").cache.stats.bound == 2 << 20


def test_copies_keep_the_options():
    cache = tk.ActivationCache("3 MiB")
    x = torch.randn(20, 4)
    options = {"chunk": 32, "codec": "fp16", "bypass": "never", "scope": "s"}
    for shared in (True, False):
        where = {"cache": cache} if shared else {"memory": "3 MiB"}
        cached = CachedLayer(Scale(), **where, **options)
        cached(x)
        loaded, twin = pickle.loads(pickle.dumps(cached)), copy.deepcopy(cached)
        assert (twin.cache is cache) == shared
        assert loaded.cache is not cache
        for other in (loaded, twin):
            assert other.stats.bound == 3 << 20
            assert other.bypass == "never"
            assert other.stats.codec == "fp16"
            other(x)
            assert other.stats.chunk == 32
        assert loaded.stats.hits == 0
        assert twin.stats.hits == (20 if shared else 0)


# --- Codecs.


@pytest.mark.parametrize(("codec", "lossy"), [("lossless", False), ("fp16", True), ("bf16", True)])
def test_codecs(codec, lossy):
    cache = tk.ActivationCache("8 MiB")
    plain = CachedLayer(Scale(), cache=cache)
    coded = CachedLayer(Scale(), cache=cache, codec=codec)
    x = torch.randn(40, 64)
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(codec)
    expected = (x * 2).to(half).float() if lossy else x * 2
    for _ in range(2):
        assert torch.equal(plain(x), x * 2)
        assert torch.equal(coded(x), expected)  # the first time too
    assert coded.stats.lossy == lossy
    assert ("lossy" in str(coded.stats)) == lossy
    assert coded.stats.misses == (40 if lossy else 0)  # rounded answers are no other layer's
    with pytest.raises(errors.InvalidArgument, match="codec"):
        CachedLayer(Scale(), codec="gzip")


# --- One computation a row.


def run_threads(works):
    outcomes = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def body(number, work):
        barrier.wait()
        try:
            outcomes[number] = work()
        except BaseException as error:
            outcomes[number] = error

    threads = [threading.Thread(target=body, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


def test_64_threads_run_a_row_once():
    never = threading.Event()
    cached, layer = cached_scale(hook=lambda x: never.wait(0.2))
    x = torch.ones(1, 2)
    outcomes = run_threads([lambda: cached(x)] * 64)
    assert all(torch.equal(output, x * 2) for output in outcomes)
    assert CALLS[id(layer)] == 1
    stats = cached.stats
    assert (stats.lookups, stats.misses, stats.hits) == (64, 1, 63)
    assert 0 < stats.waits <= 63


def test_overlapping_batches_wait_for_each_other():
    cached, layer = cached_scale(hook=lambda x: threading.Event().wait(0.01))
    x = torch.arange(24.0).reshape(12, 2)
    orders = [torch.arange(12), torch.arange(11, -1, -1), torch.arange(12).roll(5)]
    outcomes = run_threads([lambda order=order: cached(x[order]) for order in orders * 3])
    for order, output in zip(orders * 3, outcomes, strict=True):
        assert torch.equal(output, x[order] * 2)
    assert CALLS[id(layer)] == 12
    assert cached.stats.hits + cached.stats.misses == cached.stats.lookups == 9 * 12


def test_a_failing_layer_fails_for_all_who_wait():
    never = threading.Event()

    def fail(x):
        never.wait(0.3)
        raise ValueError(f"attempt {CALLS[id(layer)]}")

    cached, layer = cached_scale(hook=fail)
    x = torch.ones(1, 2)
    outcomes = run_threads([lambda: cached(x)] * 16)
    assert all(isinstance(outcome, ValueError) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == CALLS[id(layer)] < 16
    assert cached.stats.entries == 0
    assert cached.stats.errors == {"ValueError": CALLS[id(layer)]}
    HOOKS.clear()
    assert torch.equal(cached(x), x * 2)


def test_an_interrupted_thread_hands_its_rows_over():
    def interrupt(x):
        threading.Event().wait(0.2)
        if CALLS[id(layer)] == 1:
            raise KeyboardInterrupt

    cached, layer = cached_scale(hook=interrupt)
    x = torch.ones(1, 2)
    outcomes = run_threads([lambda: cached(x)] * 8)
    assert sum(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, torch.Tensor) for outcome in outcomes) == 7
    assert CALLS[id(layer)] == 2


def test_a_layer_that_asks_its_own_cache_ends():
    def again(x):
        if CALLS[id(layer)] < 3:
            cached(x)

    cached, layer = cached_scale(hook=again)
    x = torch.ones(1, 2)
    assert torch.equal(cached(x), x * 2)


# --- Stepping aside, and switching off.


def test_bypass_is_an_option_and_a_property():
    cached, layer = cached_scale(bypass="always")
    x = torch.randn(4, 2)
    for _ in range(3):
        assert torch.equal(cached(x), x * 2)
    assert cached.stats.lookups == 0
    assert cached.stats.bypasses == {"bypass='always'": 3}
    assert cached.stats.decision == "bypass='always'"
    cached.bypass = "never"
    cached(x)
    cached(x)
    assert cached.stats.hits == 4
    assert cached.bypass == "never"
    for bad in ("sometimes", ""):
        with pytest.raises(errors.InvalidArgument, match="expected 'auto', 'never' or 'always'"):
            cached.bypass = bad
        with pytest.raises(errors.InvalidArgument, match="expected 'auto', 'never' or 'always'"):
            CachedLayer(Scale(), bypass=bad)
    assert cached.bypass == "never"


def test_auto_steps_aside_says_why_and_probes():
    """Rows that never repeat, of a layer that is cheaper than their keys."""
    cached = CachedLayer(Scale(), chunk=32, probe=False)
    assert cached.stats.decision.startswith("in the cache")
    for _ in range(100_000):
        if cached.stats.decision.startswith("stepped aside: a call costs"):
            break
        x = torch.randn(512, 2)
        assert torch.equal(cached(x), x * 2)
    before = cached.stats
    assert before.decision.startswith("stepped aside: a call costs")
    assert before.bypasses == {}
    x = torch.randn(4, 2)
    for _ in range(100_000):
        if cached.stats.batches > before.batches:
            break
        assert torch.equal(cached(x), x * 2)
    stats = cached.stats
    assert stats.batches == before.batches + 1  # a probe, which stores what it runs
    assert stats.bypasses["bypass='auto' stepped aside"] >= 8
    cached.bypass = "never"
    cached(x)
    assert cached.stats.hits == before.hits + 4


def test_aside_hooks_and_transformations_are_respected():
    cached, layer = cached_scale(bypass="always")
    x = torch.randn(4, 2)
    handle = cached.register_forward_hook(lambda module, args, output: output + 1)
    before = cached.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    assert torch.equal(cached(x), x * 4 + 1)
    handle.remove()
    before.remove()
    assert torch.equal(cached(x), x * 2)
    assert cached.stats.bypasses == {"bypass='always'": 2}
    graph = torch.fx.symbolic_trace(nn.Sequential(cached, nn.ReLU()))
    assert torch.equal(graph(x), (x * 2).relu())
    compiled = torch.compile(cached, backend="eager")
    assert torch.equal(compiled(x), x * 2)
    assert torch.equal(torch.func.vmap(cached)(x), x * 2)


def test_gradients_flow_while_aside():
    cached = CachedLayer(nn.Linear(3, 2), bypass="always")
    cached(torch.ones(4, 3)).sum().backward()
    assert cached.weight.grad is not None


def test_disabled_nests_and_holds_for_all_threads():
    cached, layer = cached_scale(bypass="never")
    x = torch.randn(4, 2)
    cached(x)
    with tk.disabled():
        with tk.disabled():
            cached(x)
        run_threads([lambda: cached(x)] * 2)
        assert cached.stats.hits == 0
    cached(x)
    assert cached.stats.hits == 4
    assert cached.stats.bypasses == {"tensorkey.disabled()": 3}
    with pytest.raises(KeyError), tk.disabled():
        raise KeyError
    cached(x)
    assert cached.stats.hits == 8


def test_disabled_holds_for_methods():
    class Layer:
        calls = 0

        @tk.cached_method
        def double(self, x):
            self.calls += 1
            return x * 2

    layer, x = Layer(), torch.ones(2)
    layer.double(x)
    with tk.disabled():
        assert torch.equal(layer.double(x), x * 2)
    layer.double(x)
    assert layer.calls == 2
    assert Layer.double.cache_info(layer) == (1, 1, 1, 128, 1)


PROGRAM = """
import json, os
import torch, tensorkey as tk
from tensorkey.torch import CachedLayer
cached = CachedLayer(torch.nn.Identity(), bypass="never", chunk=1)
if os.environ.get("LATE"):
    os.environ["TENSORKEY_DISABLE"] = os.environ["LATE"]
for _ in range(2):
    cached(torch.ones(1, 2))
os.environ["TENSORKEY_DISABLE"] = "1"  # too late
cached(torch.ones(1, 2))
print(json.dumps(cached.stats.bypasses))
"""


@pytest.mark.parametrize(
    ("settings", "off"),
    [({"TENSORKEY_DISABLE": "1"}, True), ({"LATE": "1"}, True), ({"TENSORKEY_DISABLE": "0"}, False)]
    + [({"TENSORKEY_DISABLE": ""}, False), ({}, False)],
)
def test_the_environment_switches_off(settings, off):
    kept = {name: value for name, value in os.environ.items() if name != "TENSORKEY_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=kept | settings,
        timeout=120,
        check=True,
    )
    assert json.loads(done.stdout) == ({"TENSORKEY_DISABLE is set": 3} if off else {})


# --- Accounts.


def test_counters_agree_under_threads():
    cached = CachedLayer(Scale(), memory="64 KiB", bypass="never", chunk=1, probe=False)
    x = torch.randn(400, 16)
    stop = threading.Event()
    wrong = []

    def watch():
        while not stop.is_set():
            stats = cached.stats
            reasons = stats.misses_new + stats.misses_evicted + stats.misses_expired
            if stats.hits + stats.misses != stats.lookups or reasons != stats.misses:
                wrong.append(stats)
            if stats.bytes > stats.bound or stats.cache.hits > stats.cache.lookups:
                wrong.append(stats)

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(30):
            rows = torch.randint(0, 400, (7,), generator=generator)
            assert torch.equal(cached(x[rows]), x[rows] * 2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcomes = run_threads([lambda seed=seed: work(seed) for seed in range(6)])
    stop.set()
    watcher.join()
    assert outcomes == [None] * 6
    assert wrong == []
    assert cached.stats.lookups == 6 * 30 * 7
    assert cached.stats.evictions + cached.stats.rejections > 0


def test_costs_are_measured_and_reset():
    cached = CachedLayer(Scale(), chunk=32)
    x = torch.randn(40, 64)
    cached(x)
    cached(x)
    stats = cached.stats
    assert stats.batches == 2
    assert stats.bytes_read == 40 * 64 * 4
    for part in ("digest", "lookup", "insert", "copy", "frontend", "cache", "spent", "saved"):
        assert getattr(stats, f"seconds_{part}") > 0, part
    assert stats.host_copy_bytes == stats.host_copy_rows == 0
    cached.reset_stats()
    stats = cached.stats
    assert (stats.lookups, stats.batches, stats.cache.hits, stats.seconds_cache) == (0, 0, 0, 0)
    assert stats.entries == 40 + RECORDS
    cached(x)
    assert cached.stats.hits == 40


def test_a_hint_is_given_once_in_words():
    cached = CachedLayer(Scale(), chunk=1, probe=False)
    for _ in range(3):
        for _ in range(5):
            cached(torch.randn(8, 2))
        cached(torch.randn(3, 2))
    assert cached.stats.hints == [
        "second pass and 0 % hits: inputs differ each time (augmentation?)"
    ]
    assert "augmentation" in str(cached.stats)
    cached.reset_stats()
    assert cached.stats.hints == []


def test_a_layer_and_its_cache_are_freed():
    cached = CachedLayer(Scale(), memory="1 MiB")
    cached(torch.randn(4, 2))
    engine = cached._engine
    gone = weakref.ref(engine)
    del cached, engine
    gc.collect()
    assert gone() is None


def test_a_forked_child_goes_on():
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done"]


FORK = """
import os, signal, threading
import torch, tensorkey as tk
from tensorkey.torch import CachedLayer
torch.set_num_threads(1)
class Slow(torch.nn.Module):
    def forward(self, x):
        if threading.current_thread().name == "slow" and (x == 7).all():
            reached.set()
            stop.wait(60)
        return x * 2
cached = CachedLayer(Slow(), memory="64 KiB", bypass="never", chunk=1, probe=False)
x = torch.arange(300.0)[:, None].repeat(1, 8)
cached(x[:1])
stop, reached = threading.Event(), threading.Event()
def churn(seed):
    generator = torch.Generator().manual_seed(seed)
    while not stop.is_set():
        rows = torch.randint(100, 300, (5,), generator=generator)
        cached(x[rows])
        cached.stats
threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
threads.append(threading.Thread(target=cached, args=(x[7:8],), name="slow"))
for thread in threads: thread.start()
reached.wait()
for turn in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        assert torch.equal(cached(x[7:8]), x[7:8] * 2)  # the thread that ran it is gone
        assert torch.equal(cached(x), x * 2)
        assert cached.stats.bytes <= cached.stats.bound
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, turn
stop.set()
for thread in threads: thread.join()
print("done")
"""
