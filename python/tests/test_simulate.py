"""The simulator, and traces of a cache replayed through it."""

import pytest

import tensorkey as tk


def test_a_trace_of_the_cache_is_replayed(tmp_path):
    path = tmp_path / "trace"
    cache = tk.ActivationCache(memory="1 MiB")
    cache.trace(path)
    keys = [tk.key(bytes([i])) for i in range(20)]
    for key in keys * 3:
        if cache.get(key) is None:
            cache.put(key, bytes(1000), seconds=0.001)
    cache.trace(None)
    assert cache.stats.hits == 40
    replays = tk.simulate(path, "1 MiB")
    assert {replay.policy for replay in replays} >= {"tensorkey", "lru", "belady"}
    for replay in replays:
        assert (replay.requests, replay.hits) == (60, 40)
        assert replay.hit_ratio == pytest.approx(2 / 3)
        assert replay.saved_ratio == pytest.approx(2 / 3)


def test_a_loop_over_twice_the_bound(tmp_path):
    path = tmp_path / "trace"
    path.write_text("".join(f"{i} 100 1\n" for i in range(2000)) * 10)
    ours, lru = tk.simulate(path, 100_000, ["tensorkey", "lru"])
    assert lru.hits == 0
    assert ours.hit_ratio > 0.4


def test_bad_input(tmp_path):
    path = tmp_path / "trace"
    path.write_text("a 1\nb -3\n")
    with pytest.raises(tk.errors.InvalidArgument, match="2"):
        tk.simulate(path, 100)
    with pytest.raises(tk.errors.StoreIOError):
        tk.simulate(tmp_path / "none", 100)
    path.write_text("a\n")
    with pytest.raises(tk.errors.InvalidArgument, match="no policy|policy"):
        tk.simulate(path, 100, ["fifo-with-hats"])
