"""What a cache and a cached layer report about themselves: snapshots, readable and mergeable."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Self

from tensorkey._sizes import format_bytes


class _Counters:
    """What both kinds of snapshot can do."""

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as a dict of plain values, for logs and JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def merge(cls, parts: Iterable[Self]) -> Self:
        """Add snapshots, such as those of ranks or workers.

        Numbers and counts by reason are added, lists united. Texts that differ become ``a | b``,
        chunk sizes that differ None. Layers that share a cache count it each.
        """
        parts = list(parts) or [cls()]
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        merged = {
            field.name: _merged(field.name, [getattr(part, field.name) for part in parts])
            for field in fields
        }
        return cls(**merged)

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return self.merge([self, other])

    def __str__(self) -> str:
        return "\n".join(f"{name:<9} {text}" for name, text in self._table())

    def _table(self) -> list[tuple[str, str]]:
        raise NotImplementedError


def _merged(name: str, values: list[Any]) -> Any:
    first = values[0]
    if name in ("disk", "pack"):  # where there is one
        tiers = [value for value in values if value is not None]
        return tiers[0].merge(tiers) if tiers else None
    if isinstance(first, _Counters):
        return first.merge(values)
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: sum(value.get(key, 0) for value in values) for key in keys}
    if isinstance(first, list):
        return list(dict.fromkeys(entry for value in values for entry in value))
    if isinstance(first, str):
        texts = dict.fromkeys(text for value in values for text in value.split(" | "))
        return " | ".join(text for text in texts if text)
    if name == "chunk":
        return first if len(set(values)) == 1 else None
    if name in ("strict_interval", "largest_deviation"):
        return max(values)
    return sum(values)


@dataclasses.dataclass(frozen=True)
class DiskStats(_Counters):
    """A snapshot of a tier below memory: the directory, or a pack.

    Sizes and entries are those of the directory, of all processes; counters are this process's.

    Examples
    --------
    >>> (DiskStats(bytes=1024, hits=1) + DiskStats(bytes=1024, hits=2)).hits
    3
    """

    state: str = ""
    """Empty while all is well; "read-only", or why it cannot be used now."""
    bound: int = 0
    """Bytes of disk that it may take."""
    bytes: int = 0
    """Bytes that it takes, with the index and preallocated room."""
    entries: int = 0
    index_bound: int = 0
    """Bytes of memory that this process's copy of the index may take."""
    index_bytes: int = 0
    hits: int = 0
    misses: int = 0
    insertions: int = 0
    """Entries written."""
    inserted_bytes: int = 0
    """Bytes of them."""
    written_bytes: int = 0
    """The same with what was written once more so as to keep it."""
    rejections: int = 0
    """Entries that were not worth what would have had to go for them."""
    dropped: int = 0
    """Entries that could not be written: too many at once, a full disk, a locked index."""
    evictions: int = 0
    corrupt: int = 0
    """Records that were not whole: misses."""
    stale: int = 0
    """Records that were gone when they were to be read: misses."""
    expired: int = 0
    errors: int = 0
    """Calls of the system or of SQLite that failed."""
    lease_waits: int = 0
    """Entries that another process was computing."""
    lease_timeouts: int = 0
    """Of them, those that were computed here after all."""
    rebuilds: int = 0
    """Times that a damaged index was made anew."""

    def _table(self) -> list[tuple[str, str]]:
        used, bound = format_bytes(self.bytes), format_bytes(self.bound)
        index = f"{format_bytes(self.index_bytes)} of {format_bytes(self.index_bound)}"
        waits = f"{self.lease_waits}, {self.lease_timeouts} in vain"
        return [
            ("state", self.state or "well"),
            ("disk", f"{used} of {bound}, {self.entries} entries, index {index}"),
            ("read", f"{self.hits} hits, {self.misses} misses, {self.expired} expired"),
            ("written", f"{self.insertions}, {format_bytes(self.written_bytes)}"),
            ("refused", f"{self.rejections} not worth their room, {self.dropped} dropped"),
            ("gone", f"{self.evictions} evicted, {self.stale} stale"),
            ("damage", f"{self.corrupt} corrupt, {self.errors} errors, {self.rebuilds} rebuilds"),
            ("waited", waits),
        ]


