"""How a layer runs, and what running it for one batch took."""

from __future__ import annotations

import dataclasses
from typing import Any

from tensorkey._probe import Verdict


@dataclasses.dataclass
class Plan:
    """How a layer of one structure runs in one environment."""

    verdict: Verdict
    unsuited: str | None = None
    place: Any = None


@dataclasses.dataclass
class Run:
    """What answering one batch took."""

    rows: int
    misses: int = 0
    run: int = 0
    """Rows, padding included."""
    seconds: float = 0.0
    """Of the layer."""
    waited: float = 0.0
    """For other threads."""
    device_bytes: int = 0
    """Of outputs that were copied to the host."""
