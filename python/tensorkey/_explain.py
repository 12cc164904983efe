"""Why rows of a batch would be hits or misses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorkey import _core
from tensorkey._backend import Bypass
from tensorkey._encoding import plain
from tensorkey._history import Seen
from tensorkey._inputs import Arguments
from tensorkey._trim import Trimmed

if TYPE_CHECKING:
    from tensorkey._frontend import Engine

_CHUNKS = (1, 32)
_GONE = {
    "new": "never seen",
    "evicted": "evicted, removed or refused: see the bound of the cache",
    "expired": "expired: older than ttl",
}


class Row(NamedTuple):
    """What is known of one row."""

    hit: bool
    """Whether it need not be run."""
    reason: str
    """Why, or why not."""


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
    engine: Engine, aside: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Explanation:
    """Explain the rows of a call.

    Parameters
    ----------
    engine
        Of the layer.
    aside
        Why it would be run alone, whatever its arguments; None: it would not.
    args, kwargs
        Of the call.
    """
    rows = 1
    try:
        arguments = engine.signature.take(args, kwargs)
        rows = arguments.rows
        if aside is None:
            return Explanation(_explained(engine, arguments))
    except Bypass as bypass:
        aside = str(bypass)
    return Explanation([Row(False, f"runs without the cache: {aside}")] * rows)


def _explained(engine: Engine, arguments: Arguments) -> list[Row]:
    if engine.options.trim is None:
        return _Question(engine, arguments).answer()
    answers: list[Row] = [Row(False, "")] * arguments.rows
    for positions, part in Trimmed(engine, arguments).parts():
        for position, row in zip(positions, _Question(engine, part).answer(), strict=True):
            answers[position] = row
    return answers


class _Question:
    """Rows that are looked up together."""

    def __init__(self, engine: Engine, arguments: Arguments) -> None:
        self._engine = engine
        self._paths = arguments.paths
        self._rows = arguments.rows
        self._tensors = engine.members(arguments)
        self._about, self._state = engine.about(arguments, arguments.form)
        history = engine.history
        self._seen = list(history.others(self._about, self._state.weights, arguments.form))
        self._shapes = list(history.shapes)

    def answer(self) -> list[Row]:
        first: dict[_core.Key, int] = {}
        keys = self._keys(self._tensors)
        place = [first.setdefault(keys[i], i) for i in range(self._rows)]
        why = self._absent(self._tensors, self._about, self._state.weights)
        reasons = {position: _GONE[reason] for position, reason in why.items()}
        refused = self._engine.failures.get(self._about)
        if refused is not None:
            reasons = dict.fromkeys(reasons, f"not cached: {refused}")
        unknown = set() if refused else {at for at, reason in why.items() if reason == "new"}
        for present, reason in self._elsewhere(unknown) if unknown else ():
            reasons |= dict.fromkeys(unknown & present, reason)
            unknown -= present
            if not unknown:
                break
        answers = []
        for position, at in enumerate(place):
            if at not in reasons:
                answers.append(Row(True, "hit"))
            elif at == position or refused is not None:
                answers.append(Row(False, reasons[at]))
            else:
                answers.append(Row(True, "answered by an equal row of this batch"))
        return answers

    def _keys(self, tensors: Sequence[Any], scope: bytes = b"") -> _core.Keys:
        secret = self._engine.options.secret
        if len(tensors) == 1:
            return _core.row_keys(tensors[0], scope=scope, secret=secret)
        members = dict(zip(self._paths, tensors, strict=True))
        return _core.tuple_row_keys(members, scope=scope, secret=secret)

    def _absent(self, tensors: Sequence[Any], about: bytes, weights: bytes) -> dict[int, str]:
        core, secret = self._engine.core, self._engine.options.secret
        return core.missing(tensors, self._paths, None, about, weights, secret)

    def _elsewhere(self, unknown: set[int]) -> Iterator[tuple[set[int], str]]:
        """Yield positions that are there under something else, the nearest reason first."""
        weights = self._state.weights
        for chunk in {*_CHUNKS, self._engine.options.chunk} - {"auto"}:
            scope = plain(("tensorkey layer", 2, self._about, weights, chunk))
            keys = self._keys(self._tensors, _core.blake3(scope))
            present = {position for position in unknown if keys[position] in self._engine.cache}
            yield present, f"seen in chunks of {chunk}, which have other bits"
        for seen, reason in self._seen:
            yield unknown - self._absent(self._tensors, seen.about, seen.weights).keys(), reason
        variants = self._engine.backend.variants(self._tensors, self._shapes)
        for tensors, reason in variants:
            # A dtype of the rows is a part of what they are looked up under, too.
            places = [
                (self._about, weights),
                *((seen.about, seen.weights) for seen, _ in self._seen),
            ]
            for place in places:
                yield unknown - self._absent(tensors, *place).keys(), reason


def told(seen: Seen, now: Seen, names: Sequence[str] = ()) -> str:
    """Return how a call in the past differs from one now; names are of the environment."""
    if seen.structure != now.structure:
        return f"seen before the layer's code or attributes changed, until {_clock(seen.when)}"
    if seen.environment != now.environment:
        pairs = list(zip(seen.environment, now.environment, strict=False))
        apart = [
            f"{name}{old!r} then, {new!r} now"
            for name, (old, new) in zip(_named(names, len(pairs)), pairs, strict=True)
            if old != new
        ]
        return f"seen in another environment: {'; '.join(apart) or 'of another kind'}"
    if seen.form != now.form:
        return "seen with other arguments beside the rows"
    return f"seen under other weights, until {_clock(seen.when)}"


def _named(names: Sequence[str], count: int) -> list[str]:
    return [f"{names[i]} " if i < len(names) else "" for i in range(count)]


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
