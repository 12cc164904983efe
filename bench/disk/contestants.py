# ruff: noqa: D102 - what the methods do is said once, in Contestant
"""What one would keep rows on disk with instead: each writes rows under keys and reads them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import diskcache
import joblib
import numpy as np

import tensorkey as tk

Rows = dict[tk.Key, np.ndarray]
COST = 0.001  # seconds that computing a row is said to take, the same for all


class Contestant:
    """What all of them do."""

    name = ""

    def write(self, rows: Rows) -> None:
        """Store all rows, and wait until they are there."""
        raise NotImplementedError

    def get(self, key: tk.Key) -> object:
        """Return something that has the bytes of a row."""
        raise NotImplementedError

    def get_many(self, keys: list[tk.Key]) -> list:
        """Return the same for several rows."""
        return [self.get(key) for key in keys]

    def fill(self, keys: list[tk.Key], table: np.ndarray) -> None:
        """Copy rows into a table."""
        table[:] = np.frombuffer(b"".join(self.get_many(keys)), table.dtype).reshape(table.shape)


class TensorKey(Contestant):
    """ActivationCache without memory: each read is one from the directory."""

    name = "tensorkey.ActivationCache"
    BATCH = 256

    def __init__(self, folder: Path, limit: str = "1 GiB") -> None:
        self.cache = tk.ActivationCache(memory=None, disk=folder / "tensorkey", disk_limit=limit)

    def write(self, rows: Rows) -> None:
        keys = list(rows)
        for first in range(0, len(keys), self.BATCH):
            part = keys[first : first + self.BATCH]
            self.cache.put_many(part, np.stack([rows[key] for key in part]), COST)
        self.cache.flush()

    def get(self, key: tk.Key) -> object:
        return self.cache.get(key)[0]

    def get_many(self, keys: list[tk.Key]) -> list:
        return [entry[0] for entry in self.cache.get_many(keys)]

    def fill(self, keys: list[tk.Key], table: np.ndarray) -> None:
        assert all(self.cache.read_many(keys, table))


class TensorKeyOneByOne(TensorKey):
    """The same, a row in a call."""

    name = "tensorkey.ActivationCache, put() a row"

    def write(self, rows: Rows) -> None:
        put = self.cache.put
        for key, row in rows.items():
            put(key, row, COST)
        self.cache.flush()


class DiskCache(Contestant):
    """diskcache.Cache as it comes, but for its bound: rows as bytes, which it keeps in SQLite."""

    name = "diskcache.Cache"

    def __init__(self, folder: Path) -> None:
        self.cache = diskcache.Cache(str(folder / "diskcache"), size_limit=1 << 40)

    def write(self, rows: Rows) -> None:
        store = self.cache.set
        for key, row in rows.items():
            store(key.bytes, row.tobytes())

    def get(self, key: tk.Key) -> object:
        return self.cache.get(key.bytes)

    def get_many(self, keys: list[tk.Key]) -> list:
        get = self.cache.get
        return [get(key.bytes) for key in keys]


class Joblib(Contestant):
    """A function cached by joblib.Memory, which hashes its argument: the 32 bytes of a key."""

    name = "joblib.Memory"

    def __init__(self, folder: Path) -> None:
        self.rows: Rows = {}

        def row_of(key: bytes) -> np.ndarray:
            return self.rows[tk.Key(key)]

        self.row_of = joblib.Memory(folder / "joblib", verbose=0).cache(row_of)

    def write(self, rows: Rows) -> None:
        self.rows = rows
        for key in rows:
            self.row_of(key.bytes)

    def get(self, key: tk.Key) -> object:
        return self.row_of(key.bytes)

    def fill(self, keys: list[tk.Key], table: np.ndarray) -> None:
        for row, key in zip(table, keys, strict=True):
            row[:] = self.row_of(key.bytes)


class Blobs(Contestant):
    """A table of blobs in SQLite: WAL, fsync at checkpoints only, 1,000 rows a transaction."""

    name = "SQLite blobs"
    BATCH = 1000

    def __init__(self, folder: Path) -> None:
        self.base = sqlite3.connect(folder / "blobs.db", isolation_level=None)
        self.base.execute("PRAGMA journal_mode = WAL")
        self.base.execute("PRAGMA synchronous = NORMAL")
        self.base.execute("CREATE TABLE blobs (key BLOB PRIMARY KEY, value BLOB)")

    def write(self, rows: Rows) -> None:
        items = list(rows.items())
        for at in range(0, len(items), self.BATCH):
            self.base.execute("BEGIN IMMEDIATE")
            self.base.executemany(
                "INSERT INTO blobs VALUES (?, ?)",
                ((key.bytes, row.tobytes()) for key, row in items[at : at + self.BATCH]),
            )
            self.base.execute("COMMIT")

    def get(self, key: tk.Key) -> object:
        return self.base.execute("SELECT value FROM blobs WHERE key = ?", (key.bytes,)).fetchone()[
            0
        ]

    def get_many(self, keys: list[tk.Key]) -> list:
        names = [key.bytes for key in keys]
        places = ",".join("?" * len(names))
        found = self.base.execute(f"SELECT key, value FROM blobs WHERE key IN ({places})", names)
        rows = dict(found.fetchall())
        return [rows[name] for name in names]


class BlobsOneByOne(Blobs):
    """The same with a SELECT a row: reads what Blobs wrote."""

    name = "SQLite blobs, a SELECT a row"

    def __init__(self, folder: Path) -> None:
        self.base = sqlite3.connect(folder / "blobs.db", isolation_level=None)

    def get_many(self, keys: list[tk.Key]) -> list:
        return [self.get(key) for key in keys]


class Files(Contestant):
    """One file per entry, in 256 folders, written under another name and moved into place."""

    name = "a file per entry"

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder / "files")
        for i in range(256):
            os.makedirs(f"{self.folder}/{i:02x}")

    def path(self, key: tk.Key) -> str:
        name = key.bytes.hex()
        return f"{self.folder}/{name[:2]}/{name}"

    def write(self, rows: Rows) -> None:
        for key, row in rows.items():
            path = self.path(key)
            file = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(file, row)
            os.close(file)
            os.rename(path + ".new", path)

    def get(self, key: tk.Key) -> object:
        file = os.open(self.path(key), os.O_RDONLY)
        try:
            return os.read(file, 1 << 20)
        finally:
            os.close(file)

    def fill(self, keys: list[tk.Key], table: np.ndarray) -> None:
        for row, key in zip(table, keys, strict=True):
            file = os.open(self.path(key), os.O_RDONLY)
            os.readv(file, [row])
            os.close(file)
