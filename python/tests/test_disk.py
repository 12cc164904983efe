"""ActivationCache with a directory or a pack: what goes in comes out, in the next process too."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import errors

SECRET, OTHER_SECRET = bytes(range(32)), bytes(32)
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def key(number: int) -> tk.Key:
    return tk.key(np.int64(number))


def row(number: int) -> np.ndarray:
    return np.arange(384, dtype=np.float32) + number


@pytest.fixture
def disk(tmp_path) -> Path:
    return tmp_path / "activations"


def on_disk(disk: Path, **options) -> tk.ActivationCache:
    """Return a cache that keeps nothing in memory."""
    return tk.ActivationCache(None, disk=disk, **options)


def fill(disk: Path, count: int, **options) -> None:
    cache = on_disk(disk, **options)
    for number in range(count):
        cache.put(key(number), row(number), seconds=0.01)
    assert cache.flush(30)


def found(cache: tk.ActivationCache, count: int) -> int:
    """How many rows are there; each that is must be right."""
    entries = cache.get_many([key(number) for number in range(count)])
    for number, entry in enumerate(entries):
        if entry is not None:
            np.testing.assert_array_equal(np.asarray(entry[0]), row(number))
    return sum(entry is not None for entry in entries)


def in_new_process(program: str, *arguments: object) -> dict:
    """Run a program and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def segments(disk: Path) -> list[Path]:
    return sorted(disk.glob("*.seg"))


# --- What goes in comes out.

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "strided": np.arange(10)[::-2],
    "scalar": np.array(2.5),
    "empty": np.empty((0, 3), np.int16),
    "bools": np.array([True, False]),
    "complex": np.array([1 + 2j, 3], np.complex64),
    "bits": np.float16([1, np.nan, -0.0]),
}

READER = """
import json, sys
import numpy as np
import tensorkey as tk
cache = tk.ActivationCache("1 MiB", disk=sys.argv[1])
answers = {}
for name in sys.argv[2:]:
    entry = cache.get(tk.key(np.frombuffer(name.encode(), np.uint8)))
    tensor = entry[0]
    answers[name] = [np.asarray(tensor).tobytes().hex(), tensor.dtype, tensor.shape, entry.seconds]
stats = cache.stats
print(json.dumps([answers, stats.hits, stats.stored_hits, stats.disk.hits, stats.disk.entries]))
"""


def test_a_new_process_finds_what_was_stored(disk):
    cache = tk.ActivationCache("1 MiB", disk=disk)
    for name, array in ARRAYS.items():
        assert cache.put(tk.key(np.frombuffer(name.encode(), np.uint8)), array, seconds=0.5)
    assert cache.flush(30)
    answers, *counts = in_new_process(READER, disk, *ARRAYS)
    assert counts == [len(ARRAYS)] * 4
    for name, array in ARRAYS.items():
        assert answers[name] == [array.tobytes().hex(), array.dtype.name, list(array.shape), 0.5]


def test_several_tensors_and_their_names(disk):
    cache = on_disk(disk)
    cache.put(key(1), {"a": row(1), "b": np.arange(2)})
    assert cache.flush()
    entry = on_disk(disk).get(key(1))
    assert [tensor.name for tensor in (entry[0], entry[1])] == ["a", "b"]
    np.testing.assert_array_equal(np.asarray(entry["b"]), np.arange(2))


def test_what_waits_to_be_written_is_found(disk):
    cache = on_disk(disk)
    for number in range(100):
        cache.put(key(number), row(number))
        assert key(number) in cache
        np.testing.assert_array_equal(np.asarray(cache.get(key(number))[0]), row(number))


def test_without_memory_all_is_on_disk(disk):
    cache = on_disk(disk)
    calls = []

    def compute():
        calls.append(1)
        return row(7)

    for _ in range(3):
        entry = cache.get_or_compute(key(7), compute)
        np.testing.assert_array_equal(np.asarray(entry[0]), row(7))
    assert len(calls) == 1
    assert len(cache) == 0
    assert cache.stats.bound == 0
    assert not cache.pin(key(7))
    with pytest.raises(errors.InvalidArgument, match="no memory tier"):
        cache.resize("1 MiB")


def test_memory_is_filled_on_the_way_back(disk):
    fill(disk, 10)
    cache = tk.ActivationCache("8 MiB", disk=disk)
    assert found(cache, 10) == found(cache, 10) == 10
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.stored_hits) == (20, 0, 10)
    assert (stats.disk.hits, len(cache)) == (10, 10)


