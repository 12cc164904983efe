"""Snapshots of counters: plain, readable, mergeable."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tensorkey._stats import CacheStats, LayerStats

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
