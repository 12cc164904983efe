"""An independent reading of docs/disk_layout.md: nothing of the library is used but its text.

It must find in the golden directory and pack what rows.tsv says, with and without the index, and
refuse what is damaged. C++ reads the same files.
"""

from __future__ import annotations

import importlib.util
import random
import re
import shutil
import sqlite3
import struct
from bisect import bisect_left
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from xxhash import xxh3_128

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/disk"
PAGE = (ROOT / "docs/disk_layout.md").read_text()
ROWS = [line.split("\t") for line in (GOLDEN / "rows.tsv").read_text().splitlines()[1:]]
SECRET = bytes(range(32))


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


ENTRY_PAGE = module("tests/entry_format_test.py")


class Bad(Exception):
    pass


class Record(NamedTuple):
    offset: int
    length: int
    key: bytes
    scope: int
    stored: int
    entry: bytes


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Bad(what)


def checksum(data: bytes) -> bytes:
    return xxh3_128(data).intdigest().to_bytes(16, "little")


def check_head(head: bytes, magic: bytes) -> None:
    need(head[:8] == magic + bytes([1, 0, 0, 0]), "magic or version")
    need(head[-8:] == checksum(head[:-8])[:8], "checksum")


def segment_mark(data: bytes, number: int) -> bytes:
    need(len(data) >= 64, "too short")
    check_head(data[:64], b"TKSG")
    need(struct.unpack_from("<Q", data, 8)[0] == number and not any(data[32:56]), "head")
    return data[16:32]


def read_record(data: bytes, offset: int, mark: bytes) -> Record:
    need(offset % 16 == 0 and offset + 96 <= len(data), "place")
    head = data[offset : offset + 96]
    check_head(head, b"TKRD")
    at, found, key, length, scope, stored = struct.unpack("<8xQ16s32sQQq8x", head)
    need((at, found) == (offset, mark), "another place")
    entry = data[offset + 96 : offset + 96 + length]
    need(len(entry) == length and length % 16 == 0, "length")
    try:  # the entry says itself whether it has a MAC
        entry_key, *_ = ENTRY_PAGE.read(entry, SECRET if entry[5] & 2 else b"")
    except (ENTRY_PAGE.Corrupt, IndexError) as error:
        raise Bad("entry") from error
    need(entry_key == key, "key")
    return Record(offset, 96 + length, key, scope, stored, entry)


def scan(data: bytes, number: int) -> list[Record]:
    mark, at, found = segment_mark(data, number), 64, []
    while at < len(data):
        try:
            found.append(read_record(data, at, mark))
            at += found[-1].length
        except Bad:
            at += 16
    return found


def read_pack(data: bytes) -> dict[bytes, Record]:
    need(len(data) >= 64, "too short")
    check_head(data[:64], b"TKPK")
    entries, index, length, mark = struct.unpack_from("<QQQ16s", data, 8)
    need(length == len(data) == index + 48 * entries + 16 and not any(data[48:56]), "head")
    rows = [struct.unpack_from("<32sQQ", data, index + 48 * i) for i in range(entries)]
    need(data[-16:] == checksum(data[index:-16]), "checksum of the index")
    keys = [row[0] for row in rows]
    need(keys == sorted(set(keys)), "order")
    found = {}
    for key in keys:
        _, offset, size = rows[bisect_left(keys, key)]
        need(offset >= 64 and offset + size <= index, "place")
        record = read_record(data, offset, mark)
        need((record.key, record.length) == (key, size), "another record")
        found[key] = record
    return found


@pytest.fixture
def directory(tmp_path):
    """A copy: SQLite makes files beside an index that it opens."""
    return Path(shutil.copytree(GOLDEN / "directory", tmp_path / "copy"))


def golden_entry(name: str) -> bytes:
    return (GOLDEN.parent / f"entries/{name}.tke").read_bytes()


def expected(file: str) -> list[Record]:
    records = []
    for place, offset, length, name, scope, stored, *_, removed in ROWS:
        if place == file and removed == "0":
            entry = golden_entry(name)
            where = (int(offset), int(length), entry[24:56])
            records.append(Record(*where, int(scope), int(stored), entry))
    return records


def select(directory: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(directory / "index.db")) as index:
        return index.execute(query).fetchall()


def segment_file(directory: Path, number: int) -> bytes:
    return (directory / f"{number:012}.seg").read_bytes()


def test_the_directory_holds_what_the_page_lists(directory):
    names = {path.name for path in directory.iterdir()}
    assert names == {"tensorkey.lock", "index.db", "000000000001.seg", "000000000002.seg"}
    text = (directory / "tensorkey.lock").read_bytes()
    assert text == b"tensorkey directory, format 1\n"
    assert "`tensorkey directory, format 1`" in PAGE
    assert f"{len(text)} bytes" in PAGE


def test_the_index_is_that_of_the_page(directory):
    wanted = {"application_id": 0x544B4458, "user_version": 1, "page_size": 4096, "auto_vacuum": 2}
    for pragma, value in {**wanted, "journal_mode": "wal"}.items():
        assert select(directory, f"PRAGMA {pragma}") == [(value,)], pragma
    assert "0x544b4458" in PAGE
    (block,) = re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    tables = select(directory, "SELECT sql FROM sqlite_schema WHERE sql LIKE 'CREATE TABLE %'")
    assert set(block.removesuffix(";\n").split(";\n")) <= {table for (table,) in tables}
    for table in ("entries", "segments"):  # every column has a line of the page
        columns = select(directory, f"SELECT name FROM pragma_table_info('{table}')")
        named = re.findall(r"^\| ([a-z_, ]+) \|", PAGE, re.MULTILINE)
        assert {name for (name,) in columns} <= {n for line in named for n in line.split(", ")}
    settings = dict(select(directory, "SELECT * FROM settings"))
    assert settings == {"limit": 4 << 20, "period": 3, "accesses": 12.0}
    numbers = dict(select(directory, "SELECT name, seq FROM sqlite_sequence"))
    assert numbers["segments"] == 2
    assert numbers["entries"] > 6


