"""ActivationCache: what it stores, gives back and refuses."""

from __future__ import annotations

import copy
import gc
import pickle
import stat
import time

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import errors


def key(number: int) -> tk.Key:
    return tk.key(np.int64(number))


@pytest.fixture
def cache() -> tk.ActivationCache:
    return tk.ActivationCache("8 MiB")


def values(cache: tk.ActivationCache, number: int) -> list | None:
    entry = cache.get(key(number))
    return None if entry is None else np.asarray(entry[0]).tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(10)[::-2],
        np.array(2.5),
        np.empty((0, 3), np.int16),
        np.array([True, False]),
        np.array([1 + 2j, 3], np.complex64),
        np.array([1, -1], ">i4"),
        np.float16([1, np.nan, -0.0]),
    ],
    ids=str,
)
def test_what_goes_in_comes_out(cache, array):
    assert cache.put(key(1), array, seconds=0.5)
    entry = cache.get(key(1))
    out = np.asarray(entry[0])
    np.testing.assert_array_equal(out, array)
    assert out.dtype == array.dtype.newbyteorder("=")
    assert entry[0].shape == out.shape == array.shape
    assert entry[0].dtype == array.dtype.name
    assert entry[0].nbytes == array.nbytes
    assert entry.key == key(1)
    assert entry.seconds == 0.5
    assert entry.input is None


def test_dtypes_without_a_buffer_come_out_as_their_bits(cache):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    cache.put(key(1), array)
    stored = cache.get(key(1))[0]
    assert stored.dtype == "bfloat16"
    bits = np.asarray(stored)
    assert bits.dtype == np.uint16
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), array)


def test_torch_tensors_come_out_by_the_frontend(cache):
    torch = pytest.importorskip("torch")
    from tensorkey.torch import tensor

    for x in (
        torch.randn(2, 3).t(),
        torch.tensor([1.5, 2], dtype=torch.bfloat16),
        torch.tensor(3),
        torch.empty(0, 2),
        torch.tensor([True, False]),
    ):
        cache.clear()
        cache.put(key(1), x)
        out = tensor(cache.get(key(1))[0])
        assert out.dtype == x.dtype
        assert torch.equal(out, x)
        out.zero_()
        assert torch.equal(tensor(cache.get(key(1))[0]), x)


def test_several_tensors_by_name_and_by_number(cache):
    a, b = np.ones(3), np.arange(2)
    cache.put(key(1), {"a": a, "b": b})
    entry = cache.get(key(1))
    assert len(entry) == 2
    assert [entry[i].name for i in (0, 1)] == ["a", "b"]
    np.testing.assert_array_equal(np.asarray(entry["b"]), b)
    assert repr(entry["b"]) == "<EntryTensor b: int64[2]>"
    with pytest.raises(errors.MissingKey, match="no tensor is called c"):
        entry["c"]
    cache.put(key(2), [a, b])
    assert cache.get(key(2))[1].name == "1"
    np.testing.assert_array_equal(np.asarray(cache.get(key(2))[-1]), b)
    with pytest.raises(IndexError):
        cache.get(key(2))[2]


@pytest.mark.parametrize("value", ["text", None, [], {}, {1: np.ones(1)}, [np.ones(1), "text"]])
def test_what_is_no_tensor_is_refused(cache, value):
    with pytest.raises((errors.Unsupported, errors.InvalidArgument)):
        cache.put(key(1), value)
    with pytest.raises((errors.Unsupported, errors.InvalidArgument)):
        cache.get_or_compute(key(1), lambda: value)
    assert len(cache) == 0


def test_dates_have_no_place_for_their_unit(cache):
    with pytest.raises(errors.Unsupported, match="datetime64"):
        cache.put(key(1), np.array(["2026-01-01"], "datetime64[D]"))