@dataclasses.dataclass(frozen=True)
class CacheStats(_Counters):
    """A snapshot of the counters of one cache.

    ``hits + misses == lookups``, always: the latter two are computed.

    Examples
    --------
    >>> stats = CacheStats(hits=3, misses_new=1)
    >>> stats.lookups, (stats + stats).lookups
    (4, 8)
    """

    bound: int = 0
    """Bytes that the cache may take."""
    bytes: int = 0
    """Bytes that it takes, metadata included."""
    metadata: int = 0
    """Of them, the index and the policy's own."""
    pinned: int = 0
    """Of them, those of pinned entries."""
    entries: int = 0
    hits: int = 0
    misses_new: int = 0
    """Keys not seen before, as far as the policy remembers."""
    misses_evicted: int = 0
    """Keys seen before: evicted, refused or removed since."""
    misses_expired: int = 0
    """Keys that are there, but older than the time to live."""
    insertions: int = 0
    evictions: int = 0
    expirations: int = 0
    rejections: int = 0
    """Entries that were not worth their room, or did not fit: not stored."""
    corrupt: int = 0
    """Encoded entries that ``load`` refused."""
    waits: int = 0
    """Of the hits, those that another thread or process was computing."""
    stored_hits: int = 0
    """Of the hits, those that were read from disk or a pack."""
    distinct: int = 0
    """Keys ever asked for; an estimate, within about 2 %."""
    disk: DiskStats | None = None
    pack: DiskStats | None = None

    @property
    def misses(self) -> int:
        """All misses."""
        return self.misses_new + self.misses_evicted + self.misses_expired

    @property
    def lookups(self) -> int:
        """Keys asked for."""
        return self.hits + self.misses

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as a dict of plain values, for logs and JSON."""
        tiers = {
            name: tier and tier.to_dict()
            for name, tier in (("disk", self.disk), ("pack", self.pack))
        }
        return super().to_dict() | {"misses": self.misses, "lookups": self.lookups} | tiers

    def _table(self) -> list[tuple[str, str]]:
        return [
            ("lookups", f"{self.lookups}, of about {self.distinct} keys"),
            ("hits", f"{self.hits}{_share(self.hits, self.lookups)}, {self.waits} after a wait"),
            ("misses", _misses(self)),
            ("memory", _memory(self)),
            ("entries", _entries(self)),
            ("refused", f"{self.rejections} not worth their room, {self.corrupt} corrupt"),
            *_stores(self),
        ]


_STATES = ("chunk", "strict_interval", "largest_deviation", "pending")  # no counts


@dataclasses.dataclass(frozen=True)
class LayerStats(_Counters):
    """A snapshot of the counters of one cached layer.

    ``hits + misses == lookups``, always: rows asked for, in calls that went through the cache.
    Calls that ran the layer without it are in ``bypasses``, by reason; a reason names its cure
    where there is one.

    Examples
    --------
    >>> stats = LayerStats(lookups=4, hits=3, misses=1, bypasses={"torch.export": 2})
    >>> stats.to_dict()["hits"]
    3
    >>> LayerStats.merge([stats, stats]).bypasses
    {'torch.export': 4}
    """

    batches: int = 0
    """Calls that went through the cache."""
    lookups: int = 0
    hits: int = 0
    """Rows that need not be run."""
    duplicates: int = 0
    """Of the hits, those answered by another row of their own batch."""
    waits: int = 0
    """Of the hits, those that another thread was computing."""
    misses: int = 0
    """Distinct rows that were run: the sum of the three reasons below."""
    misses_new: int = 0
    """Not seen before, as far as the policy remembers."""
    misses_evicted: int = 0
    misses_expired: int = 0
    padded_rows: int = 0
    """Rows run only to fill a chunk."""
    probe_runs: int = 0
    """Chunks run by the probe; they count nowhere else."""
    verified: int = 0
    """Hits that were computed again, as ``verify=`` asks."""
    deviating: int = 0
    """Of them, those that are not what the layer computes now."""
    largest_deviation: float = 0.0
    """The largest absolute difference among them."""
    pending: int = 0
    """Rows that are not stored for others yet: all weights are to be read first."""
    dropped_pending: int = 0
    """Rows that were not stored, as the weights turned out to have changed unseen."""
    rejections: int = 0
    """Rows that were run and not stored."""
    bytes_read: int = 0
    """Of answers that came from the cache."""
    host_copy_rows: int = 0
    """Rows of inputs and outputs copied from a device to the host; 0 on the CPU."""
    host_copy_bytes: int = 0
    """Of these rows, and of the weights that were digested."""
    seconds_saved: float = 0.0
    """What the hits cost when they were computed."""
    seconds_spent: float = 0.0
    """In computing misses."""
    seconds_digest: float = 0.0
    """In making keys."""
    seconds_lookup: float = 0.0
    """In finding entries."""
    seconds_insert: float = 0.0
    """In storing entries."""
    seconds_copy: float = 0.0
    """In assembling answers."""
    seconds_frontend: float = 0.0
    """The rest of the calls: fingerprint of the layer, conversions."""
    chunk: int | None = None
    """Rows in a chunk; ``None`` until the first call has settled it."""
    probe: str = "not yet run"
    """What the probe measured."""
    fingerprint: str = "auto"
    """How closely the weights are looked at."""
    strict_interval: int = 1
    """Calls from one reading of all weights to the next, at present; 0: only when asked for."""
    codec: str = "raw"
    """How answers are kept."""
    decision: str = ""
    """What ``bypass="auto"`` decided last, and why."""
    bypasses: dict[str, int] = dataclasses.field(default_factory=dict)
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    """Exceptions, by class: of the cache, after which the layer ran without it, and of the layer,
    which passed through."""
    assumptions: list[str] = dataclasses.field(default_factory=list)
    """What the fingerprint could not read: the layer is assumed not to depend on it."""
    hints: list[str] = dataclasses.field(default_factory=list)
    """What the counters say about the use of the cache."""
    cache: CacheStats = dataclasses.field(default_factory=CacheStats)
    """Of the cache, with what other layers that share it did."""

    def since(self, before: LayerStats) -> LayerStats:
        """Return what was counted after another snapshot of the same layer."""
        counted: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            now, then = getattr(self, field.name), getattr(before, field.name)
            if field.name in _STATES or not isinstance(now, (int, float, dict)):
                continue
            if isinstance(now, dict):
                counts = {key: now[key] - then.get(key, 0) for key in now}
                counted[field.name] = {key: count for key, count in counts.items() if count}
            else:
                counted[field.name] = now - then
        return dataclasses.replace(self, **counted)

    @property
    def entries(self) -> int:
        """Entries in the cache."""
        return self.cache.entries

    @property
    def bytes(self) -> int:
        """Bytes that the cache takes, metadata included."""
        return self.cache.bytes

    @property
    def bound(self) -> int:
        """Bytes that the cache may take."""
        return self.cache.bound

    @property
    def evictions(self) -> int:
        """Entries evicted from the cache."""
        return self.cache.evictions

    @property
    def lossy(self) -> bool:
        """Whether the codec rounds answers."""
        return any(codec not in ("raw", "lossless") for codec in self.codec.split(" | "))

    @property
    def seconds_cache(self) -> float:
        """What the cache took beside the layer."""
        parts = (self.seconds_digest, self.seconds_lookup, self.seconds_insert, self.seconds_copy)
        return sum(parts) + self.seconds_frontend

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as a dict of plain values, for logs and JSON."""
        return super().to_dict() | {"lossy": self.lossy, "cache": self.cache.to_dict()}

    def _table(self) -> list[tuple[str, str]]:
        hits = f"{self.hits}{_share(self.hits, self.lookups)}"
        cost = ", ".join(
            f"{name} {getattr(self, f'seconds_{name}'):.3f}"
            for name in ("digest", "lookup", "insert", "copy", "frontend")
        )
        chunk = "not yet settled" if self.chunk is None else f"{self.chunk}"
        lossy = ": lossy, answers are rounded" if self.lossy else ""
        rows = [
            ("lookups", f"{self.lookups} rows in {self.batches} calls"),
            ("hits", f"{hits}, {self.duplicates} in their own batch, {self.waits} after a wait"),
            ("misses", f"{_misses(self)}; and {self.padded_rows} rows of padding"),
            ("saved", f"{self.seconds_saved:.3f} s; spent {self.seconds_spent:.3f} s"),
            ("cost", f"{self.seconds_cache:.3f} s: {cost}"),
            ("memory", _memory(self.cache)),
            ("entries", f"{_entries(self.cache)}, {self.rejections} refused"),
            *_stores(self.cache),
            ("chunk", chunk),
            ("codec", f"{self.codec}{lossy}"),
            ("probe", f"{self.probe}; {self.probe_runs} runs"),
            ("decision", self.decision),
            ("weights", self._weights()),
        ]
        if self.verified:
            worst = f", by up to {self.largest_deviation:.3g}" if self.deviating else ""
            rows.append(("verified", f"{self.verified} hits again, {self.deviating} differ{worst}"))
        if self.host_copy_bytes:
            copied = f"{self.host_copy_rows} rows, {format_bytes(self.host_copy_bytes)}"
            rows.append(("copied", f"{copied} from a device"))
        rows += [("bypassed", f"{n} x {reason}") for reason, n in self.bypasses.items()]
        rows += [("error", f"{n} x {kind}") for kind, n in self.errors.items()]
        rows += [("assumed", text) for text in self.assumptions]
        rows += [("hint", text) for text in self.hints]
        return rows

    def _weights(self) -> str:
        every = (
            "" if self.strict_interval < 2 else f", all bytes every {self.strict_interval} calls"
        )
        waiting = f"; {self.pending} rows wait for it" if self.pending else ""
        dropped = f"; {self.dropped_pending} rows dropped" if self.dropped_pending else ""
        return f"fingerprint {self.fingerprint!r}{every}{waiting}{dropped}"


