"""Writes the golden entries of docs/entry_format.md; run only for a new version of the format.

    python tests/golden/make_entries.py            # into tests/golden/entries/

Written from the page's text; nothing of the library is used. entries.tsv says what each file holds.
The bytes of the lossless ones depend on the version of zstd, so those files are kept as they are.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import zstandard
from blake3 import blake3
from xxhash import xxh3_128

HERE = Path(__file__).parent / "entries"
SECRET = bytes(range(32))
# (id, bytes of an element, bytes of a number)
DTYPES = {
    "bool": (1, 1, 1),
    "int64": (5, 8, 8),
    "uint8": (6, 1, 1),
    "uint16": (7, 2, 2),
    "float16": (16, 2, 2),
    "float32": (17, 4, 4),
    "float64": (18, 8, 8),
    "bfloat16": (19, 2, 2),
    "complex64": (21, 8, 4),
    "complex128": (22, 16, 8),
    "int4": (51, 1, 1),
}
CODECS = ("raw", "lossless", "fp16", "bf16")
HALVES = {"fp16": (5, 10), "bf16": (8, 7)}  # bits of exponent and mantissa
FLOATS = {4: (8, 23, "<I", "<f"), 8: (11, 52, "<Q", "<d")}  # by bytes of a number


class Tensor(NamedTuple):
    name: str
    dtype: str
    dims: tuple[int, ...]
    data: bytes
    codec: str = "raw"
    strides: int = 0


class Entry(NamedTuple):
    tensors: list[Tensor]
    seconds: float = 0.004
    has_input: bool = False
    secret: bytes = b""


def padded(data: bytes, unit: int) -> bytes:
    return data + bytes(-len(data) % unit)


def rounded_half(bits: int, size: int, codec: str) -> int:
    """Round by exact fractions, from the definition."""
    exponent_bits, mantissa_bits, as_int, as_float = FLOATS[size]
    to_exponent, to_mantissa = HALVES[codec]
    sign = bits >> (8 * size - 1) << 15
    bits &= (1 << (8 * size - 1)) - 1
    infinity = ((1 << to_exponent) - 1) << to_mantissa
    if bits > ((1 << exponent_bits) - 1) << mantissa_bits:
        payload = (bits & ((1 << mantissa_bits) - 1)) >> (mantissa_bits - to_mantissa)
        return sign | infinity | 1 << (to_mantissa - 1) | payload
    value = struct.unpack(as_float, struct.pack(as_int, bits))[0]
    if math.isinf(value):
        return sign | infinity
    bias = (1 << (to_exponent - 1)) - 1
    exact = Fraction(value)
    # The exponent of the step between neighbours; that of the subnormals is the least.
    power = max(math.frexp(value)[1] - 1 if value else 1 - bias, 1 - bias)
    steps = round(exact / Fraction(2) ** (power - to_mantissa))  # Python rounds ties to even
    return sign | min(steps + ((power + bias - 1) << to_mantissa), infinity)


def stored(tensor: Tensor) -> bytes:
    _, size, number = DTYPES[tensor.dtype]
    data = tensor.data
    if tensor.codec == "lossless":
        shuffled = b"".join(data[b::size] for b in range(size))
        return zstandard.ZstdCompressor(level=1, write_content_size=True).compress(shuffled)
    if tensor.codec in HALVES:
        numbers = struct.unpack(f"<{len(data) // number}{FLOATS[number][2][1]}", data)
        halves = [rounded_half(n, number, tensor.codec) for n in numbers]
        return struct.pack(f"<{len(halves)}H", *halves)
    return data


def key_of(name: str) -> bytes:
    return blake3(name.encode()).digest()


def encode(name: str, entry: Entry) -> bytes:
    records, data = b"", b""
    for tensor in entry.tensors:
        text, bytes_ = tensor.name.encode(), stored(tensor)
        codec = CODECS.index(tensor.codec)
        dtype, rank = DTYPES[tensor.dtype][0], len(tensor.dims)
        records += struct.pack("<QHBB", len(bytes_), dtype, codec, tensor.strides)
        records += struct.pack("<BBH", rank, 0, len(text))
        records += b"".join(struct.pack("<Q", dim) for dim in tensor.dims) + padded(text, 8)
        data += padded(bytes_, 16)
    keys = key_of(name) + (key_of(name + " input") if entry.has_input else b"")
    body = padded(bytes(24) + keys + records, 16)[24:] + data
    length = 24 + len(body) + (32 if entry.secret else 16)
    flags = entry.has_input | bool(entry.secret) << 1
    head = struct.pack("<4sBBHQd", b"TKEN", 1, flags, len(entry.tensors), length, entry.seconds)
    return head + body + seal(head + body, entry.secret)


def seal(data: bytes, secret: bytes) -> bytes:
    if secret:
        subkey = blake3(secret, derive_key_context="tensorkey v1 entry mac").digest()
        return blake3(data, key=subkey).digest()
    return xxh3_128(data, seed=0).intdigest().to_bytes(16, "little")


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def bits32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def edges(codec: str, size: int) -> bytes:
    """Numbers around every border of the narrow format: ties, subnormals, overflow, NaN."""
    exponent_bits, mantissa_bits = HALVES[codec]
    bias = (1 << (exponent_bits - 1)) - 1
    step = Fraction(2) ** -mantissa_bits
    least = Fraction(2) ** (1 - bias) * step
    most = (2 - step) * Fraction(2) ** bias
    _, wide_mantissa, as_int, as_float = FLOATS[size]
    exact = [Fraction(0), 1 + step / 2, 1 + step * 3 / 2, least / 2, least * 3 / 2, least / 4]
    exact += [least * (Fraction(1, 2) + step / 8), Fraction(2) ** (1 - bias) - least / 2, most]
    if size == 8 or codec == "fp16":
        exact += [most + most * step / 8, most * (1 + step / 3), most * 3]
    words = [struct.unpack(as_int, struct.pack(as_float, float(x)))[0] for x in exact]
    infinity = ((1 << FLOATS[size][0]) - 1) << wide_mantissa
    words += [1, infinity - 1, infinity, infinity + 1, infinity | 5 << (wide_mantissa - 3)]
    words += [word | 1 << (8 * size - 1) for word in words]
    return struct.pack(f"<{len(words)}{as_int[1]}", *words)


def entries() -> dict[str, Entry]:
    ramp = floats(*range(6))
    relu = floats(*(max(0.0, math.sin(i)) for i in range(96)))
    walk = struct.pack("<40q", *(1000 + i * i for i in range(40)))
    spiral = struct.pack("<24d", *(math.cos(i) if i % 2 else 0.5 for i in range(24)))
    fp16, fp16_wide = edges("fp16", 4), edges("fp16", 8)
    bf16, bf16_wide = edges("bf16", 4), edges("bf16", 8)
    named = [
        Tensor("out.ids", "int64", (2, 2), struct.pack("<4q", -1, 0, 1, 1 << 40)),
        Tensor("out.mask", "bool", (3,), bytes([1, 0, 1])),
        Tensor("Größe[0]", "float16", (5,), struct.pack("<5e", 0, -0.0, 1, 65504, math.inf)),
    ]
    return {
        "raw": Entry([Tensor("", "float32", (2, 3), ramp)]),
        "scalar": Entry([Tensor("", "float64", (), struct.pack("<d", math.pi))], seconds=0.0),
        "empty": Entry([Tensor("", "float32", (0, 3), b"")], seconds=1e300),
        "no_tensors": Entry([]),
        "named": Entry(named),
        "bfloat16": Entry([Tensor("", "bfloat16", (5,), bytes.fromhex("803f0080817fc0ff8000"))]),
        "int4": Entry([Tensor("", "int4", (3, 1), bytes([0x0F, 0x07, 0x08]))]),
        "strides": Entry([Tensor("", "float32", (3, 1, 2), ramp, strides=1)]),
        "input": Entry([Tensor("", "uint16", (1,) * 8, b"\x01\x02")], has_input=True),
        "secret": Entry([Tensor("", "float32", (2, 3), ramp)], secret=SECRET),
        "secret_no_tensors": Entry([], secret=SECRET, seconds=5e-324),
        "lossless": Entry([Tensor("", "float32", (4, 24), relu, "lossless")]),
        "lossless_sizes": Entry(
            [
                Tensor("a", "int64", (40,), walk, "lossless"),
                Tensor("b", "uint8", (100,), bytes(100), "lossless"),
                Tensor("c", "complex128", (12,), spiral, "lossless", 1),
                Tensor("d", "uint16", (64,), b"\x00\x01" * 64, "lossless"),
            ],
            has_input=True,
            secret=SECRET,
        ),
        "fp16": Entry(
            [
                Tensor("float32", "float32", (len(fp16) // 4,), fp16, "fp16"),
                Tensor("float64", "float64", (len(fp16_wide) // 8,), fp16_wide, "fp16"),
                Tensor("complex64", "complex64", (len(fp16) // 8, 1), fp16, "fp16"),
            ]
        ),
        "bf16": Entry(
            [
                Tensor("float32", "float32", (len(bf16) // 4,), bf16, "bf16"),
                Tensor("float64", "float64", (len(bf16_wide) // 8,), bf16_wide, "bf16"),
                Tensor("complex128", "complex128", (len(bf16_wide) // 16,), bf16_wide, "bf16"),
            ]
        ),
    }


def row(name: str, entry: Entry) -> str:
    tensors = ";".join(
        "|".join(
            (
                tensor.name,
                tensor.dtype,
                ",".join(map(str, tensor.dims)),
                str(tensor.strides),
                tensor.codec,
                tensor.data.hex(),
            )
        )
        for tensor in entry.tensors
    )
    key_of_input = key_of(name + " input").hex() if entry.has_input else ""
    cost = struct.pack("<d", entry.seconds).hex()
    return "\t".join((name, entry.secret.hex(), key_of(name).hex(), key_of_input, cost, tensors))


def main() -> None:
    HERE.mkdir(exist_ok=True)
    rows = ["name\tsecret\tkey\tinput\tseconds\ttensors"]
    for name, entry in entries().items():
        file = HERE / f"{name}.tke"
        if not (file.exists() and any(t.codec == "lossless" for t in entry.tensors)):
            file.write_bytes(encode(name, entry))
        rows.append(row(name, entry))
    (HERE / "entries.tsv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