def test_nothing_that_comes_out_can_be_written(cache):
    array = np.ones(3)
    cache.put(key(1), array)
    array[:] = 7
    out = np.asarray(cache.get(key(1))[0])
    assert out.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        out[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        out.flags.writeable = True
    with pytest.raises(TypeError):
        memoryview(cache.get(key(1))[0])[0] = 2.0


def test_an_entry_outlives_its_eviction(cache):
    cache.put(key(1), np.arange(1000))
    out = np.asarray(cache.get(key(1))[0])
    cache.clear()
    gc.collect()
    assert out.tolist() == list(range(1000))
    del cache
    assert out[-1] == 999


def test_equal_keys_have_equal_values_so_the_first_stays(cache):
    assert cache.put(key(1), np.ones(1))
    assert cache.put(key(1), np.zeros(1))
    assert values(cache, 1) == [1]


def test_removing(cache):
    for number in range(6):
        cache.put(key(number), np.array([number]), scope=b"even" if number % 2 == 0 else "odd")
    assert key(1) in cache
    assert cache.remove(key(1))
    assert not cache.remove(key(1))
    del cache[key(3)]
    with pytest.raises(errors.MissingKey):
        del cache[key(3)]
    assert cache.purge("even") == 3
    assert cache.purge(b"even") == 0
    assert list(cache) == [key(5)]
    cache.clear()
    assert len(cache) == 0
    with pytest.raises(errors.Unsupported, match="scope"):
        cache.purge(3)


def test_a_pinned_entry_stays(cache):
    assert not cache.pin(key(0))
    cache.put(key(0), np.zeros(1000))
    assert cache.pin(key(0))
    assert [info.pinned for info in cache.snapshot()] == [True]
    assert cache.stats.pinned >= 8000
    for number in range(1, 2000):
        cache.put(key(number), np.zeros(1000), seconds=1.0)
    assert cache.stats.evictions + cache.stats.rejections > 0
    assert key(0) in cache
    assert cache.unpin(key(0))
    assert cache.stats.pinned == 0


def test_a_snapshot_says_what_is_there(cache):
    cache.put(key(1), np.zeros(100), seconds=0.25)
    (info,) = cache.snapshot()
    assert info.key == key(1)
    assert info.seconds == 0.25
    assert info.bytes >= 800
    for found in cache:  # over a snapshot: the cache may change
        cache.remove(found)


def test_resize(cache):
    for number in range(500):
        cache.put(key(number), np.zeros(1000))
    cache.resize("1 MiB")
    assert cache.stats.bound == 1 << 20
    assert cache.stats.bytes <= 1 << 20
    assert 0 < len(cache) < 500
    with pytest.raises(errors.InvalidArgument, match="expected"):
        cache.resize(0)
    with pytest.raises(errors.InvalidArgument, match="64 KiB"):
        cache.resize(1000)


def test_entries_expire():
    cache = tk.ActivationCache("1 MiB", ttl=0.01)
    cache.put(key(1), np.ones(1))
    cache.put(key(2), np.ones(1))
    cache.pin(key(2))
    time.sleep(0.05)
    assert cache.get(key(1)) is None
    assert cache.get(key(2)) is not None
    assert cache.stats.misses_expired == 1


@pytest.mark.parametrize("options", [{"memory": 100}, {"memory": "x"}, {"ttl": -1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.InvalidArgument):
        tk.ActivationCache(**options)


def test_the_counters_add_up(cache):
    for number in (1, 2, 1, 3, 1):
        if cache.get(key(number)) is None:
            cache.put(key(number), np.ones(4))
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.lookups) == (2, 3, 5)
    assert stats.insertions == stats.entries == stats.distinct == 3
    assert stats.to_dict()["lookups"] == 5
    assert "2 (40.0%)" in str(stats)
    cache.reset_stats()
    assert cache.stats.lookups == 0
    assert cache.stats.entries == 3


def test_get_or_compute(cache):
    calls = []

    def compute():
        calls.append(1)
        return np.ones(2)

    for _ in range(3):
        assert np.asarray(cache.get_or_compute(key(1), compute)[0]).tolist() == [1, 1]
    assert len(calls) == 1
    assert cache.get(key(1)).seconds > 0
    assert cache.purge(b"") == 1


def test_a_failing_computation_stores_nothing_and_may_be_tried_again(cache):
    error = KeyError("no")

    def fail():
        raise error

    with pytest.raises(KeyError) as caught:
        cache.get_or_compute(key(1), fail)
    assert caught.value is error
    assert key(1) not in cache
    assert cache.get_or_compute(key(1), lambda: np.ones(1)) is not None

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get_or_compute(key(2), interrupt)
    assert cache.get_or_compute(key(2), lambda: np.ones(1)) is not None


def test_a_computation_may_ask_for_another_key_and_not_for_its_own(cache):
    def outer():
        inner = cache.get_or_compute(key(2), lambda: np.ones(1))
        return np.asarray(inner[0]) + 1

    assert np.asarray(cache.get_or_compute(key(1), outer)[0]).tolist() == [2]

    def own():
        return np.asarray(cache.get_or_compute(key(3), own)[0])

    with pytest.raises(errors.InvalidArgument, match="asks for the same key"):
        cache.get_or_compute(key(3), own)


def test_an_entry_travels_as_bytes(cache):
    cache.put(key(1), {"a": np.ones(3), "b": np.arange(2)}, seconds=0.5)
    secret = bytes(range(32))
    other = tk.ActivationCache("1 MiB")
    plain, keyed = cache.dump(key(1)), cache.dump(key(1), secret=secret)
    assert other.load(plain, scope="imported")
    entry = other.get(key(1))
    assert entry.seconds == 0.5
    np.testing.assert_array_equal(np.asarray(entry["b"]), [0, 1])
    assert other.purge("imported") == 1
    for data, with_secret in [
        (plain[:-1], None),
        (plain[:40] + bytes([plain[40] ^ 1]) + plain[41:], None),
        (b"", None),
        (plain, secret),
        (keyed, None),
        (keyed, bytes(32)),
    ]:
        assert not other.load(data, secret=with_secret)
    assert other.stats.corrupt == 6
    assert len(other) == 0
    assert other.load(keyed, secret=secret)
    with pytest.raises(errors.MissingKey):
        cache.dump(key(2))
    with pytest.raises(errors.InvalidArgument, match="32"):
        cache.dump(key(1), secret=b"short")


def test_a_trace_is_bounded_and_private(cache, tmp_path):
    path = tmp_path / "trace.txt"
    cache.trace(path, limit="4 KiB")
    for number in range(1000):
        cache.put(key(number), np.ones(1))
        cache.get(key(number))
    cache.trace(None)
    lines = path.read_text().splitlines()
    assert 10 < len(lines) < 1000
    assert path.stat().st_size <= 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(errors.StoreIOError):
        cache.trace(tmp_path / "missing" / "trace.txt")
    with pytest.raises(OSError, match="trace"):
        cache.trace(tmp_path / "missing" / "trace.txt")


def test_a_cache_belongs_to_its_process(cache):
    cache.put(key(1), np.ones(1))
    for thing in (cache, cache.get(key(1)), cache.get(key(1))[0]):
        with pytest.raises(errors.Unsupported, match="process"):
            pickle.dumps(thing)
        with pytest.raises(errors.Unsupported, match="process"):
            copy.deepcopy(thing)
    assert repr(cache).endswith("of 8.0 MiB, 1 entries>")
    assert repr(cache.get(key(1))).startswith(f"<Entry {key(1).hex()[:16]}")


@pytest.mark.parametrize("bad", [None, "text", 1, b"x" * 32, np.ones(3)])
def test_only_keys_are_keys(cache, bad):
    with pytest.raises(TypeError):
        cache.get(bad)
    with pytest.raises(TypeError):
        cache.get_or_compute(bad, lambda: np.ones(1))
