"""The memo engine through its binding: what the frontends rely on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import _core, errors


def make_memo(memory: int | str = "1 MiB", codec: str = "raw") -> _core.Memo:
    return _core.Memo(tk.ActivationCache(memory), codec)


def stats_of(memo: _core.Memo) -> dict[str, object]:
    return _core.Monitor("never").stats(memo)


def call(memo: _core.Memo, x: np.ndarray, scope: bytes = b"") -> np.ndarray:
    """x * 3 through the engine, in chunks of 4."""
    batch = memo.lookup([x], ["x"], scope)
    known = False
    while not known:
        missing = batch.missing
        for first in range(0, len(missing), 4):
            rows = missing[first : first + 4]
            padded = rows + rows[-1:] * (4 - len(rows))
            batch.insert(first, len(rows), x[padded] * 3, 1.0)
        known = batch.wait()
    _, shape = batch.example
    out = np.empty((batch.rows, *shape), x.dtype)
    batch.assemble(out)
    np.testing.assert_array_equal(out, x * 3)
    return out


def test_hits_misses_and_order():
    memo = make_memo()
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    call(memo, x[:6])
    call(memo, x[[9, 0, 9, 5, 7]])
    stats = stats_of(memo)
    assert (stats["lookups"], stats["hits"], stats["misses"]) == (11, 3, 8)
    assert stats["duplicates"] == 1
    assert stats["padded_rows"] == 2 + 2
    assert stats["misses_new"] == 8
    assert stats["seconds_saved"] > 0


def test_an_answer_is_not_aliased_with_the_cache():
    memo = make_memo()
    x = np.ones((2, 3), np.float32)
    call(memo, x)[:] = 99
    call(memo, x)


def test_scopes_are_apart():
    memo = make_memo()
    x = np.ones((2, 3), np.float32)
    call(memo, x, b"a")
    assert memo.lookup([x], ["x"], b"b").missing == [0]
    assert memo.lookup([x], ["x"], b"a").missing == []
    assert memo.lookup([x], ["x"], b"a", bytes(32)).missing == [0]


def test_destinations():
    torch = pytest.importorskip("torch")
    memo = make_memo()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    call(memo, x)
    batch = memo.lookup([x], ["x"], b"")
    out = torch.empty(2, 3)
    batch.assemble(out)
    assert out.tolist() == (x * 3).tolist()
    with pytest.raises(errors.InvalidArgument, match="contiguous"):
        batch.assemble(torch.empty(3, 2).T)
    with pytest.raises(errors.InvalidArgument, match="bytes"):
        batch.assemble(torch.empty(2, 2))
    frozen = np.empty((2, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        batch.assemble(frozen)
    with pytest.raises(TypeError):
        batch.assemble("no tensor")


def test_bad_arguments_change_nothing():
    with pytest.raises(errors.InvalidArgument, match="codec"):
        make_memo(codec="gzip")
    memo = make_memo()
    x = np.ones((2, 3), np.float32)
    with pytest.raises(errors.InvalidArgument, match="one path a tensor"):
        memo.lookup([x], ["x", "y"], b"")
    with pytest.raises(errors.InvalidArgument, match="one path a tensor"):
        memo.lookup([x, x], ["x"], b"")
    with pytest.raises(errors.InvalidArgument, match="rank 0"):
        memo.lookup([np.float32(1)], ["x"], b"")
    with pytest.raises(errors.InvalidArgument, match="batch size"):
        memo.lookup([x, x[:1]], ["x", "y"], b"")
    with pytest.raises(errors.Unsupported, match="scope"):
        memo.lookup([x], ["x"], 7)
    batch = memo.lookup([x], ["x"], b"")
    with pytest.raises(errors.InvalidArgument):
        batch.insert(0, 3, x, 0.0)
    with pytest.raises(errors.InvalidArgument, match="not inserted"):
        batch.assemble(np.empty((2, 3), np.float32))
    assert stats_of(memo)["lookups"] == 2
    assert stats_of(memo)["seconds_spent"] == 0


def test_an_entry_larger_than_the_bound_is_answered_and_not_stored():
    cache = tk.ActivationCache("64 KiB")
    memo = _core.Memo(cache)
    x = np.ones((2, 30_000), np.float32)
    call(memo, x)
    call(memo, x)
    assert stats_of(memo)["rejections"] == 2
    assert stats_of(memo)["hints"] == ["no answer fits the bound of 64.0 KiB: nothing is stored"]
    assert len(cache) == 0


def test_threads_share_a_memo():
    cache = tk.ActivationCache("64 KiB")
    memo = _core.Memo(cache)
    rng = np.random.default_rng(0)
    data = rng.random((200, 100), np.float32)
    picks = [rng.integers(0, 200, (50, 17)) for _ in range(4)]
    failures = []

    def work(mine: np.ndarray) -> None:
        try:
            for rows in mine:
                call(memo, data[rows])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in picks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = stats_of(memo)
    assert stats["hits"] + stats["misses"] == stats["lookups"] == 4 * 50 * 17
    assert cache.stats.bytes <= cache.stats.bound
    assert cache.stats.evictions > 0


def test_rows_that_another_batch_computes_are_awaited():
    memo = make_memo()
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    leader = memo.lookup([x[:2]], ["x"], b"")
    follower_missing = []

    def follow() -> None:
        with memo.lookup([x], ["x"], b"") as batch:
            follower_missing.append(batch.missing)
            batch.insert(0, 1, x[2:] * 3, 1.0)
            assert batch.wait()
            out = np.empty_like(x)
            batch.assemble(out)
            np.testing.assert_array_equal(out, x * 3)

    thread = threading.Thread(target=follow)
    thread.start()
    while not follower_missing:
        pass
    leader.insert(0, 2, x[:2] * 3, 1.0)
    thread.join()
    assert follower_missing == [[2]]
    stats = stats_of(memo)
    assert (stats["lookups"], stats["hits"], stats["misses"], stats["waits"]) == (5, 2, 3, 2)


def followers(memo: _core.Memo, x: np.ndarray, started: list[int]) -> tuple[list, threading.Thread]:
    """Start a thread that asks for x and waits; what it finds is appended to the list."""
    found: list[object] = []

    def follow() -> None:
        with memo.lookup([x], ["x"], b"") as batch:
            started.append(len(batch.missing))
            try:
                while not batch.wait():
                    found.append(batch.missing)
                    batch.insert(0, len(batch.missing), x[batch.missing] * 3, 1.0)
            except ValueError as error:
                found.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    while not started:
        pass
    return found, thread


def test_a_failure_reaches_those_who_wait_and_stores_nothing():
    memo = make_memo()
    x = np.ones((1, 2), np.float32)
    leader = memo.lookup([x], ["x"], b"")
    found, thread = followers(memo, x, [])
    error = ValueError("the layer failed")
    leader.fail(error)
    thread.join()
    assert found == [error]
    assert memo.lookup([x], ["x"], b"").missing == [0]


def test_a_batch_that_is_closed_hands_its_rows_over():
    memo = make_memo()
    x = np.ones((1, 2), np.float32)
    with memo.lookup([x], ["x"], b"") as leader:
        found, thread = followers(memo, x, [])
    thread.join()
    assert found == [[0]]
    with pytest.raises(errors.InvalidArgument, match="closed"):
        _ = leader.missing
    call(memo, x)