@dataclasses.dataclass(frozen=True)
class FunctionStats(_Counters):
    """A snapshot of the counters of one memoized function.

    Every call is in one of ``hits``, ``misses``, ``bypasses`` and ``errors``.

    Examples
    --------
    >>> stats = FunctionStats(hits=3, misses=1, bypasses={"tensorkey.disabled()": 2})
    >>> (stats + stats).calls
    12
    """

    hits: int = 0
    """Calls that were answered without running the function."""
    misses: int = 0
    """Calls that ran it and gave its result to the cache."""
    seconds_saved: float = 0.0
    """What the hits cost when they were computed."""
    bypasses: dict[str, int] = dataclasses.field(default_factory=dict)
    """Calls that ran it without the cache, by reason."""
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    """Exceptions of the function, by class; they passed through."""
    assumptions: list[str] = dataclasses.field(default_factory=list)
    """What could not be read: results are assumed not to depend on it."""
    cache: CacheStats = dataclasses.field(default_factory=CacheStats)
    """Of the cache, with what others that share it did."""

    @property
    def calls(self) -> int:
        """All calls."""
        return self.hits + self.misses + sum(self.bypasses.values()) + sum(self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as a dict of plain values, for logs and JSON."""
        return super().to_dict() | {"calls": self.calls, "cache": self.cache.to_dict()}

    def _table(self) -> list[tuple[str, str]]:
        rows = [
            ("calls", f"{self.calls}"),
            (
                "hits",
                f"{self.hits}{_share(self.hits, self.calls)}, {self.seconds_saved:.3f} s saved",
            ),
            ("misses", f"{self.misses}"),
            ("memory", _memory(self.cache)),
            ("entries", _entries(self.cache)),
            *_stores(self.cache),
        ]
        rows += [("bypassed", f"{n} x {reason}") for reason, n in self.bypasses.items()]
        rows += [("error", f"{n} x {kind}") for kind, n in self.errors.items()]
        rows += [("assumed", text) for text in self.assumptions]
        return rows


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _misses(stats: CacheStats | LayerStats) -> str:
    new, evicted, expired = stats.misses_new, stats.misses_evicted, stats.misses_expired
    return f"{stats.misses}: {new} new, {evicted} gone, {expired} expired"


def _memory(stats: CacheStats) -> str:
    pinned = f", {format_bytes(stats.pinned)} pinned" if stats.pinned else ""
    used, bound = format_bytes(stats.bytes), format_bytes(stats.bound)
    return f"{used} of {bound}, {format_bytes(stats.metadata)} metadata{pinned}"


def _stores(stats: CacheStats) -> list[tuple[str, str]]:
    rows = []
    for name, tier in (("disk", stats.disk), ("pack", stats.pack)):
        if tier is None:
            continue
        used, bound = format_bytes(tier.bytes), format_bytes(tier.bound)
        lost = tier.dropped + tier.corrupt + tier.errors
        text = f"{used} of {bound}, {tier.entries} entries, {tier.hits} hits, {tier.insertions} new"
        text += f"; {tier.state}" if tier.state else ""
        text += f"; {tier.corrupt} corrupt, {tier.dropped} dropped, {tier.errors} errors" * bool(
            lost
        )
        rows.append((name, text))
    return rows


def _entries(stats: CacheStats) -> str:
    expired = f", {stats.expirations} expired" if stats.expirations else ""
    return f"{stats.entries}, {stats.evictions} evicted{expired}"
