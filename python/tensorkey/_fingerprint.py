"""The fingerprint of a layer: whether it is what it was, looked at as closely as asked.

A *strict* check reads the layer (_reading.py; only a watch over its containers while they hold the
same objects) and digests the bytes of all tensors with the process-secret XXH3
(``change_digest``). Only when one of them differs it computes the BLAKE3 that goes into the scope.

A *guard* (``_core.Guard``) asks the tensors for address, version and shape and the registries for
their objects: a hundred times cheaper, but blind to writes through ``.data`` and other aliases and
to plain attributes. A call that was only guarded is *pending*: what it computes must not be stored
for others until the next strict check finds the layer unchanged.

    mode      a check is
    "auto"    a guard on every call, strict on every N-th (StrictSchedule) and whenever it is
              demanded or the guard saw a change
    "strict"  strict
    "guard"   a guard; strict only when it is demanded or the guard saw a change
    "manual"  nothing: the caller vouches, by a scope, for what the layer is
"""

from __future__ import annotations

import dataclasses
import platform
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from time import perf_counter
from typing import Any, Literal, Protocol, get_args

from tensorkey import _core, errors
from tensorkey._encoding import item, sequence, text
from tensorkey._fork import renew_after_fork
from tensorkey._reading import Framework, Reading

Mode = Literal["auto", "strict", "guard", "manual"]
_NOTHING = bytes(32)


class Guarded(Framework, Protocol):
    """What a fingerprint asks of a framework beside a reading."""

    unguarded: str | None
    """Why tensors of this framework cannot be guarded; None if they can."""

    def guard(self, tensors: Sequence[Any], modules: Sequence[Any]) -> _core.Guard | None:
        """Return a guard over these; None if one of them cannot be guarded."""


@dataclasses.dataclass(frozen=True)
class State:
    """A layer as far as a check looked at it."""

    structure: bytes
    """Digest of all but the contents of the tensors: the same layer with other weights."""
    weights: bytes
    """Digest of the names and contents of the tensors."""
    pending: bool = False
    """Only a guard was asked."""
    strict: bool = True
    """Every byte was read."""
    changed: bool = False
    """The layer is another than at the last strict check."""

    @property
    def digest(self) -> bytes:
        """Digest of everything."""
        return _core.blake3(self.structure + self.weights)


_VOUCHED = State(_NOTHING, _NOTHING, strict=False)


