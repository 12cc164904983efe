"""Why rows of a batch would be hits or misses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorkey import _core
from tensorkey._backend import Bypass
from tensorkey._history import Seen
from tensorkey._inputs import Arguments

if TYPE_CHECKING:
    from tensorkey._frontend import Engine


_GONE = {
    "new": "never seen",
    "evicted": "evicted or refused: the bound is too small for it",
    "expired": "expired: older than ttl",
}


class Row(NamedTuple):
    """What is known of one row."""

    hit: bool
    reason: str


class Explanation(list[Row]):
    """One row of a batch after another.

    Examples
    --------
    >>> print(Explanation([Row(True, "hit"), Row(False, "never seen"), Row(True, "hit")]))
    2 rows: hit
    1 row: never seen
    """

    def __str__(self) -> str:
        counts = Counter(row.reason for row in self)
        return "\n".join(
            f"{count} row{'s' * (count != 1)}: {reason}" for reason, count in counts.items()
        )


def explain(
    engine: Engine,
    reason_to_bypass: Callable[[], str | None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Explanation:
    """Explain the rows of a call."""
    reason = reason_to_bypass()
    rows = 1
    try:
        arguments = engine.signature.take(args, kwargs)
        rows = arguments.rows
        if reason is None:
            return _Question(engine, arguments).answer()
    except Bypass as bypass:
        reason = str(bypass)
    return Explanation([Row(False, f"runs without the cache: {reason}")] * rows)


class _Question:
    def __init__(self, engine: Engine, arguments: Arguments) -> None:
        self._engine = engine
        self._arguments = arguments
        self._tensors = engine.members(arguments)
        self._about, self._state = engine.about(arguments, arguments.form)
        self._seen = engine.history.about(self._about, self._state)

    def answer(self) -> Explanation:
        arguments = self._arguments
        keys = _core.tuple_row_keys(dict(zip(arguments.paths, self._tensors, strict=True)))
        first: dict[_core.Key, int] = {}
        place = [first.setdefault(keys[i], i) for i in range(arguments.rows)]
        why = self._absent(self._tensors, self._about, self._state.weights)
        reasons = {position: _GONE[reason] for position, reason in why.items()}
        absent = {position for position, reason in why.items() if reason == "new"}
        for explained, reason in self._elsewhere():
            for position in absent & explained:
                reasons[position] = reason
            absent -= explained
        return Explanation(
            Row(False, reasons[at]) if at in reasons else Row(True, "hit") for at in place
        )

    def _absent(self, tensors: Sequence[Any], about: bytes, weights: bytes) -> dict[int, str]:
        core, secret = self._engine.core, self._engine.options.secret
        return core.missing(tensors, self._arguments.paths, None, about, weights, secret)

    def _elsewhere(self) -> Iterator[tuple[set[int], str]]:
        """Yield positions that are there under something else, the nearest reason first."""
        everything = set(range(self._arguments.rows))
        for seen, reason in self._seen:
            absent = self._absent(self._tensors, seen.about, seen.weights)
            present = everything - absent.keys()
            # missing() names the first of equal rows alone: the others are not told apart here.
            if present:
                yield present, reason
        backend = self._engine.backend
        for tensors, reason in backend.variants(self._tensors, self._engine.history.shapes):
            absent = self._absent(tensors, self._about, self._state.weights)
            if everything - absent.keys():
                yield everything - absent.keys(), reason


def told(seen: Seen, now: Seen) -> str:
    """Return how a call in the past differs from one now."""
    if seen.structure != now.structure:
        return f"seen before the layer's code or attributes changed, until {_clock(seen.when)}"
    if seen.environment != now.environment:
        pairs = zip(seen.environment, now.environment, strict=False)
        apart = ", ".join(f"{old!r} then, {new!r} now" for old, new in pairs if old != new)
        return f"seen in another environment: {apart or 'of another kind'}"
    if seen.form != now.form:
        return "seen with other arguments beside the rows"
    return f"seen under other weights, until {_clock(seen.when)}"


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
