"""What a cached layer reports about itself: one snapshot, readable and machine-readable."""

from __future__ import annotations

import dataclasses
from typing import Any

from tensorkey._sizes import format_bytes


@dataclasses.dataclass(frozen=True)
class LayerStats:
    """A snapshot of the counters of one cached layer.

    ``hits + misses == lookups``: rows asked for, in calls that went through the cache. Calls that
    ran the layer without it are in ``bypasses``, by reason; a reason names its cure where there
    is one.

    Examples
    --------
    >>> stats = LayerStats(lookups=4, hits=3, misses=1, bypasses={"keyword arguments": 2})
    >>> stats.to_dict()["hits"]
    3
    """

    lookups: int = 0
    hits: int = 0
    """Rows that need not be run."""
    duplicates: int = 0
    """Of the hits, those answered by another row of their own batch."""
    misses: int = 0
    """Distinct rows that were run."""
    padded_rows: int = 0
    """Rows run only to fill a chunk."""
    probe_runs: int = 0
    """Chunks run by the probe; they count nowhere else."""
    entries: int = 0
    bytes: int = 0
    """Taken of the bound, metadata included."""
    bound: int = 0
    evictions: int = 0
    rejections: int = 0
    """Entries larger than the bound: computed, not stored."""
    seconds_saved: float = 0.0
    """What the hits cost when they were computed."""
    seconds_spent: float = 0.0
    """In computing misses."""
    chunk: int | None = None
    """Rows in a chunk; ``None`` until the first call has settled it."""
    probe: str = "not yet run"
    """What the probe measured."""
    bypasses: dict[str, int] = dataclasses.field(default_factory=dict)
    assumptions: list[str] = dataclasses.field(default_factory=list)
    """What the fingerprint could not read: the layer is assumed not to depend on it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as a dict of plain values, for logs and JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        share = f" ({self.hits / self.lookups:.1%})" if self.lookups else ""
        rows = [
            ("lookups", f"{self.lookups} rows"),
            ("hits", f"{self.hits}{share}, {self.duplicates} within their own batch"),
            ("misses", f"{self.misses}, and {self.padded_rows} rows of padding"),
            ("saved", f"{self.seconds_saved:.3f} s; spent {self.seconds_spent:.3f} s"),
            ("memory", f"{format_bytes(self.bytes)} of {format_bytes(self.bound)}"),
            ("entries", f"{self.entries}, {self.evictions} evicted, {self.rejections} too large"),
            ("chunk", "not yet settled" if self.chunk is None else f"{self.chunk}"),
            ("probe", f"{self.probe}; {self.probe_runs} runs"),
        ]
        rows += [("bypassed", f"{n} x {reason}") for reason, n in self.bypasses.items()]
        rows += [("assumed", text) for text in self.assumptions]
        return "\n".join(f"{name:<9} {text}" for name, text in rows)