def test_get_many(disk):
    fill(disk, 5)
    cache = tk.ActivationCache("8 MiB", disk=disk)
    entries = cache.get_many([key(n) for n in (3, 9, 0, 3)])
    assert [entry and np.asarray(entry[0])[0] for entry in entries] == [3.0, None, 0.0, 3.0]
    assert (cache.stats.hits, cache.stats.misses) == (3, 1)
    assert cache.get_many([]) == []
    assert cache.get_many((key(1),))[0] is not None
    with pytest.raises(TypeError):
        cache.get_many([b"no key"])
    plain = tk.ActivationCache("1 MiB")
    assert plain.get_many([key(1)]) == [None]


@pytest.mark.parametrize("memory", [None, "8 MiB"])
def test_reading_into_a_buffer(disk, memory):
    fill(disk, 3)
    cache = tk.ActivationCache(memory, disk=disk)
    out = np.zeros(384, np.float32)
    for _ in range(2):
        assert cache.read(key(2), out)
        np.testing.assert_array_equal(out, row(2))
        assert cache.get(key(2)) is not None
    assert not cache.read(key(9), out)
    assert not cache.read(key(1), np.zeros(3, np.float32))
    for bad in (bytes(1536), out[::2]):
        with pytest.raises((errors.Error, TypeError, BufferError, ValueError)):
            cache.read(key(1), bad)


@pytest.mark.parametrize("memory", [None, "8 MiB"])
def test_reading_rows_of_a_table(disk, memory):
    fill(disk, 4)
    cache = tk.ActivationCache(memory, disk=disk)
    keys = [key(number) for number in (2, 9, 0, 2)]
    for _ in range(2):
        table = np.zeros((4, 384), np.float32)
        assert cache.read_many(keys, table) == [True, False, True, True]
        for place, number in ((0, 2), (2, 0), (3, 2)):
            np.testing.assert_array_equal(table[place], row(number))
        assert len(cache.get_many(keys)) == 4
    assert cache.read_many([], np.empty((0, 384), np.float32)) == []
    with pytest.raises(errors.InvalidArgument):
        cache.read_many(keys, np.zeros(7, np.uint8))


def test_a_megabyte(disk):
    big = np.random.default_rng(0).normal(size=1 << 17)
    cache = on_disk(disk)
    assert cache.put(key(1), big)
    assert cache.flush()
    out = np.empty_like(big)
    other = on_disk(disk)
    assert other.read(key(1), out)
    np.testing.assert_array_equal(out, big)
    np.testing.assert_array_equal(np.asarray(other.get(key(1))[0]), big)


def test_an_entry_travels_as_bytes(disk):
    fill(disk, 1)
    data = on_disk(disk).dump(key(0))
    other = on_disk(disk.with_name("other"))
    assert other.load(data)
    assert found(other, 1) == 1


# --- Writing, waiting, looking.


def test_flush(disk):
    cache = on_disk(disk)
    assert cache.flush()
    assert cache.flush(0)
    cache.put(key(1), row(1))
    assert cache.flush(30)
    assert cache.stats.disk.insertions == 1
    assert tk.ActivationCache("1 MiB").flush(0)


def test_another_cache_of_the_directory_sees_it(disk):
    one, other = on_disk(disk), on_disk(disk)
    assert other.get(key(1)) is None
    one.put(key(1), row(1))
    assert one.flush()
    other.refresh()
    np.testing.assert_array_equal(np.asarray(other.get(key(1))[0]), row(1))
    other.put(key(2), row(2))
    assert other.flush()
    one.refresh()
    assert one.get(key(2)) is not None
    assert one.stats.disk.entries == 2


def test_a_key_that_is_there_keeps_its_entry(disk):
    fill(disk, 1)
    cache = on_disk(disk)
    cache.get(key(0))
    cache.put(key(0), row(5))
    assert cache.flush()
    assert found(cache, 1) == 1
    assert cache.stats.disk.insertions == 0


