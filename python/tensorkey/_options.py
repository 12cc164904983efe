"""The options of a cached layer, the same for every frontend."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tensorkey import errors
from tensorkey._adapters import OutputAdapter
from tensorkey._cache import ActivationCache

Codec = Literal["raw", "lossless", "fp16", "bf16"]
BypassMode = Literal["auto", "never", "always"]
Chunk = int | Literal["auto"]
FingerprintMode = Literal["auto", "strict", "guard", "manual"]
OnError = Literal["count", "warn", "raise", "drop"]
Trim = tuple[str, int]

_CHOICES: dict[str, tuple[str, ...]] = {
    "rows": ("each", "batch"),
    "by": ("content", "structure"),
    "fingerprint": ("auto", "strict", "guard", "manual"),
    "environment": ("exact", "portable"),
    "bits": ("chunk", "slot"),
    "index": ("input", "cpu_input"),
    "on_error": ("count", "warn", "raise", "drop"),
}


def check_tiers(where: str, cache: object, tiers: Mapping[str, object]) -> None:
    """Refuse what is no cache, and tiers beside a cache."""
    if cache is None:
        return
    if not isinstance(cache, ActivationCache):
        raise errors.InvalidArgument(
            f"[{where}] cache is {type(cache).__name__}; expected an ActivationCache"
        )
    for name, given in tiers.items():
        if given is not None:
            raise errors.InvalidArgument(
                f"[{where}] cache and {name} are given; expected one of them: a cache has its own "
                "tiers"
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a cached layer, checked; those that the engine cannot check itself.

    docs/layers.md says what each does.
    """

    cache: ActivationCache | None = None
    memory: int | str | None = None
    disk: str | os.PathLike[str] | None = None
    disk_limit: int | str | None = None
    rows: Literal["each", "batch"] = "each"
    chunk: Chunk = "auto"
    by: Literal["content", "structure"] = "content"
    fingerprint: FingerprintMode = "auto"
    scope: bytes | str = b""
    state: Any = None
    ignore: Sequence[str] = ()
    environment: Literal["exact", "portable"] = "exact"
    outputs: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None
    trim: Trim | None = None
    probe: bool = True
    bits: Literal["chunk", "slot"] = "chunk"
    index: Literal["input", "cpu_input"] = "input"
    bypass: BypassMode = "auto"
    on_error: OnError = "count"
    verify: float = 0.0
    tolerance: float = 0.0
    codec: Codec = "raw"
    secret: bytes | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        tiers = {"memory": self.memory, "disk": self.disk, "disk_limit": self.disk_limit}
        check_tiers("CachedLayer", self.cache, tiers)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                _wrong(name, getattr(self, name), " or ".join(map(repr, choices)))
        chunk = self.chunk
        whole = type(chunk) is int and (chunk == 1 or (chunk > 0 and chunk % 32 == 0))
        if chunk != "auto" and not whole:
            _wrong("chunk", chunk, "'auto', 1 or a multiple of 32")
        if not isinstance(self.scope, (bytes, str)):
            _wrong("scope", self.scope, "bytes or str")
        if self.fingerprint == "manual" and not self.scope:
            _wrong("scope", self.scope, "a name for the layer, as fingerprint='manual' reads none")
        if not 0 <= self.verify <= 1:
            _wrong("verify", self.verify, "a share from 0 to 1")
        if not self.tolerance >= 0:
            _wrong("tolerance", self.tolerance, "0 or more")
        if isinstance(self.ignore, str) or not all(isinstance(name, str) for name in self.ignore):
            _wrong("ignore", self.ignore, "names of attributes, such as ('calls', 'head.log')")
        if self.outputs is not None:
            OutputAdapter(self.outputs)
        self._check_trim()
        secret = self.secret
        if secret is not None and (type(secret) is not bytes or len(secret) != 32):
            raise errors.InvalidArgument("[CachedLayer] secret must be exactly 32 bytes")

    def _check_trim(self) -> None:
        trim = self.trim
        if trim is None:
            return
        if not (isinstance(trim, tuple) and len(trim) == 2 and isinstance(trim[0], str)):
            _wrong("trim", trim, "the mask's name and its dim, such as ('attention_mask', 1)")
        if type(trim[1]) is not int or trim[1] < 1:
            _wrong("trim", trim, "a dim of 1 or more: 0 is the batch")
        if self.rows == "batch" or self.by == "structure":
            _wrong("trim", trim, "rows='each' and by='content' beside it")

    def make_cache(self) -> ActivationCache:
        """Return the cache to use: the one that is shared, or one of the layer's own."""
        if self.cache is not None:
            return self.cache
        memory = "1 GiB" if self.memory is None else self.memory
        return ActivationCache(
            memory, disk=self.disk, disk_limit=self.disk_limit, secret=self.secret
        )

    def portable(self) -> Options:
        """Return what a pickle or a config may carry: no cache but its tiers, and no secret."""
        if self.cache is None:
            return dataclasses.replace(self, secret=None)
        memory = self.cache.stats.bound or None
        return dataclasses.replace(
            self, cache=None, memory=memory, disk=self.cache.disk, secret=None
        )


def parsed(given: Mapping[str, Any]) -> Options:
    """Return checked options.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For an option out of range.
    TypeError
        For a name that is no option.
    """
    known = {field.name for field in dataclasses.fields(Options)}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"; is {near[0]!r} meant?" if near else ""
            raise TypeError(f"[CachedLayer] there is no option {name!r}{meant}")
    return Options(**given)


def _wrong(name: str, given: object, expected: str) -> None:
    raise errors.InvalidArgument(f"[CachedLayer] {name} is {given!r}; expected {expected}")
