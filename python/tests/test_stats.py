"""Snapshots of counters: plain, readable, mergeable."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tensorkey._stats import CacheStats, DiskStats, LayerStats

ONE = LayerStats(
    batches=2,
    lookups=10,
    hits=6,
    misses=4,
    misses_new=3,
    misses_evicted=1,
    padded_rows=28,
    seconds_saved=1.5,
    chunk=32,
    probe="clean",
    bypasses={"keyword arguments": 2},
    assumptions=["a.b"],
    hints=["h"],
    cache=CacheStats(bound=2048, bytes=1024, entries=4, hits=6, misses_new=4),
)
OTHER = dataclasses.replace(
    ONE,
    chunk=1,
    probe="slot",
    codec="fp16",
    bypasses={"keyword arguments": 1, "bypass='always'": 5},
    assumptions=["c.d", "a.b"],
    hints=[],
)


def test_merge_adds_what_can_be_added():
    both = ONE + OTHER
    assert both == LayerStats.merge([ONE, OTHER])
    assert (both.lookups, both.hits, both.misses) == (20, 12, 8)
    assert both.seconds_saved == 3.0
    assert both.bypasses == {"keyword arguments": 3, "bypass='always'": 5}
    assert both.assumptions == ["a.b", "c.d"]
    assert both.hints == ["h"]
    assert both.chunk is None
    assert both.probe == "clean | slot"
    assert both.cache == ONE.cache + ONE.cache
    assert (both.entries, both.bytes, both.bound, both.evictions) == (8, 2048, 4096, 0)
    assert both.lossy
    assert not ONE.lossy
    assert (both + ONE).probe == "clean | slot"
    assert LayerStats.merge([ONE]) == ONE
    assert LayerStats.merge(stats for stats in ()) == LayerStats()
    with pytest.raises(TypeError):
        ONE + ONE.cache


def test_a_snapshot_is_plain_and_fixed():
    plain = json.loads(json.dumps(ONE.to_dict()))
    assert plain["cache"]["lookups"] == 10
    assert plain["lossy"] is False
    with pytest.raises(dataclasses.FrozenInstanceError):
        ONE.hits = 3  # type: ignore[misc]


def test_a_table_shows_what_matters():
    text = str(OTHER)
    for part in (
        "6 (60.0%)",
        "3 new, 1 gone",
        "1.0 KiB of 2.0 KiB",
        "lossy",
        "5 x bypass='always'",
    ):
        assert part in text
    assert "a.b" in text
    assert "10, of about 0 keys" in str(ONE.cache)


# --- Tiers below memory.

DISK = DiskStats(
    bound=4096, bytes=1024, entries=3, hits=5, misses=2, insertions=3, written_bytes=2048, corrupt=1
)
PACK = DiskStats(state="read-only", bytes=10, bound=10, entries=1)


def test_tiers_are_merged_where_there_are_any():
    with_disk, without = CacheStats(hits=1, disk=DISK), CacheStats(hits=2)
    full = dataclasses.replace(DISK, state="no space left", dropped=4)
    both = CacheStats.merge([with_disk, without, CacheStats(disk=full, pack=PACK)])
    assert both.disk == DISK + full
    assert (both.disk.hits, both.disk.dropped, both.disk.corrupt) == (10, 4, 2)
    assert both.disk.state == "no space left"
    assert both.pack == PACK
    assert both.hits == 3
    assert (without + without).disk is None
    assert DiskStats.merge([]) == DiskStats()
    layers = LayerStats(cache=with_disk) + LayerStats(cache=without)
    assert layers.cache.disk == DISK


def test_tiers_in_a_dict_and_in_the_tables():
    stats = CacheStats(disk=DISK, pack=PACK)
    plain = json.loads(json.dumps(LayerStats(cache=stats).to_dict()))
    assert plain["cache"]["disk"]["corrupt"] == 1
    assert plain["cache"]["pack"]["state"] == "read-only"
    assert json.loads(json.dumps(CacheStats().to_dict()))["disk"] is None
    for text in (str(stats), str(LayerStats(cache=stats))):
        assert "1.0 KiB of 4.0 KiB, 3 entries, 5 hits, 3 new; 1 corrupt" in text
        assert "pack" in text
        assert "; read-only" in text
    assert "disk" not in str(CacheStats())
    text = str(DISK)
    for part in ("well", "5 hits, 2 misses", "3, 2.0 KiB", "1 corrupt, 0 errors, 0 rebuilds"):
        assert part in text
    assert "read-only" in str(PACK)
