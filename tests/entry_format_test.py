"""An independent reading of docs/entry_format.md: nothing of the library is used but its text.

`read` knows the page and the packages for its three algorithms; it must arrive at what entries.tsv
says of every golden file, and refuse every damaged one. C++ reads the same files.
"""

from __future__ import annotations

import importlib.util
import math
import random
import re
import struct
from pathlib import Path

import pytest
import zstandard
from blake3 import blake3
from xxhash import xxh3_128

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests/golden/entries"
PAGE = (ROOT / "docs/entry_format.md").read_text()
KEY_PAGE = (ROOT / "docs/key_format.md").read_text()
ROWS = [line.split("\t") for line in (GOLDEN / "entries.tsv").read_text().splitlines()[1:]]
CODECS = dict(re.findall(r"^\| (\d) \| (raw|lossless|fp16|bf16) \|", PAGE, re.MULTILINE))
# id: (name, bytes), of the dtypes that have a line of their own and of the four-bit integer
DTYPES = {
    int(i): (name, int(size))
    for i, name, size in re.findall(r"^\| (\d+) \| (\w+) \| (\d+) \|", KEY_PAGE, re.MULTILINE)
} | {51: ("int4", 1)}
FLOAT_SIZE = {"float32": 4, "float64": 8, "complex64": 4, "complex128": 8}


class Corrupt(Exception):
    pass


def need(condition: bool, what: str) -> None:
    if not condition:
        raise Corrupt(what)


class Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        need(count <= len(self.data) - self.at, "ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def unpack(self, form: str) -> tuple:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def padding(self, unit: int) -> None:
        need(not any(self.take(-self.at % unit)), "padding")


def read(entry: bytes, secret: bytes = b"") -> tuple[bytes, bytes, float, list[tuple]]:
    """Return key, input key, cost and the tensors, or raise Corrupt."""
    need(len(entry) >= 72, "too short")
    magic, version, flags, count, length, cost = struct.unpack_from("<4sBBHQd", entry)
    need((magic, version) == (b"TKEN", 1) and flags < 4, "head")
    need(bool(flags & 2) == bool(secret), "secret")
    need(length == len(entry) and length % 16 == 0, "length")
    end = len(entry) - (32 if secret else 16)
    body, seal = entry[:end], entry[end:]
    if secret:
        subkey = blake3(secret, derive_key_context="tensorkey v1 entry mac").digest()
        need(blake3(body, key=subkey).digest() == seal, "MAC")
    else:
        need(xxh3_128(body).intdigest().to_bytes(16, "little") == seal, "checksum")
    need(math.isfinite(cost) and math.copysign(1, cost) == 1, "cost")

    cursor = Cursor(body)
    cursor.take(24)
    key, input_key = cursor.take(32), cursor.take(32 * (flags & 1))
    records, names, tensors = [], set(), []
    for _ in range(count):
        size, dtype, codec, strides, rank, zero, name_size = cursor.unpack("<QHBBBBH")
        need(dtype in DTYPES and dtype < 64 and strides < 2 and rank <= 64 and zero == 0, "record")
        need(str(codec) in CODECS, "codec")
        dims = cursor.unpack(f"<{rank}Q")
        try:
            name = cursor.take(name_size).decode()
        except UnicodeDecodeError:
            raise Corrupt("name") from None
        cursor.padding(8)
        need(name not in names, "name")
        names.add(name)
        records.append((name, *DTYPES[dtype], dims, strides, CODECS[str(codec)], size))
    cursor.padding(16)
    for name, dtype, item, dims, strides, codec, size in records:
        need(item * math.prod(d or 1 for d in dims) < 1 << 63, "overflow")
        data = cursor.take(size)
        cursor.padding(16)
        elements = decoded(data, codec, dtype, item, item * math.prod(dims))
        tensors.append((name, dtype, dims, strides, codec, elements))
    need(cursor.at == end, "bytes behind the last tensor")
    return key, input_key, cost, tensors


def decoded(data: bytes, codec: str, dtype: str, item: int, size: int) -> bytes:
    if codec == "raw":
        need(len(data) == size, "stored length")
        return data
    if codec == "lossless":
        need(len(data) < size, "stored length")
        try:
            need(zstandard.frame_content_size(data) == size, "zstd frame")
            unpacker = zstandard.ZstdDecompressor().decompressobj()
            shuffled = unpacker.decompress(data)
        except zstandard.ZstdError:
            raise Corrupt("zstd") from None
        need(unpacker.eof and not unpacker.unused_data and len(shuffled) == size, "zstd frame")
        count = size // item
        return b"".join(bytes(shuffled[i::count]) for i in range(count))
    need(dtype in FLOAT_SIZE and size > 0, "codec")
    wide = FLOAT_SIZE[dtype]
    need(len(data) == size // wide * 2, "stored length")
    halves = struct.unpack(f"<{len(data) // 2}H", data)
    return b"".join(widened(half, codec, wide).to_bytes(wide, "little") for half in halves)


def widened(half: int, codec: str, size: int) -> int:
    bits, bias = {"fp16": (10, 15), "bf16": (7, 127)}[codec]
    wide_bits, wide_bias, form = {4: (23, 127, "<fI"), 8: (52, 1023, "<dQ")}[size]
    sign = half >> 15 << (8 * size - 1)
    exponent, mantissa = half >> bits & (2 * bias + 1), half & ((1 << bits) - 1)
    if exponent == 2 * bias + 1:
        return sign | (2 * wide_bias + 1) << wide_bits | mantissa << (wide_bits - bits)
    value = math.ldexp(mantissa + (bool(exponent) << bits), max(exponent, 1) - bias - bits)
    return sign | struct.unpack("<" + form[2], struct.pack(form[:2], value))[0]


def expected(row: list[str]) -> tuple:
    name, secret, key, input_key, cost, text = row
    tensors = []
    for part in text.split(";") if text else []:
        label, dtype, dims, strides, codec, data = part.split("|")
        shape = tuple(int(d) for d in dims.split(",") if d)
        tensors.append((label, dtype, shape, int(strides), codec, bytes.fromhex(data)))
    seconds = struct.unpack("<d", bytes.fromhex(cost))[0]
    return bytes.fromhex(secret), bytes.fromhex(key), bytes.fromhex(input_key), seconds, tensors


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.tke").read_bytes()


def generator():
    spec = importlib.util.spec_from_file_location("make_entries", GOLDEN.parent / "make_entries.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_page_alone_reads_the_golden_entry(row):
    secret, key, input_key, cost, tensors = expected(row)
    read_key, read_input, read_cost, found = read(golden(row[0]), secret)
    assert (read_key, read_input, read_cost) == (key, input_key, cost)
    for tensor, wanted in zip(found, tensors, strict=True):
        assert tensor[:5] == wanted[:5]
        if tensor[4] in ("raw", "lossless"):
            assert tensor[5] == wanted[5]
        else:  # the generator's rounding is another program than widened() here
            make = generator()
            size = FLOAT_SIZE[tensor[1]]
            form = "I" if size == 4 else "Q"
            exact = struct.unpack(f"<{len(wanted[5]) // size}{form}", wanted[5])
            back = struct.unpack(f"<{len(tensor[5]) // size}{form}", tensor[5])
            halves = [make.rounded_half(bits, size, tensor[4]) for bits in exact]
            assert [make.rounded_half(bits, size, tensor[4]) for bits in back] == halves
            assert [widened(half, tensor[4], size) for half in halves] == list(back)


def test_golden_files_are_those_of_the_generator():
    make = generator()
    assert {path.stem for path in GOLDEN.glob("*.tke")} == set(make.entries())
    for name, entry in make.entries().items():
        if not any(tensor.codec == "lossless" for tensor in entry.tensors):
            assert make.encode(name, entry) == golden(name), name


def test_the_entries_cover_the_page():
    tensors = [tensor for row in ROWS for tensor in expected(row)[4]]
    assert {tensor[4] for tensor in tensors} == set(CODECS.values()) == set(generator().CODECS)
    assert {tensor[3] for tensor in tensors} == {0, 1}
    assert {len(tensor[2]) for tensor in tensors} >= {0, 1, 2, 3, 8}
    assert {"int4", "bfloat16", "bool"} <= {tensor[1] for tensor in tensors}
    assert {bool(row[1]) for row in ROWS} == {bool(row[3]) for row in ROWS} == {True, False}


def test_the_entry_in_the_page_is_a_golden_one():
    shown = "".join(re.findall(r'^    "([0-9a-f]+)"$', PAGE, re.MULTILINE))
    assert bytes.fromhex(shown) == golden("raw")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_damaged_entry_is_refused(row):
    entry, secret = golden(row[0]), bytes.fromhex(row[1])
    damaged = [entry[:n] for n in range(len(entry))] + [entry + bytes(n) for n in (1, 16, 32)]
    for i in random.Random(20261123).sample(range(8 * len(entry)), 400):
        flipped = bytearray(entry)
        flipped[i // 8] ^= 1 << i % 8
        damaged.append(bytes(flipped))
    for other in damaged:
        with pytest.raises(Corrupt):
            read(other, secret)
    with pytest.raises(Corrupt, match="secret"):
        read(entry, b"" if secret else bytes(32))
    if secret:
        with pytest.raises(Corrupt, match="MAC"):
            read(entry, bytes(32))