def test_removing_is_for_all(disk):
    one, other = on_disk(disk), on_disk(disk)
    for number in range(6):
        one.put(key(number), row(number), scope=f"scope {number % 2}")
    assert one.flush()
    other.refresh()
    assert found(other, 6) == 6
    assert one.remove(key(0))
    assert not one.remove(key(0))
    assert one.purge("scope 1") == 3
    for cache in (one, other, on_disk(disk)):
        cache.refresh()
        assert found(cache, 6) == 2
        assert key(0) not in cache
    del one[key(2)]
    with pytest.raises(errors.MissingKey):
        del one[key(2)]
    one.clear()
    assert found(one, 6) == found(on_disk(disk), 6) == 0
    one.put(key(3), row(3))
    assert one.flush()
    assert found(on_disk(disk), 6) == 1


def test_entries_expire(disk):
    fill(disk, 3)
    time.sleep(2.1)  # whole seconds count
    assert found(on_disk(disk, ttl=1000), 3) == 3
    cache = on_disk(disk, ttl=1)
    assert found(cache, 3) == 0
    assert cache.stats.disk.expired == 3
    cache.put(key(0), row(0))
    assert cache.flush()
    assert cache.get(key(0)) is not None


def test_threads_read_and_write(disk):
    cache = tk.ActivationCache("64 KiB", disk=disk)
    wrong = []

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, 200, 300).tolist():
            entry = cache.get_or_compute(key(number), lambda number=number: row(number))
            if np.asarray(entry[0])[0] != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.flush(30)
    assert found(on_disk(disk), 200) == 200


# --- The bound.


def allocated(disk: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in disk.iterdir())


def test_the_bound_holds_and_belongs_to_the_directory(disk):
    cache = on_disk(disk, disk_limit="4 MiB")
    for number in range(6000):  # three times as much
        cache.put(key(number), row(number), seconds=0.01)
    assert cache.flush(60)
    stats = cache.stats.disk
    assert stats.bound == 4 << 20
    assert allocated(disk) <= 4 << 20
    assert stats.bytes <= 4 << 20
    assert 1000 < stats.entries < 2800
    assert stats.rejections + stats.evictions + stats.dropped > 0
    assert found(cache, 6000) == stats.entries
    del cache
    gc.collect()
    assert on_disk(disk).stats.disk.bound == 4 << 20
    assert on_disk(disk, disk_limit="8 MiB").stats.disk.bound == 8 << 20
    assert on_disk(disk).stats.disk.bound == 8 << 20


def test_a_new_directory_has_10_gib(disk):
    assert on_disk(disk).stats.disk.bound == 10 << 30


def test_a_small_copy_of_the_index_asks_the_index(disk):
    fill(disk, 500)
    cache = on_disk(disk, index_limit="12 KiB")
    assert found(cache, 500) == 500
    stats = cache.stats.disk
    assert stats.index_bytes <= stats.index_bound == 12 << 10


# --- Packs.


def test_a_pack_is_read_in_a_new_process(disk, tmp_path):
    pack = tmp_path / "latents.tkpack"
    cache = tk.ActivationCache("8 MiB", disk=disk)
    for name, array in ARRAYS.items():
        cache.put(tk.key(np.frombuffer(name.encode(), np.uint8)), array, seconds=0.5)
    assert cache.pack(pack) == len(ARRAYS)
    assert pack.stat().st_mode & 0o777 == 0o600
    program = READER.replace("disk=", "pack=").replace("stats.disk", "stats.pack")
    answers, *counts = in_new_process(program, pack, *ARRAYS)
    assert counts == [len(ARRAYS)] * 4
    assert {name: answer[0] for name, answer in answers.items()} == {
        name: array.tobytes().hex() for name, array in ARRAYS.items()
    }


def test_what_is_in_a_pack(disk, tmp_path):
    pack, one = tmp_path / "all", tmp_path / "one"
    cache = tk.ActivationCache("8 MiB", disk=disk)
    cache.put(key(0), row(0), scope="a")
    cache.put(key(1), row(1), scope="b")
    assert cache.pack(one, scope="a") == 1
    assert cache.pack(pack) == 2
    assert cache.pack(pack) == 2  # made anew
    both = tk.ActivationCache(None, pack=one, disk=tmp_path / "new")
    assert found(both, 2) == 1
    both.put(key(1), row(1))
    assert found(both, 2) == 2
    assert both.pack(tmp_path / "again") == 2
    stats = both.stats
    assert (stats.pack.entries, stats.pack.state) == (1, "read-only")
    reader = tk.ActivationCache(None, pack=pack)
    assert not reader.remove(key(0))
    assert reader.purge("a") == 0
    reader.put(key(5), row(5))
    assert found(reader, 2) == 2
    out = np.empty(384, np.float32)
    assert reader.read(key(1), out)
    np.testing.assert_array_equal(out, row(1))
    assert not reader.read(key(1), out[:5])
    assert reader.stats.disk is None


