"""ActivationCache against a plain mapping, over random sequences of calls."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import tensorkey as tk

KEYS = [tk.key(np.int64(number)) for number in range(24)]
numbers = st.integers(0, len(KEYS) - 1)
scopes = st.sampled_from([b"", b"a", b"b"])


def value(number: int) -> np.ndarray:
    """Equal keys have equal values; sizes from nothing to 40 KiB."""
    return np.full(number * number * 9, number, np.int64)


class Model(RuleBasedStateMachine):
    """A cache with room for everything is a mapping."""

    memory = "64 MiB"
    exact = True

    def __init__(self) -> None:
        super().__init__()
        self.cache = tk.ActivationCache(self.memory)
        self.known: dict[int, bytes] = {}  # number -> scope
        self.pinned: set[int] = set()
        self.lookups = 0
        self.held: list[tuple[int, tk.Entry]] = []

    def check(self, number: int, entry: tk.Entry | None) -> None:
        if entry is None:
            assert not self.exact or number not in self.known
            return
        assert number in self.known
        assert entry.key == KEYS[number]
        np.testing.assert_array_equal(np.asarray(entry[0]), value(number))

    @rule(number=numbers)
    def get(self, number: int) -> None:
        self.lookups += 1
        self.check(number, self.cache.get(KEYS[number]))

    @rule(number=numbers)
    def contains(self, number: int) -> None:
        there = KEYS[number] in self.cache
        assert there == (number in self.known) if self.exact else number in self.known or not there

    @rule(number=numbers, scope=scopes, seconds=st.floats(0, 10))
    def put(self, number: int, scope: bytes, seconds: float) -> None:
        stored = self.cache.put(KEYS[number], value(number), seconds, scope)
        assert stored or not self.exact
        if stored:
            if self.exact:
                self.known.setdefault(number, scope)
            else:
                self.known[number] = b""

    @rule(number=numbers)
    def get_or_compute(self, number: int) -> None:
        self.lookups += 1
        entry = self.cache.get_or_compute(KEYS[number], lambda: value(number))
        self.known.setdefault(number, b"")
        self.check(number, entry)

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        there = self.cache.remove(KEYS[number])
        if self.exact:
            assert there == (number in self.known)
        self.known.pop(number, None)
        self.pinned.discard(number)

    @precondition(lambda self: self.exact)
    @rule(scope=scopes)
    def purge(self, scope: bytes) -> None:
        gone = [number for number, its in self.known.items() if its == scope]
        assert self.cache.purge(scope) == len(gone)
        for number in gone:
            del self.known[number]
            self.pinned.discard(number)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.known.clear()
        self.pinned.clear()

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        if number < 10 and self.cache.pin(KEYS[number]):
            self.pinned.add(number)

    @rule(number=numbers)
    def unpin(self, number: int) -> None:
        self.cache.unpin(KEYS[number])
        self.pinned.discard(number)

    @rule(number=numbers)
    def hold(self, number: int) -> None:
        self.lookups += 1
        entry = self.cache.get(KEYS[number])
        if entry is not None:
            self.held.append((number, entry))

    @rule()
    def let_go(self) -> None:
        self.held.clear()

    @precondition(lambda self: not self.exact)
    @rule(kib=st.integers(100, 400))
    def resize(self, kib: int) -> None:
        self.let_go()
        self.cache.resize(f"{kib} KiB")
        assert self.cache.stats.bound == kib << 10

    @invariant()
    def what_is_held_stays_as_it_was(self) -> None:
        for number, entry in self.held:
            np.testing.assert_array_equal(np.asarray(entry[0]), value(number))

    @invariant()
    def pinned_entries_are_there(self) -> None:
        assert all(KEYS[number] in self.cache for number in self.pinned)

    @invariant()
    def counters_agree(self) -> None:
        stats = self.cache.stats
        assert stats.bytes <= stats.bound
        assert stats.hits + stats.misses == stats.lookups == self.lookups
        infos = self.cache.snapshot()
        assert stats.entries == len(self.cache) == len(infos)
        assert {info.key for info in infos if info.pinned} == {KEYS[n] for n in self.pinned}
        assert sum(info.bytes for info in infos) + stats.metadata <= stats.bytes
        if self.exact:
            assert {info.key for info in infos} == {KEYS[number] for number in self.known}
            assert stats.evictions == stats.rejections == 0


class SmallModel(Model):
    """A cache with little room answers rightly or not at all, and keeps its bound."""

    memory = "200 KiB"
    exact = False


TestLarge = Model.TestCase
TestSmall = SmallModel.TestCase
TestLarge.settings = TestSmall.settings = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
