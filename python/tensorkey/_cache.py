"""``ActivationCache``: entries under keys within a bound of bytes, the most useful ones kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from tensorkey import _core, errors
from tensorkey._sizes import format_bytes, parse_bytes
from tensorkey._stats import CacheStats


class EntryInfo(NamedTuple):
    """An entry of a snapshot."""

    key: _core.Key
    bytes: int
    """What it takes of the bound."""
    seconds: float
    """What it cost to compute."""
    pinned: bool


class ActivationCache(_core.ActivationCache):
    """Tensors under keys, never more bytes than the bound, the most useful ones kept.

    Thread-safe. The bound covers values and metadata, and entries that left the cache while the
    caller still holds them. What to keep is decided by how often a key is asked for, what its
    entry cost to compute, and its size (docs/eviction.md). After ``os.fork`` the child goes on
    with what it inherited, on its own.

    Parameters
    ----------
    memory
        The bound: bytes, or a text such as "2 GiB"; at least 64 KiB.
    ttl
        Seconds that an entry lives; None: for ever.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For a bound or a ttl out of range.

    Examples
    --------
    >>> import array
    >>> import tensorkey as tk
    >>> cache = tk.ActivationCache(memory="64 MiB")
    >>> x = array.array("f", [1, 2, 3])
    >>> entry = cache.get_or_compute(tk.key(x), lambda: array.array("f", [2 * v for v in x]))
    >>> memoryview(entry[0]).tolist()
    [2.0, 4.0, 6.0]
    >>> cache.get(tk.key(x)) is not None, len(cache), cache.stats.hits
    (True, 1, 1)
    """

    def __init__(self, memory: int | str = "1 GiB", *, ttl: float | None = None) -> None:
        super().__init__(parse_bytes(memory), 0.0 if ttl is None else ttl)
        self.ttl = ttl

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counters."""
        return CacheStats(**self.counters())

    def resize(self, memory: int | str) -> None:
        """Change the bound; evicts down to a smaller one before it returns."""
        super().resize(parse_bytes(memory))

    def snapshot(self) -> list[EntryInfo]:
        """Return what is there now, in no order."""
        return [EntryInfo(*info) for info in self.infos()]

    def __iter__(self) -> Iterator[_core.Key]:
        """Iterate over the keys of a snapshot."""
        return iter([info.key for info in self.snapshot()])

    def __delitem__(self, key: _core.Key) -> None:
        if not self.remove(key):
            raise errors.MissingKey(f"[ActivationCache] {key!r} is not there")

    def trace(self, path: str | os.PathLike[str] | None, limit: int | str = "64 MiB") -> None:
        """Write every access to a file, until it has `limit` bytes.

        Parameters
        ----------
        path
            Made anew, readable by its owner alone; ``docs/eviction.md`` says what is in it.
            None ends the trace.
        limit
            Bytes, or a text such as "64 MiB".

        Raises
        ------
        tensorkey.errors.StoreIOError
            The file cannot be opened, or is a link.
        """
        super().trace("" if path is None else os.fspath(path), parse_bytes(limit))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise errors.Unsupported(
            "[ActivationCache] a cache belongs to its process and cannot be pickled or copied; "
            "make a new one, or share this one between threads"
        )

    def __repr__(self) -> str:
        if "ttl" not in vars(self):
            return object.__repr__(self)  # in a traceback: __init__ failed
        stats = self.stats
        used, bound = format_bytes(stats.bytes), format_bytes(stats.bound)
        return f"<{type(self).__name__} {used} of {bound}, {stats.entries} entries>"
