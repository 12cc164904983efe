"""The memo engine through its binding: what the frontends rely on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tensorkey import _core, errors


def call(memo: _core.Memo, x: np.ndarray, scope: bytes = b"") -> np.ndarray:
    """x * 3 through the engine, in chunks of 4."""
    batch = memo.lookup([x], ["x"], scope)
    missing = batch.missing
    for first in range(0, len(missing), 4):
        rows = missing[first : first + 4]
        padded = rows + rows[-1:] * (4 - len(rows))
        batch.insert(first, len(rows), x[padded] * 3, 1.0)
    _, shape = batch.example
    out = np.empty((batch.rows, *shape), x.dtype)
    batch.assemble(out)
    np.testing.assert_array_equal(out, x * 3)
    return out


def test_hits_misses_and_order():
    memo = _core.Memo(1 << 20)
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    call(memo, x[:6])
    call(memo, x[[9, 0, 9, 5, 7]])
    stats = memo.stats()
    assert (stats["lookups"], stats["hits"], stats["misses"]) == (11, 3, 8)
    assert stats["duplicates"] == 1
    assert stats["padded_rows"] == 2 + 2
    assert stats["entries"] == 8
    assert stats["seconds_saved"] > 0
    memo.clear()
    assert memo.stats()["entries"] == 0


def test_an_answer_is_not_aliased_with_the_cache():
    memo = _core.Memo(1 << 20)
    x = np.ones((2, 3), np.float32)
    call(memo, x)[:] = 99
    call(memo, x)


def test_scopes_are_apart():
    memo = _core.Memo(1 << 20)
    x = np.ones((2, 3), np.float32)
    call(memo, x, b"a")
    assert memo.lookup([x], ["x"], b"b").missing == [0]
    assert memo.lookup([x], ["x"], b"a").missing == []
    assert memo.lookup([x], ["x"], b"a", bytes(32)).missing == [0]


def test_destinations():
    torch = pytest.importorskip("torch")
    memo = _core.Memo(1 << 20)
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
    for memory in (0, -1):
        with pytest.raises(errors.InvalidArgument, match="positive"):
            _core.Memo(memory)
    memo = _core.Memo(1 << 20)
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
    assert memo.stats()["lookups"] == 2
    assert memo.stats()["entries"] == 0


def test_an_entry_larger_than_the_bound_is_answered_and_not_stored():
    memo = _core.Memo(100)
    x = np.ones((2, 300), np.float32)
    call(memo, x)
    call(memo, x)
    assert memo.stats()["rejections"] == 2
    assert memo.stats()["bytes"] == 0


def test_threads_share_a_memo():
    memo = _core.Memo(20_000)
    rng = np.random.default_rng(0)
    data = rng.random((200, 3), np.float32)
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
    stats = memo.stats()
    assert stats["hits"] + stats["misses"] == stats["lookups"] == 4 * 50 * 17
    assert stats["bytes"] <= stats["bound"]
