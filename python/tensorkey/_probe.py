"""The probe: whether rows may be cached one by one, and in chunks of how many.

It runs the layer on the caller's first rows and compares bits:

(a) *slot*: one row fills a chunk. Are all outputs equal, wherever the row stood?
(b) *neighbours*: the same row at the same slot among other rows. Is its output the same?
    For chunks of one row: alone against in the caller's batch, as information.
(c) *state*: did a run change buffers, attributes or the random state? The first run may (lazy
    initialisation, caches of the layer's own); the second may not.

For chunks of several rows a screen comes first, which sees (a) and (b) at once and costs a third as
much: the same rows in one order, then shifted by one, two, three places and more, then beside fewer
different rows. Only if bits differ there are (a) and (b) measured apart.

(a) different in the last bits: chunks of one row, which were exact in every trial. (a) beyond that,
(b) at all in a chunk, (b) beyond the last bits for chunks of one row, or (c): refused, with what
was measured. "The last bits" are 64 units in the last place of the largest output, 4 for 16-bit
floats. The random state is put back at the end.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

MAX_ROWS = 16
MAX_SECONDS = 0.5
Inputs = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far two batches of outputs are apart."""

    rows: int = 0
    """Rows whose bits differ."""
    ulps: float = 0.0
    """The largest difference, in units in the last place of the largest output."""
    limit: float = 64.0
    """What counts as the last bits for this dtype."""

    @property
    def slight(self) -> bool:
        """Whether nothing but the last bits differs."""
        return self.ulps <= self.limit


class Subject(Protocol):
    """A layer under the probe, in the terms of its framework."""

    def run(self, inputs: Inputs) -> Any:
        """Run the layer as a miss does, and check its output: one tensor with the same rows."""

    def take(self, inputs: Inputs, rows: Sequence[int]) -> Inputs:
        """Copy rows into fresh memory."""

    def gap(self, one: Any, other: Any) -> Gap:
        """Compare outputs row by row, bitwise."""

    def random_state(self) -> Any:
        """Return the framework's random state, comparable by ==."""

    def set_random_state(self, state: Any) -> None:
        """Put the framework's random state back."""


class State(Protocol):
    """The layer's own state, watched during the probe."""

    def changes(self) -> list[str]:
        """Return the names of what changed since the last call."""

    def restore(self) -> None:
        """Put buffers back as they were at the beginning."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the probe found."""

    chunk: int
    text: str
    refused: bool = False
    complete: bool = True
    """False while neighbours could not be measured for want of two different rows."""


class Refusal(Exception):
    """Ends a probe: rows of this layer must not be cached one by one."""


def probe(
    subject: Subject,
    state: State,
    inputs: Inputs,
    rows: Sequence[int],
    chunk: int,
    clock: Callable[[], float] = perf_counter,
) -> Verdict:
    """Probe a layer.

    Parameters
    ----------
    subject, state
        The layer.
    inputs
        The caller's batch.
    rows
        Positions of its different rows; the first 16 are used.
    chunk
        Rows in a chunk: 1 or a multiple of 32.
    clock
        Seconds; after half of one the probe ends with what it has, but never before three shifts,
        or two rows for (a), and (b): an expensive layer should not be run more often for the probe
        than for the caller.

    Returns
    -------
    Verdict
        Its chunk is `chunk` or, where bits depend on the slot, 1.

    Raises
    ------
    Exception
        What the layer itself raises.
    """
    before = random_state(subject)
    run = _Run(subject, state, inputs, list(rows[:MAX_ROWS]), clock)
    try:
        run.settle(chunk)
        if chunk == 1:
            return run.alone("")
        slot = run.slots(chunk)
        return slot if slot.chunk == chunk else run.alone(slot.text)
    except Refusal as refusal:
        state.restore()
        return Verdict(chunk, str(refusal), refused=True)
    finally:
        set_random_state(subject, before)