def test_a_pack_of_memory_alone(tmp_path):
    cache = tk.ActivationCache("1 MiB")
    assert cache.pack(tmp_path / "empty") == 0
    cache.put(key(0), row(0))
    assert cache.pack(tmp_path / "pack") == 1
    assert found(tk.ActivationCache("1 MiB", pack=tmp_path / "pack"), 2) == 1
    assert found(tk.ActivationCache("1 MiB", pack=tmp_path / "empty"), 2) == 0


def test_packs_that_are_none(tmp_path):
    with pytest.raises(
        errors.StoreUnavailable, match=r"expected a pack that cache\.pack\(\) wrote"
    ):
        tk.ActivationCache(pack=tmp_path / "missing")
    (tmp_path / "text").write_text("no pack at all, but longer than a head" * 4)
    with pytest.raises(errors.CorruptEntry, match="is no pack"):
        tk.ActivationCache(pack=tmp_path / "text")
    with pytest.raises(errors.StoreUnavailable):
        tk.ActivationCache(pack=tmp_path)
    with pytest.raises(errors.StoreIOError):
        tk.ActivationCache("1 MiB").pack(tmp_path / "no" / "such" / "folder")
    cache = tk.ActivationCache("1 MiB")
    cache.put(key(0), row(0))
    cache.pack(tmp_path / "pack")
    data = bytearray((tmp_path / "pack").read_bytes())
    data[64 + 96 + 200] ^= 1
    (tmp_path / "pack").write_bytes(data)
    damaged = tk.ActivationCache(pack=tmp_path / "pack")
    assert damaged.get(key(0)) is None
    assert damaged.stats.pack.corrupt == 1


# --- Secrets.


@pytest.mark.parametrize("packed", [False, True])
def test_only_holders_of_the_secret_are_believed(disk, tmp_path, packed):
    pack = tmp_path / "pack"
    cache = tk.ActivationCache(None, disk=disk, secret=SECRET)
    cache.put(key(0), row(0))
    assert cache.pack(pack) == 1
    where = {"pack": pack} if packed else {"disk": disk}
    for secret in (OTHER_SECRET, None):
        stranger = tk.ActivationCache(None, **where, secret=secret)
        assert stranger.get(key(0)) is None
        tier = stranger.stats.pack if packed else stranger.stats.disk
        assert tier.corrupt >= 1
    assert found(tk.ActivationCache(None, **where, secret=SECRET), 1) == 1


def test_what_was_written_without_a_secret_is_not_believed(disk):
    fill(disk, 1)
    cache = on_disk(disk, secret=SECRET)
    assert cache.get(key(0)) is None
    out = np.empty(384, np.float32)
    assert not cache.read(key(0), out)
    cache.put(key(0), row(0))
    assert cache.flush()
    assert found(cache, 1) == 1
    assert cache.read(key(0), out)
    np.testing.assert_array_equal(out, row(0))


def test_a_secret_shows_nowhere(disk):
    cache = on_disk(disk, secret=SECRET)
    cache.put(key(0), row(0))
    cache.flush()
    assert SECRET.hex() not in repr(cache) + str(cache.stats) + repr(cache.stats) + repr(
        vars(cache)
    )
    assert all(SECRET not in path.read_bytes() for path in disk.iterdir())
    for bad in (b"short", "text", bytearray(32)):
        with pytest.raises((errors.InvalidArgument, TypeError)):
            on_disk(disk, secret=bad)


# --- Accounts.