def test_rows_lead_to_records(directory):
    columns = "key, scope, segment, offset, length, cost, hits, used"
    rows = select(directory, f"SELECT {columns} FROM entries ORDER BY id")
    marks = dict(select(directory, "SELECT id, mark FROM segments"))
    found: dict[str, list[Record]] = {"1": [], "2": []}
    uses = []
    for key, scope, segment, offset, length, cost, hits, used in rows:
        data = segment_file(directory, segment)
        assert segment_mark(data, segment) == marks[segment]
        record = read_record(data, offset, marks[segment])
        assert (record.key, record.length, record.scope) == (key, length, scope % (1 << 64))
        assert cost == struct.unpack_from("<d", record.entry, 16)[0]
        found[str(segment)].append(record)
        uses.append((hits, used))
    assert found == {file: expected(file) for file in found}
    assert uses == [
        (float(row[6]), int(row[7])) for row in ROWS if row[0] in found and row[8] == "0"
    ]


def test_accounts_of_segments_follow_from_the_rows(directory):
    for number, mark, size, end, sealed, *account in select(directory, "SELECT * FROM segments"):
        data = segment_file(directory, number)
        assert (len(mark), size) == (16, len(data))
        records = expected(str(number))
        assert end == records[-1].offset + records[-1].length
        assert sealed == (end == size)
        sums = "count(*), sum(length), sum(hits * cost), min(id), max(id)"
        assert select(directory, f"SELECT {sums} FROM entries WHERE segment = {number}") == [
            tuple(account)
        ]
    # What was removed is in neither place; what was torn is behind the end.
    removed = [row for row in ROWS if row[8] == "1"]
    assert removed
    for file, offset, *_ in removed:
        assert not any(segment_file(directory, int(file))[int(offset) :][:4])
    assert segment_file(directory, 2)[end : end + 4] == b"TKRD"


def test_segments_can_be_read_without_an_index(directory):
    for number in (1, 2):
        assert scan(segment_file(directory, number), number) == expected(str(number))
        with pytest.raises(Bad):
            segment_mark(segment_file(directory, number), 3 - number)


def test_the_pack_holds_its_rows():
    found = read_pack((GOLDEN / "golden.tkpack").read_bytes())
    assert found == {record.key: record for record in expected("pack")}
    assert len(found) == 4


def test_golden_files_are_those_of_the_generator(tmp_path):
    make = module("tests/golden/make_disk.py")
    for number in (1, 2):
        assert make.segment(number) == segment_file(GOLDEN / "directory", number)
    assert make.pack() == (GOLDEN / "golden.tkpack").read_bytes()
    assert make.table() == (GOLDEN / "rows.tsv").read_text()
    make.write_index(tmp_path / "index.db")
    copy = Path(shutil.copytree(GOLDEN / "directory", tmp_path / "copy"))
    for table in ("entries", "segments", "settings", "sqlite_schema", "sqlite_sequence"):
        rows = f"SELECT * FROM {table}"
        assert select(tmp_path, rows) == select(copy, rows)


def test_the_segment_in_the_page_is_a_golden_one():
    shown = bytes.fromhex("".join(re.findall(r'^    "([0-9a-f]+)"$', PAGE, re.MULTILINE)))
    assert segment_file(GOLDEN / "directory", 1).startswith(shown)
    assert len(shown) == 64 + expected("1")[0].length


@pytest.mark.parametrize("number", [1, 2])
def test_a_flipped_bit_costs_one_record(number):
    data = segment_file(GOLDEN / "directory", number)
    whole = expected(str(number))
    for i in range(8 * 64):
        with pytest.raises(Bad):
            scan(flipped(data, i), number)
    heads = [8 * record.offset + bit for record in whole for bit in range(8 * 96)]
    behind = range(8 * 64, 8 * (whole[-1].offset + whole[-1].length))
    for i in heads[:: len(whole)] + random.Random(20261123).sample(behind, 300):
        hit = [r for r in whole if not r.offset <= i // 8 < r.offset + r.length]
        assert scan(flipped(data, i), number) == hit, i


def test_records_of_other_places_are_refused():
    data = segment_file(GOLDEN / "directory", 1)
    first, second, *_ = expected("1")
    mark = segment_mark(data, 1)
    record = data[first.offset : first.offset + first.length]
    moved = data[: second.offset] + record + data[second.offset + first.length :]
    with pytest.raises(Bad, match="place"):
        read_record(moved, second.offset, mark)
    other = segment_file(GOLDEN / "directory", 2)
    copied = other[:64] + record + other[64 + first.length :]
    with pytest.raises(Bad, match="place"):
        read_record(copied, 64, segment_mark(copied, 2))


def test_a_damaged_pack_is_refused():
    data = (GOLDEN / "golden.tkpack").read_bytes()
    damaged = [data[:n] for n in range(len(data))] + [data + bytes(n) for n in (1, 16, 48)]
    damaged += [flipped(data, i) for i in random.Random(20261123).sample(range(8 * len(data)), 900)]
    for other in damaged:
        with pytest.raises(Bad):
            read_pack(other)


def flipped(data: bytes, bit: int) -> bytes:
    other = bytearray(data)
    other[bit // 8] ^= 1 << bit % 8
    return bytes(other)