class _Run:
    def __init__(
        self,
        subject: Subject,
        state: State,
        inputs: Inputs,
        rows: list[int],
        clock: Callable[[], float],
    ) -> None:
        self._subject = subject
        self._state = state
        self._inputs = inputs
        self._rows = rows
        self._clock = clock
        self._end = 0.0
        self._one_row: Any = None  # the output of a chunk of the first row only

    def _chunk(self, rows: Sequence[int]) -> Any:
        return self._subject.run(self._subject.take(self._inputs, rows))

    def _late(self) -> bool:
        return self._clock() > self._end

    def settle(self, chunk: int) -> None:
        """Measure (c): run twice; the second run may change nothing and must give the same bits."""
        first = [self._rows[0]] * chunk
        warm = self._chunk(first)
        self._state.changes()
        drawn = random_state(self._subject)
        output = self._chunk(first)
        changes = self._state.changes()
        if random_state(self._subject) != drawn:
            raise Refusal(
                "it draws random numbers in each run; put it in inference mode first, "
                "such as layer.eval(), or cache the part before the random one"
            )
        if changes:
            shown = ", ".join(changes[:4]) + (", ..." if len(changes) > 4 else "")
            raise Refusal(
                f"each run changes its own state ({shown}); put it in inference mode first, "
                "such as layer.eval(), or cache the part that keeps no state"
            )
        again = self._subject.gap(output, warm)
        if again.rows:  # the first run may differ from all others
            again = self._subject.gap(output, self._chunk(first))
        if again.rows:
            raise Refusal(f"two runs on the same rows differ, by up to {_size(again)}")
        self._one_row = output
        self._end = self._clock() + MAX_SECONDS  # first runs load and compile: not counted

    def slots(self, chunk: int) -> Verdict:
        """Measure (a) and (b) for chunks of several rows."""
        rows = self._rows
        if len(rows) < 2:
            return self._apart(chunk) or Verdict(
                chunk, "slot clean, neighbours not yet measured: only one row", complete=False
            )
        gap = self._screen(chunk)
        if not gap.rows:
            return Verdict(
                chunk,
                f"clean: {len(rows)} rows keep their bits wherever they stand in a chunk of "
                f"{chunk} and whatever stands beside them",
            )
        verdict = self._apart(chunk)
        if verdict is not None:
            return verdict
        if not gap.slight:
            raise Refusal(f"rows change when their order in a chunk does, by up to {_size(gap)}")
        return Verdict(
            1,
            f"slot: rows change in the last bits with their order in a chunk of {chunk}, by up to "
            f"{_size(gap)}: runs one row at a time",
        )

    def _screen(self, chunk: int) -> Gap:
        """Look for any difference.

        Shifted, each row stands at another place and beside the end or the beginning of the others;
        with every second row replaced, and among nothing but its equals, it has other neighbours: a
        length or a largest value of the batch shows when the row that has it is not there.
        """
        rows = self._rows
        count = len(rows)
        order = [slot % count for slot in range(chunk)]
        output = self._chunk([rows[i] for i in order])

        def compare(other: Any, slots: Sequence[int], positions: Sequence[int]) -> Gap:
            return self._compare(output, positions, other, slots)

        def shifted(shift: int) -> Gap:
            turned = [(slot + shift) % count for slot in range(chunk)]
            other = self._chunk([rows[i] for i in turned]) if shift else output
            return compare(other, range(chunk), turned)

        def replaced(by: int) -> Gap:
            kept = range(0, chunk, 2)
            mixed = [rows[by] if slot % 2 else rows[i] for slot, i in enumerate(order)]
            return compare(self._chunk(mixed), kept, [order[slot] for slot in kept])

        def alone(i: int) -> Gap:
            same = self._one_row if i == 0 else self._chunk([rows[i]] * chunk)
            return compare(same, range(chunk), [i] * chunk)

        # Three shifts: matrix products care for the place modulo 4, as 16 bytes are 4 float32.
        trials = [(shifted, 0), (shifted, 1), (alone, 0), (alone, 1), (alone, 2), (replaced, 1)]
        trials += [(shifted, 2), (shifted, 3)]
        required = len(trials)
        for i in range(3, count):
            trials += [(alone, i), (shifted, i + 1)]
        for done, (trial, i) in enumerate(trials):
            if i < count:
                gap = trial(i)
                if gap.rows:
                    return gap
            if done + 1 >= required and self._late():
                break
        return Gap()

    def _apart(self, chunk: int) -> Verdict | None:
        """Measure (a), then (b), each by itself; None if both are clean."""
        subject, rows = self._subject, self._rows
        same: list[Any] = []
        worst, moved = Gap(), 0
        for position, row in enumerate(rows):
            if position > 1 and self._late():
                break
            output = self._chunk([row] * chunk) if position else self._one_row
            gap = subject.gap(output, subject.take((output,), [0] * chunk)[0])
            same.append(output)
            if gap.rows:
                moved += 1
                worst = max(worst, gap, key=lambda gap: gap.ulps)
            if not worst.slight:
                raise Refusal(
                    f"equal rows of one chunk of {chunk} get different outputs, by up to "
                    f"{_size(worst)}: rows depend on their place in the batch, or are random"
                )
        if moved:
            return Verdict(
                1,
                f"slot: {moved} of {len(same)} rows change in the last bits with their place in a "
                f"chunk of {chunk}, by up to {_size(worst)}: runs one row at a time",
            )
        if len(rows) > 1:
            self._neighbours(chunk, same)
        return None

    def _neighbours(self, chunk: int, same: list[Any]) -> None:
        """Compare rows of a mixed chunk with themselves among equals, and with one other row.

        `same` are outputs of chunks that hold one row only. Among equals, nothing of the other
        rows is left: a length, a largest value. With every second row replaced, there are others.
        """
        rows = self._rows
        mixed = [slot % len(rows) for slot in range(chunk)]
        output = self._chunk([rows[i] for i in mixed])
        gaps = []
        for i, alone in enumerate(same):
            slots = range(i, chunk, len(rows))
            if slots:
                gaps.append(self._compare(output, slots, alone, slots))
        for kept in (0, 1):
            other = rows[1 - kept] if len(rows) == 2 else rows[kept]
            replaced = [rows[i] if slot % 2 == kept else other for slot, i in enumerate(mixed)]
            slots = range(kept, chunk, 2)
            gaps.append(self._compare(output, slots, self._chunk(replaced), slots))
        changed = sum(gap.rows for gap in gaps)
        if changed:
            worst = max((gap for gap in gaps if gap.rows), key=lambda gap: gap.ulps)
            raise Refusal(
                f"rows depend on each other: the outputs of {changed} rows change when other rows "
                f"share their chunk of {chunk}, by up to {_size(worst)}"
                + (": chunk=1 runs each row alone" if worst.slight else "")
            )

    def _compare(self, one: Any, positions: Sequence[int], other: Any, slots: Sequence[int]) -> Gap:
        """Compare rows of one output with rows of another."""
        take = self._subject.take
        return self._subject.gap(take((one,), positions)[0], take((other,), slots)[0])

    def alone(self, reason: str) -> Verdict:
        """Measure (b) for chunks of one row: alone against in the caller's batch."""
        subject, rows = self._subject, self._rows
        reason = f"{reason}; " if reason else ""
        together = rows if len(rows) > 1 else rows * 2  # one row says nothing of the batch size
        batch = self._chunk(together)
        worst, changed, seen = Gap(), 0, 0
        for position, row in enumerate(rows):
            if position > 1 and self._late():
                break
            gap = subject.gap(self._chunk([row]), subject.take((batch,), [position])[0])
            seen += 1
            if gap.rows:
                changed += 1
                worst = max(worst, gap, key=lambda gap: gap.ulps)
        if not worst.slight:
            raise Refusal(
                f"rows depend on each other: {changed} of {seen} rows change in a batch of "
                f"{len(together)} against running alone, by up to {_size(worst)}"
            )
        if len(rows) < 2:
            return Verdict(1, reason + "neighbours not yet measured: only one row", complete=False)
        if changed:
            return Verdict(
                1,
                f"{reason}alone and in a batch of {len(together)}, {changed} of {seen} rows "
                f"differ in the last bits, by up to {_size(worst)}",
            )
        return Verdict(1, f"{reason}clean: {seen} rows have equal bits alone and in a batch")


def _size(gap: Gap) -> str:
    if gap.ulps == float("inf"):
        return "more than rounding can"
    return f"{gap.ulps:.3g} units in the last place"


def random_state(subject: Subject) -> list[Any]:
    """Return the random states of Python, NumPy (if it is loaded) and the framework."""
    states: list[Any] = [random.getstate()]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        states.append((kind, keys.tobytes(), *rest))
    states.append(subject.random_state())
    return states


def set_random_state(subject: Subject, states: list[Any]) -> None:
    """Put back what random_state() returned."""
    random.setstate(states[0])
    subject.set_random_state(states[-1])
    if len(states) == 3:
        numpy = sys.modules["numpy"]
        kind, keys, *rest = states[1]
        numpy.random.set_state((kind, numpy.frombuffer(keys, dtype=numpy.uint32), *rest))