def test_stats(disk):
    cache = tk.ActivationCache("1 MiB", disk=disk, disk_limit="16 MiB")
    for number in range(4):
        cache.put(key(number), row(number))
    assert cache.flush()
    other = on_disk(disk)
    assert found(other, 6) == 4
    before = allocated(disk)  # files of the index grow and shrink beside this
    stats, read = cache.stats.disk, other.stats.disk
    after = allocated(disk)
    assert (stats.insertions, stats.entries, stats.dropped, stats.errors) == (4, 4, 0, 0)
    assert 4 * 1536 < stats.inserted_bytes == stats.written_bytes < 5 * 1536
    assert min(before, after) <= stats.bytes <= max(before, after) < stats.bound == 16 << 20
    assert (read.hits, read.misses, read.entries, read.state) == (4, 2, 4, "")
    assert 0 < read.index_bytes <= read.index_bound == 256 << 20
    plain = json.loads(json.dumps(other.stats.to_dict()))
    assert plain["disk"]["hits"] == 4
    assert plain["pack"] is None
    text = str(other.stats)
    assert "disk" in text
    assert "4 hits" in text
    assert "4 hits, 2 misses" in str(read)
    other.reset_stats()
    read = other.stats.disk
    assert (read.hits, read.misses, read.entries) == (0, 0, 4)
    assert tk.ActivationCache("1 MiB").stats.disk is None


def test_repr(disk, tmp_path):
    cache = tk.ActivationCache("1 MiB", disk=disk, disk_limit="4 MiB")
    cache.put(key(0), row(0))
    cache.pack(tmp_path / "pack")
    assert repr(cache).startswith("<ActivationCache ")
    assert "; disk " in repr(cache)
    assert repr(cache).endswith(" 1 entries>")
    assert "; pack 1." in repr(tk.ActivationCache(pack=tmp_path / "pack"))
    assert "disk" not in repr(tk.ActivationCache())


# --- Options and directories that are refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disk_limit": "1 MiB"}, "expected at least 4 MiB"),
        ({"disk": None, "disk_limit": "1 GiB"}, "disk_limit is given without disk"),
        ({"disk": None, "memory": None}, "memory is 0 bytes; expected at least 65536"),
        ({"disk": ""}, "disk is ''; expected a path"),
        ({"disk": b"bytes"}, "expected a path"),
        ({"pack": ""}, "pack is ''; expected a path"),
        ({"mode": 0o777}, "mode is 0777; expected 0700 to 0770"),
        ({"mode": 0o600}, "expected 0700 to 0770"),
        ({"lease_timeout": -1}, "expected 0 or more seconds"),
        ({"lease_timeout": float("nan")}, "lease_timeout is not a number"),
        ({"ttl": -1}, "ttl is -1"),
        ({"disk_limit": "many"}, "many"),
        ({"secret": b"short"}, "expected exactly 32"),
    ],
)
def test_options_out_of_range_are_refused(disk, options, message):
    with pytest.raises(errors.InvalidArgument, match=message):
        tk.ActivationCache(**({"disk": disk} | options))
    assert not disk.exists()


def refused(disk: Path, message: str, **options) -> None:
    before = sorted(disk.iterdir()) if disk.is_dir() else None
    with pytest.raises(errors.StoreUnavailable, match=message) as caught:
        on_disk(disk, **options)
    assert isinstance(caught.value, ConnectionError)
    assert str(disk) in str(caught.value)
    assert before is None or sorted(disk.iterdir()) == before


def test_directories_are_refused_with_the_remedy(disk):
    disk.mkdir(mode=0o700)
    (disk / "notes.txt").write_text("mine")
    refused(disk, r"holds notes\.txt.*expected a directory that is new or empty")
    (disk / "notes.txt").unlink()
    disk.chmod(0o707)
    refused(disk, r"chmod o-w")
    disk.chmod(0o770)
    refused(disk, r"chmod g-w\), or mode=0o770")
    disk.chmod(0o700)
    (disk / "tensorkey.lock").write_text("tensorkey directory, format 2\n")
    refused(disk, "newer version .*update tensorkey, or take another directory")
    (disk / "tensorkey.lock").write_text("something else\n")
    refused(disk, "has another text")
    link = disk.with_name("link")
    link.symlink_to(disk)
    refused(link, "is a symbolic link")
    file = disk.with_name("file")
    file.write_text("")
    refused(file, "is no directory")
    refused(file / "below", "cannot be made|cannot be opened")


@root_only
def test_the_directory_of_another_user_is_refused(disk):
    disk.mkdir(mode=0o700)
    os.chown(disk, 12345, 12345)
    refused(disk, "belongs to another user .*mode=0o770 for one that a team shares")