class Fingerprint:
    """What a layer is, call by call.

    Thread-safe, but for what other threads do to the layer meanwhile.

    Parameters
    ----------
    framework
        What knows its classes.
    layer
        Returns the layer.
    mode
        How closely a check looks: see above.
    ignore
        Names of attributes, or dotted paths below the layer, that it does not depend on.
    state
        What it depends on beside itself: tensors, plain values, nests of them, or a function that
        returns such. Read by every strict check.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For another mode.
    tensorkey.errors.Unsupported
        For mode "guard" with a framework whose tensors cannot be guarded.
    """

    def __init__(
        self,
        framework: Guarded,
        layer: Callable[[], Any],
        mode: Mode = "auto",
        ignore: Sequence[str] = (),
        state: Callable[[], Any] | Any | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise errors.InvalidArgument(
                f"[fingerprint] mode is {mode!r}; expected 'auto', 'strict', 'guard' or 'manual'"
            )
        if mode == "guard" and framework.unguarded is not None:
            raise errors.Unsupported(
                f"[fingerprint] 'guard' is not possible: {framework.unguarded}; use 'auto'"
            )
        if isinstance(ignore, str):
            raise errors.InvalidArgument(
                f"[fingerprint] ignore is {ignore!r}; expected a sequence of names"
            )
        self.mode: Mode = mode
        self._framework = framework
        self._layer = layer
        self._ignore = frozenset(ignore)
        self._extra = state
        self._schedule = _core.StrictSchedule()
        self._demanded = False
        self._guard: _core.Guard | None = None  # none: the next check is strict
        self._guarded = _VOUCHED  # what a call that was only guarded gets
        self._reading: Reading | None = None
        self._known: _Known | None = None
        self._lock = threading.RLock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.RLock()

    @property
    def interval(self) -> int:
        """Calls from one strict check to the next, at present; 0: only when one is demanded."""
        if self.mode == "auto":
            return 1 if self._framework.unguarded else self._schedule.interval
        return 1 if self.mode == "strict" else 0

    @property
    def guard(self) -> _core.Guard | None:
        """What knows of hooks and trainable weights without a walk; None if nothing does."""
        return self._guard

    def check(self) -> State:
        """Look at the layer, once a call.

        Raises
        ------
        tensorkey.errors.Unsupported
            For a tensor that has no key, or a `state` that cannot be read. The next check is
            strict.
        """
        mode, guard = self.mode, self._guard
        if guard is not None and mode != "strict":
            due = mode == "auto" and self._schedule.due()
            if not due and not self._demanded and guard.unchanged() and not guard.hooked():
                return self._guarded
        return _VOUCHED if mode == "manual" else self._check()

    def settle(self) -> bool:
        """Check strictly now: whether all is as the last strict check found it.

        False too if the layer cannot be read.
        """
        if self.mode == "manual":
            return True
        if self._known is None:
            return False
        try:
            return not self._check().changed
        except Exception:  # anything that attributes of other people's classes may raise
            return False

    def demand(self) -> None:
        """Have the next check be strict: something was done to the layer."""
        self._demanded = True

    def observe(self, seconds: float) -> None:
        """Tell what the layer took in a call that ran it."""
        with self._lock:
            self._schedule.observe_layer(seconds)

    def reading(self) -> Reading:
        """Return the last reading."""
        return self._reading or self.read()

    def read(self) -> Reading:
        """Return a reading that is true now."""
        with self._lock:
            reading = self._reading
            if reading is None or not reading.watch.unchanged():
                layer = self._layer()
                self._reading = reading = Reading(self._framework, layer, ignore=self._ignore)
            return reading

    def baked(self, passed: Collection[int]) -> bytes:
        """Return a digest of all but the contents of some tensors, which are given by their ids.

        For a frontend that compiles the layer as a function of these tensors.
        """
        reading, extra = self.read(), self._read_extra()
        tensors = reading.tensors + extra.tensors if extra else reading.tensors
        rest = _core.change_digest([tensor for tensor in tensors if id(tensor) not in passed])
        return _Known(reading, extra, rest).structure() + rest

    def structure(self) -> bytes:
        """Return what State.structure is now; no content of a tensor is looked at.

        Raises
        ------
        tensorkey.errors.Unsupported
            For a `state` that cannot be read.
        """
        if self.mode == "manual":
            return _NOTHING
        return _Known(self.read(), self._read_extra(), b"").structure()

    def tensors(self) -> list[tuple[str, Any]]:
        """Return what State.weights is the digest of, by name; none if the caller vouches.

        Raises
        ------
        tensorkey.errors.Unsupported
            For a `state` that cannot be read.
        """
        if self.mode == "manual":
            return []
        readings = [self.read(), self._read_extra()]
        return [pair for reading in readings if reading for pair in reading.counted()]

    def assumptions(self) -> list[str]:
        """Return what the layer is assumed not to depend on, in words."""
        if self.mode == "manual":
            return ["fingerprint='manual': the layer is what the scope says"]
        return self.reading().assumptions

    def _check(self) -> State:
        with self._lock:
            self._guard = None
            self._demanded = False
            start = perf_counter()
            reading = self.read()
            extra = self._read_extra()
            tensors = reading.tensors + extra.tensors if extra else reading.tensors
            # The guard before the bytes: a write in between is seen by the next check.
            guard = self._framework.guard(tensors, reading.modules)
            known = self._known
            now = _Known(reading, extra, _core.change_digest(tensors))
            if known is not None and now.same_as(known):
                now.state = known.state
                self._schedule.observe_strict(perf_counter() - start)
            else:
                now.state = State(now.structure(), now.weights())
            changed = known is not None and known.state != now.state
            self._known = now
            self._guarded = dataclasses.replace(now.state, pending=True, strict=False)
            self._guard = guard
            if guard is not None and guard.hooked():
                self._demanded = True  # while there are hooks, and once more when they are gone
            return dataclasses.replace(now.state, changed=True) if changed else now.state

    def _read_extra(self) -> Reading | None:
        extra = self._extra
        if extra is None:
            return None
        if callable(extra) and not self._framework.is_module(extra):
            extra = extra()
        reading = Reading(self._framework, extra, "state")
        if reading.unread:
            raise errors.Unsupported(
                f"[fingerprint] state= cannot be read: {reading.unread[0]}; expected tensors, "
                "plain values or nests of them"
            )
        return reading


class _Known:
    """What a strict check found."""

    state: State

    def __init__(self, reading: Reading, extra: Reading | None, change: bytes) -> None:
        self._reading = reading
        self._extra = extra
        self._change = change  # of the tensors of both

    def same_as(self, other: _Known) -> bool:
        return (
            self._change == other._change
            and _same(self._reading, other._reading)
            and _same(self._extra, other._extra)
        )

    def structure(self) -> bytes:
        reading, extra = self._reading, self._extra
        if extra is not None:
            parts = [text(platform.python_version()), reading.structure, extra.structure]
            return _core.blake3(sequence(b"t", parts))
        if reading.foreign:  # no Python in it
            return _core.blake3(reading.structure)
        return _core.blake3(sequence(b"t", [text(platform.python_version()), reading.structure]))

    def weights(self) -> bytes:
        pairs = self._reading.counted()
        if self._extra is not None:
            pairs += self._extra.counted()
        return weights_digest((name, content_of(tensor)) for name, tensor in pairs)


def _same(one: Reading | None, other: Reading | None) -> bool:
    if one is other:
        return True
    if one is None or other is None:
        return False
    return one.structure == other.structure and one.names == other.names


def weights_digest(contents: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the digest of tensors by their names and their content keys."""
    parts = (text(path) + item(b"K", key) for path, key in sorted(contents))
    return _core.blake3(sequence(b"t", parts))


def content_of(tensor: Any) -> bytes:
    """Return the content key of a tensor, as bytes."""
    return bytes(_core.key(tensor))
