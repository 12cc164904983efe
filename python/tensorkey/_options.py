"""The options of a cached layer, the same for every frontend."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Literal

from tensorkey import errors
from tensorkey._cache import ActivationCache
from tensorkey._chunks import Chunk, check_chunk

Codec = Literal["raw", "lossless", "fp16", "bf16"]
BypassMode = Literal["auto", "never", "always"]


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
    """The options of a cached layer, checked; those that the engine cannot check itself."""

    cache: ActivationCache | None = None
    memory: int | str | None = None
    disk: str | os.PathLike[str] | None = None
    disk_limit: int | str | None = None
    chunk: Chunk = "auto"
    scope: bytes | str = b""
    probe: bool = True
    codec: Codec = "raw"
    bypass: BypassMode = "auto"
    secret: bytes | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        tiers = {"memory": self.memory, "disk": self.disk, "disk_limit": self.disk_limit}
        check_tiers("CachedLayer", self.cache, tiers)
        check_chunk(self.chunk)
        if not isinstance(self.scope, (bytes, str)):
            raise errors.InvalidArgument("[CachedLayer] scope must be bytes or str")
        secret = self.secret
        if secret is not None and (type(secret) is not bytes or len(secret) != 32):
            raise errors.InvalidArgument("[CachedLayer] secret must be exactly 32 bytes")

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