@root_only
def test_a_directory_that_cannot_be_written_is_read(disk, tmp_path):
    fill(disk, 3)
    mount = tmp_path / "read-only"
    mount.mkdir()
    if subprocess.run(["mount", "--bind", disk, mount], capture_output=True).returncode != 0:
        pytest.skip("cannot mount here")
    try:
        assert subprocess.run(["mount", "-o", "remount,ro,bind", mount]).returncode == 0
        cache = on_disk(mount)
        assert found(cache, 4) == 3
        assert cache.stats.disk.state == "read-only"
        assert cache.put(key(3), row(3))
        assert cache.flush(1)
        assert not cache.remove(key(0))
        assert found(cache, 4) == 3
        entry = cache.get_or_compute(key(9), lambda: row(9))
        np.testing.assert_array_equal(np.asarray(entry[0]), row(9))
        del cache
        gc.collect()
    finally:
        subprocess.run(["umount", mount], check=True)


def test_permissions(disk, tmp_path):
    fill(disk, 1)
    assert disk.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in disk.iterdir()} == {0o600}
    team = tmp_path / "team"
    fill(team, 1, mode=0o770)
    assert team.stat().st_mode & 0o777 == 0o770
    assert {path.stat().st_mode & 0o777 for path in team.iterdir()} == {0o660}
    assert found(on_disk(team, mode=0o770), 1) == 1
    refused(team, "mode=0o770")


# --- Once it is made nothing raises.


def test_damage_is_a_counted_miss(disk):
    fill(disk, 40)
    (segment,) = segments(disk)
    data = bytearray(segment.read_bytes())
    for at in range(64, 64 + 40 * 1600, 6400):  # a record has more than 1,600 bytes
        data[at] ^= 16
    segment.write_bytes(data)
    cache = on_disk(disk)
    there = found(cache, 40)
    assert 30 <= there < 40
    assert cache.stats.disk.corrupt == 40 - there
    for number in range(40):
        cache.put(key(number), row(number))
    assert cache.flush(30)
    assert found(on_disk(disk), 40) == 40


def test_a_segment_that_is_gone_or_cut(disk):
    fill(disk, 40)
    (segment,) = segments(disk)
    os.truncate(segment, 64 + 10 * 1700)
    cache = on_disk(disk)
    assert 0 < found(cache, 40) < 40
    segment.unlink()
    assert found(on_disk(disk), 40) == 0
    fresh = on_disk(disk)
    for number in range(40):
        fresh.get_or_compute(key(number), lambda number=number: row(number))
    assert fresh.flush(30)
    assert found(on_disk(disk), 40) == 40


@pytest.mark.parametrize("left", [b"", b"no database" * 1000])
def test_a_damaged_index_is_made_anew(disk, left):
    fill(disk, 40)
    gc.collect()
    for path in disk.glob("index.db-*"):
        path.unlink()
    (disk / "index.db").write_bytes(left)
    cache = on_disk(disk)
    assert found(cache, 40) == 40
    assert cache.stats.disk.rebuilds == 1
    assert (disk / "index.db.damaged").exists()


def test_a_directory_that_is_removed(disk):
    cache = on_disk(disk)
    cache.put(key(0), row(0))
    assert cache.flush(30)
    for path in disk.iterdir():
        path.unlink()
    disk.rmdir()
    for number in range(1, 20):
        entry = cache.get_or_compute(key(number), lambda number=number: row(number))
        np.testing.assert_array_equal(np.asarray(entry[0]), row(number))
    cache.put(key(50), row(50))
    cache.flush(5)
    assert not cache.remove(key(99))
    cache.purge("scope")
    cache.refresh()
    cache.clear()
    stats = cache.stats.disk
    assert stats.errors > 0
    assert stats.state
    assert not disk.exists()


def test_the_rows_of_a_table_are_put_and_read_in_one_call(tmp_path):
    rows = np.arange(300 * 8, dtype=np.float32).reshape(300, 8)
    keys = tk.row_keys(rows)
    cache = tk.ActivationCache(None, disk=tmp_path / "cache")
    assert cache.put_many(keys, rows[:, ::-1], seconds=0.5, scope="s") == 300
    assert cache.flush()
    table = np.empty_like(rows)
    assert all(cache.read_many(keys, table))
    np.testing.assert_array_equal(table, rows[:, ::-1])
    assert cache.get(keys[7]).seconds == 0.5
    assert cache.purge("s") == 300
    with pytest.raises(errors.InvalidArgument, match="expected 299"):
        cache.put_many(keys[:299], rows)
    with pytest.raises(errors.Unsupported):
        cache.put_many(keys, "rows")
