"""``ActivationCache``: entries under keys within a bound of bytes, the most useful ones kept."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn, Protocol

from tensorkey import _core, errors
from tensorkey._exit import flush_at_exit
from tensorkey._sizes import format_bytes, parse_bytes
from tensorkey._stats import CacheStats, DiskStats


class Waiting(Protocol):
    """A cached layer with rows that wait for a look at its weights."""

    def settle(self) -> None:
        """Look, and store the rows or take them back."""


class EntryInfo(NamedTuple):
    """An entry of a snapshot."""

    key: _core.Key
    bytes: int
    """What it takes of the bound."""
    seconds: float
    """What it cost to compute."""
    pinned: bool


class ActivationCache(_core.ActivationCache):
    """Tensors under keys, never more bytes than the bounds, the most useful ones kept.

    Thread-safe. Memory holds what is asked for most; a directory keeps entries over runs and shares
    them with other processes; a pack is a file that is only read. Each may be left out. Lookups go
    from the fastest to the slowest and fill memory on the way back; what is stored is written to
    the directory behind the caller's back. What to keep is decided by how often a key is asked for,
    what its entry cost to compute, and its size (docs/eviction.md). After ``os.fork`` the child
    goes on with what it inherited, on its own.

    Once it is made nothing that happens to a disk raises: a damaged entry is a miss, an entry that
    cannot be written is dropped, and ``stats`` counts both.

    Parameters
    ----------
    memory
        The bound of the memory: bytes, or a text such as "2 GiB"; at least 64 KiB. It covers values
        and metadata, and entries that left the cache while the caller still holds them. None: no
        memory tier.
    ttl
        Seconds that an entry lives; None: for ever.
    disk
        A directory of the cache's own on a local file system, made if it is not there, for any
        number of processes.
    disk_limit
        The bound of the directory, all its files included; at least 4 MiB. None: what the directory
        was given last, 10 GiB for a new one. Another number changes it for all.
    index_limit
        The bound of the memory for what is on disk where, at most 48 bytes an entry.
    mode
        Permissions of the directory, such as 0o770 for a team; None: for its owner alone.
    allow_network
        Accept network and FUSE file systems, which are refused because SQLite is known to fail
        there.
    lease_timeout
        Seconds to wait for an entry that another process is computing. None: as long as computing
        it takes here, at most 0.5.
    pack
        A file that :meth:`pack` wrote, to be read beside the others.
    secret
        32 bytes: what is on disk or in a pack must have been written by somebody who has them.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For an option out of range.
    tensorkey.errors.StoreUnavailable
        For a directory that is refused or can neither be read nor made, or a pack that is not
        there; the message has the remedy.
    tensorkey.errors.CorruptEntry
        For a file that is no pack.

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

    def __init__(
        self,
        memory: int | str | None = "1 GiB",
        *,
        ttl: float | None = None,
        disk: str | os.PathLike[str] | None = None,
        disk_limit: int | str | None = None,
        index_limit: int | str = "256 MiB",
        mode: int | None = None,
        allow_network: bool = False,
        lease_timeout: float | None = None,
        pack: str | os.PathLike[str] | None = None,
        secret: bytes | None = None,
    ) -> None:
        if lease_timeout is not None and lease_timeout < 0:
            raise errors.InvalidArgument(
                f"[ActivationCache] lease_timeout is {lease_timeout}; expected 0 or more seconds"
            )
        super().__init__(
            0 if memory is None else parse_bytes(memory),
            0.0 if ttl is None else ttl,
            _path(disk, "disk"),
            0 if disk_limit is None else parse_bytes(disk_limit),
            parse_bytes(index_limit),
            0 if mode is None else mode,
            allow_network,
            -1.0 if lease_timeout is None else lease_timeout,
            _path(pack, "pack"),
            secret,
        )
        self.ttl = ttl
        self._waiting: weakref.WeakSet[Waiting] = weakref.WeakSet()
        self.disk = _path(disk, "disk") or None
        if disk is not None:
            flush_at_exit(self)

    def settle_before_flush(self, layer: Waiting) -> None:
        """Have a layer settle its rows before flush() and pack(); it is held weakly."""
        self._waiting.add(layer)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is on disk.

        Rows that cached layers hold back until their weights are looked at again are looked at now.

        Parameters
        ----------
        timeout
            Seconds; None: as long as it takes.

        Returns
        -------
        bool
            Whether all of it is written, or was dropped.
        """
        self._settle()
        return super().flush(timeout)

    def _settle(self) -> None:
        for layer in list(self._waiting):
            layer.settle()

    @property
    def stats(self) -> CacheStats:
        """A snapshot of the counters."""
        counters = self.counters()
        for tier in ("disk", "pack"):
            counters[tier] = counters[tier] and DiskStats(**counters[tier])
        return CacheStats(**counters)

    def resize(self, memory: int | str) -> None:
        """Change the bound; evicts down to a smaller one before it returns."""
        super().resize(parse_bytes(memory))

    def snapshot(self) -> list[EntryInfo]:
        """Return what is in memory now, in no order."""
        return [EntryInfo(*info) for info in self.infos()]

    def __iter__(self) -> Iterator[_core.Key]:
        """Iterate over the keys that are in memory."""
        return iter([info.key for info in self.snapshot()])

    def __delitem__(self, key: _core.Key) -> None:
        if not self.remove(key):
            raise errors.MissingKey(f"[ActivationCache] {key!r} is not there")

    def pack(self, path: str | os.PathLike[str], scope: bytes | str | None = None) -> int:
        """Write entries into one sealed file, which ``ActivationCache(pack=...)`` reads anywhere.

        Parameters
        ----------
        path
            The file: made anew, readable by its owner alone, and there only when it is whole.
        scope
            What the entries were stored for; None: all of them.

        Returns
        -------
        int
            The number of entries.

        Raises
        ------
        tensorkey.errors.StoreFull, tensorkey.errors.StoreIOError
            The file cannot be written; one that was there before still is.
        tensorkey.errors.StoreUnavailable
            The directory cannot be read to its end.

        Examples
        --------
        >>> import array, os, tempfile
        >>> import tensorkey as tk
        >>> cache = tk.ActivationCache("1 MiB")
        >>> x = array.array("f", [1, 2, 3])
        >>> cache.put(tk.key(x), x)
        True
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "latents.tkpack")
        ...     cache.pack(path), tk.key(x) in tk.ActivationCache(pack=path)
        (1, True)
        """
        self._settle()
        return super().pack(os.fspath(path), scope)

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
        below = "".join(
            f"; {name} {format_bytes(tier.bytes)}, {tier.entries} entries"
            for name, tier in (("disk", stats.disk), ("pack", stats.pack))
            if tier is not None
        )
        return f"<{type(self).__name__} {used} of {bound}, {stats.entries} entries{below}>"


def _path(path: str | os.PathLike[str] | None, name: str) -> str:
    if path is None:
        return ""
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise errors.InvalidArgument(f"[ActivationCache] {name} is {path!r}; expected a path")
    return text
