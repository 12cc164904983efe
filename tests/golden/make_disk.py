"""Writes the golden directory and pack of docs/disk_layout.md; run only for a new version.

    python tests/golden/make_disk.py            # into tests/golden/disk/

Written from the page's text; nothing of the library is used. The entries are those of
tests/golden/entries/. rows.tsv says where each lies and what its row holds. The bytes of index.db
depend on the version of SQLite, so that file is kept as it is.
"""

from __future__ import annotations

import re
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_128

GOLDEN = Path(__file__).parent
HERE = GOLDEN / "disk"
PAGE = (GOLDEN.parent.parent / "docs/disk_layout.md").read_text()
SCHEMA = [
    statement
    for block in re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for statement in block.split(";\n")
    if statement
]
LIMIT = 4 << 20
PERIOD = 3
OPEN_SIZE = 8192  # of the segment that is still written
STORED = 1_700_000_000


class Row(NamedTuple):
    place: str  # a segment's number, or "pack"
    entry: str  # its golden file
    scope: int
    stored: int
    hits: float  # in units of period 0
    used: int
    removed: bool = False


# In the order of the files. 0xfedc... is a scope whose highest bit is set: negative in SQLite.
ROWS = [
    Row("1", "raw", 0, STORED, 8.0, STORED + 60),
    Row("1", "empty", 5, STORED, 0.0, 0, removed=True),
    Row("1", "named", 0xFEDCBA9876543210, STORED + 1, 16.0, STORED + 61),
    Row("1", "secret", 0, STORED + 2, 0.5, STORED + 2),
    Row("2", "lossless", 5, STORED + 3, 8.0, STORED + 3),
    Row("2", "fp16", 0, STORED + 4, 0.0, STORED + 4),
    Row("pack", "scalar", 0, STORED, 0.0, 0),
    Row("pack", "raw", 5, STORED + 5, 0.0, 0),
    Row("pack", "strides", 0xFEDCBA9876543210, -1, 0.0, 0),
    Row("pack", "secret", 0, STORED + 2, 0.0, 0),
]
TORN = Row("2", "bf16", 0, STORED + 5, 0.0, 0)


def checksum128(data: bytes) -> bytes:
    return xxh3_128(data, seed=0).intdigest().to_bytes(16, "little")


def with_checksum(head: bytes) -> bytes:
    return head + checksum128(head)[:8]


def mark_of(place: str) -> bytes:
    return checksum128(b"mark of " + place.encode())


def entry_of(row: Row) -> bytes:
    return (GOLDEN / f"entries/{row.entry}.tke").read_bytes()


def record(row: Row, offset: int) -> bytes:
    entry = entry_of(row)
    head = struct.pack("<4sB3xQ16s", b"TKRD", 1, offset, mark_of(row.place))
    head += entry[24:56] + struct.pack("<QQq", len(entry), row.scope, row.stored)
    return with_checksum(head) + entry


def places(place: str) -> list[tuple[Row, int, int]]:
    """Return each row of a file with its offset and length."""
    at, found = 64, []
    for row in ROWS:
        if row.place == place:
            found.append((row, at, 96 + len(entry_of(row))))
            at += found[-1][2]
    return found


def end_of(place: str) -> int:
    _, offset, length = places(place)[-1]
    return offset + length


def segment(number: int) -> bytes:
    place = str(number)
    data = with_checksum(struct.pack("<4sB3xQ16s24x", b"TKSG", 1, number, mark_of(place)))
    for row, offset, _ in places(place):
        whole = record(row, offset)
        data += bytes(4) + whole[4:] if row.removed else whole
    if number == 2:
        torn = record(TORN, len(data))
        data += torn[: 96 + 200]
        data += bytes(OPEN_SIZE - len(data))
    return data


def pack() -> bytes:
    records = b"".join(record(row, offset) for row, offset, _ in places("pack"))
    rows = sorted(
        entry_of(row)[24:56] + struct.pack("<QQ", offset, length)
        for row, offset, length in places("pack")
    )
    index = b"".join(rows)
    at = 64 + len(records)
    head = struct.pack("<4sB3xQQQ", b"TKPK", 1, len(rows), at, at + len(index) + 16)
    head = with_checksum(head + mark_of("pack") + bytes(8))
    return head + records + index + checksum128(index)


def cost_of(row: Row) -> float:
    return struct.unpack_from("<d", entry_of(row), 16)[0]


def signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def tables() -> tuple[list[tuple], list[tuple], list[tuple]]:
    """Return the rows of entries, segments and settings."""
    entries, segments = [], []
    number = 3  # rows 1 to 3 are gone
    for place, size, sealed in (("1", end_of("1"), 1), ("2", OPEN_SIZE, 0)):
        mine = []
        for row, offset, length in places(place):
            number += 1
            if not row.removed:
                key = entry_of(row)[24:56]
                where = (int(place), offset, length)
                use = (cost_of(row), row.hits, row.used)
                mine.append((number, key, signed(row.scope), *where, *use))
        worth = sum(row[6] * row[7] for row in mine)
        account = (len(mine), sum(row[5] for row in mine), worth, mine[0][0], mine[-1][0])
        segments.append((int(place), mark_of(place), size, end_of(place), sealed, *account))
        entries += mine
    return entries, segments, [("limit", LIMIT), ("period", PERIOD), ("accesses", 12.0)]


def write_index(path: Path) -> None:
    entries, segments, settings = tables()
    with closing(sqlite3.connect(path, isolation_level=None)) as index:
        for pragma in ("page_size = 4096", "auto_vacuum = INCREMENTAL", "journal_mode = WAL"):
            index.execute(f"PRAGMA {pragma}")
        index.execute("BEGIN")
        for statement in SCHEMA:
            index.execute(statement)
        for table, rows in (("entries", entries), ("segments", segments), ("settings", settings)):
            marks = ", ".join("?" * len(rows[0]))
            index.executemany(f"INSERT INTO {table} VALUES({marks})", rows)
        index.execute("COMMIT")
        index.execute(f"PRAGMA application_id = {int.from_bytes(b'TKDX', 'big')}")
        index.execute("PRAGMA user_version = 1")


def table() -> str:
    lines = ["file\toffset\tlength\tentry\tscope\tstored\thits\tused\tremoved"]
    for place in ("1", "2", "pack"):
        for row, offset, length in places(place):
            numbers = (row.scope, row.stored, row.hits, row.used, int(row.removed))
            lines.append("\t".join(map(str, (place, offset, length, row.entry, *numbers))))
    return "\n".join(lines) + "\n"


def main() -> None:
    directory = HERE / "directory"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tensorkey.lock").write_text("tensorkey directory, format 1\n")
    for number in (1, 2):
        (directory / f"{number:012}.seg").write_bytes(segment(number))
    if not (directory / "index.db").exists():
        write_index(directory / "index.db")
    (HERE / "golden.tkpack").write_bytes(pack())
    (HERE / "rows.tsv").write_text(table())


if __name__ == "__main__":
    main()
