"""An independent reading of docs/key_format.md: nothing of the library is used but the page's text.

`recompute` knows the page and the `blake3` package only; it must arrive at every golden vector, and
so must the library through its Python face.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from blake3 import blake3

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "key_format.md").read_text()
GOLDEN = [
    line.split("\t") for line in (ROOT / "tests/golden/keys.tsv").read_text().splitlines()[1:]
]


def dtype_table() -> dict[str, tuple[int, int]]:
    """(id, bytes) of each dtype, read from the page."""
    table = {}
    for first, last, name, size in re.findall(
        r"^\| (\d+)(?: \.\. (\d+))? \| (\w+)(?: \.\. \w+)? \| (\d+) \|", PAGE, re.MULTILINE
    ):
        if last:  # "48 .. 54 | int1 .. int7"
            for step in range(int(last) - int(first) + 1):
                table[f"{name[:-1]}{step + 1}"] = (int(first) + step, int(size))
        else:
            table[name] = (int(first), int(size))
    return table


DTYPES = dtype_table()
# (bits, exponent bits, mantissa bits, canonical NaN, whether an all-ones exponent is needed)
IEEE = {
    "float16": (2, 0x7C00, 0x7E00),
    "bfloat16": (2, 0x7F80, 0x7FC0),
    "float32": (4, 0x7F800000, 0x7FC00000),
    "float64": (8, 0x7FF0000000000000, 0x7FF8000000000000),
    "complex32": (2, 0x7C00, 0x7E00),
    "complex64": (4, 0x7F800000, 0x7FC00000),
    "complex128": (8, 0x7FF0000000000000, 0x7FF8000000000000),
    "float8_e3m4": (1, 0x70, 0x78),
    "float8_e4m3": (1, 0x78, 0x7C),
    "float8_e5m2": (1, 0x7C, 0x7E),
}


def canonical_number(dtype: str, value: int) -> int:
    if dtype in IEEE:
        size, infinity, nan = IEEE[dtype]
        magnitude = value & ((1 << (8 * size - 1)) - 1)
        return nan if magnitude > infinity else 0 if magnitude == 0 else value
    if dtype == "float8_e4m3fn":
        return 0x7F if value & 0x7F == 0x7F else 0 if value == 0x80 else value
    if dtype in ("float6_e2m3fn", "float6_e3m2fn"):
        return 0 if value == 0x20 else value
    if dtype == "float4_e2m1fn":
        return 0 if value == 0x8 else value
    if dtype == "float4_e2m1fn_x2":
        low, high = value & 15, value >> 4
        return (0 if low == 8 else low) | (0 if high == 8 else high) << 4
    return value  # integers; fnuz kinds and e8m0 have one NaN and no -0.0


def normalise(dtype: str, data: bytes, canonical: bool) -> bytes:
    if dtype == "bool":
        return bytes(int(byte != 0) for byte in data)
    sub_byte = re.fullmatch(r"u?int([1-7])", dtype) or re.match(r"float([64])_(?!.*_x2)", dtype)
    if sub_byte:
        data = bytes(byte & ((1 << int(sub_byte[1])) - 1) for byte in data)
    if not canonical:
        return data
    size = IEEE[dtype][0] if dtype in IEEE else 1
    numbers = (data[i : i + size] for i in range(0, len(data), size))
    return (
        b"".join(
            canonical_number(dtype, int.from_bytes(n, "little")).to_bytes(size, "little")
            for n in numbers
        )
        if "float" in dtype or "complex" in dtype
        else data
    )


def header(kind: int, dtype_id: int, flags: int, params: bytes, dims: list[int], scope: bytes):
    return (
        b"TKEY"
        + struct.pack("<BBHHH", 1, kind, dtype_id, flags, len(dims))
        + struct.pack("<I", len(params))
        + params
        + b"".join(struct.pack("<Q", dim) for dim in dims)
        + struct.pack("<Q", len(scope))
        + scope
    )


def finish(header_bytes: bytes, data: bytes, secret: bytes) -> bytes:
    if secret:
        subkey = blake3(secret, derive_key_context="tensorkey v1 key").digest()
        inner = blake3(header_bytes, key=subkey).digest()
    else:
        inner = blake3(header_bytes).digest()
    return blake3(data, key=inner).digest()


class Tensor:
    def __init__(self, text: str) -> None:
        self.path, rest = text.split("=", 1)
        self.dtype, params, dims, data = rest.split("|")
        self.params = params.encode()
        self.dims = [int(d) for d in dims.split(",") if d]
        self.data = bytes.fromhex(data)

    def row(self, i: int) -> Tensor:
        row = object.__new__(Tensor)
        row.path, row.dtype, row.params = self.path, self.dtype, self.params
        row.dims = self.dims[1:]
        size = len(self.data) // self.dims[0]
        row.data = self.data[i * size : (i + 1) * size]
        return row

    def content_key(self, scope: bytes, secret: bytes, canonical: bool) -> bytes:
        head = header(1, DTYPES[self.dtype][0], int(canonical), self.params, self.dims, scope)
        return finish(head, normalise(self.dtype, self.data, canonical), secret)

    def structure_key(self, scope: bytes, secret: bytes) -> bytes:
        strides, step, empty = [], DTYPES[self.dtype][1], 0 in self.dims
        for dim in reversed(self.dims):
            strides.insert(0, 0 if empty or dim <= 1 else step)
            step *= dim
        fields = {
            "byte_order": "little",
            "device": "cpu",
            "layout": "strided",
            "pinned": "false",
            "requires_grad": "false",
            "strides": ",".join(map(str, strides)),
        }
        data = b"".join(
            struct.pack("<I", len(text)) + text.encode() for item in fields.items() for text in item
        )
        return finish(
            header(2, DTYPES[self.dtype][0], 0, self.params, self.dims, scope), data, secret
        )


def tuple_key(members: list[Tensor], scope: bytes, secret: bytes, canonical: bool) -> bytes:
    members = sorted(members, key=lambda member: member.path.encode())
    params = struct.pack("<I", len(members)) + b"".join(
        struct.pack("<I", len(m.path.encode())) + m.path.encode() for m in members
    )
    data = b"".join(m.content_key(b"", secret, canonical) for m in members)
    return finish(header(3, 0, int(canonical), params, [], scope), data, secret)


class OwnId:
    def __init__(self, text: str) -> None:
        name, data = text.split("=", 1)
        self.type = {"int": 1, "text": 2, "bytes": 3}[name]
        self.data = bytes.fromhex(data)

    def key(self, scope: bytes, secret: bytes) -> bytes:
        return finish(header(5, 0, 0, b"", [], scope), bytes([self.type]) + self.data, secret)


def recompute(kind: str, tensors: list, scope: bytes, secret: bytes, canonical: bool):
    rows = range(tensors[0].dims[0]) if "rows" in kind else ()
    match kind:
        case "own":
            return [own.key(scope, secret) for own in tensors]
        case "content":
            return [tensors[0].content_key(scope, secret, canonical)]
        case "structure":
            return [tensors[0].structure_key(scope, secret)]
        case "tuple":
            return [tuple_key(tensors, scope, secret, canonical)]
        case "rows":
            return [tensors[0].row(i).content_key(scope, secret, canonical) for i in rows]
        case "tuple_rows":
            return [tuple_key([t.row(i) for t in tensors], scope, secret, canonical) for i in rows]
    raise AssertionError(kind)


def columns(vector: list[str]):
    _, kind, scope, secret, flags, tensors, _ = vector
    parts = [(OwnId if kind == "own" else Tensor)(part) for part in tensors.split(";")]
    return kind, parts, bytes.fromhex(scope), bytes.fromhex(secret), flags == "canonical"


@pytest.mark.parametrize("vector", GOLDEN, ids=[v[0] for v in GOLDEN])
def test_page_alone_gives_the_golden_key(vector):
    assert ",".join(key.hex() for key in recompute(*columns(vector))) == vector[6]


def test_vectors_cover_what_the_page_lists():
    assert len(GOLDEN) >= 60
    parts = [part for vector in GOLDEN for part in columns(vector)[1]]
    used = [part for part in parts if isinstance(part, Tensor)]
    assert {tensor.dtype for tensor in used} == set(DTYPES)
    assert {len(tensor.dims) for tensor in used} >= set(range(7))
    assert {part.type for part in parts if isinstance(part, OwnId)} == {1, 2, 3}
    assert {vector[1] for vector in GOLDEN} == {
        "content",
        "own",
        "structure",
        "tuple",
        "rows",
        "tuple_rows",
    }


@pytest.mark.parametrize("vector", GOLDEN, ids=[v[0] for v in GOLDEN])
def test_python_gives_the_golden_key(vector):
    np = pytest.importorskip("numpy")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    import tensorkey as tk

    def array(tensor: Tensor):
        if tensor.params:
            dtype = np.dtype(f"{tensor.dtype}[{tensor.params.decode()}]")
            if tensor.params == b"generic":
                dtype = np.dtype(tensor.dtype)
        elif hasattr(ml_dtypes, tensor.dtype):
            dtype = np.dtype(getattr(ml_dtypes, tensor.dtype))
        elif hasattr(np, tensor.dtype):
            dtype = np.dtype(getattr(np, tensor.dtype))
        else:
            pytest.skip(f"NumPy and ml_dtypes have no {tensor.dtype}")  # C++ checks this vector
        return np.frombuffer(tensor.data, np.uint8).view(dtype).reshape(tensor.dims)

    kind, tensors, scope, secret, canonical = columns(vector)
    if kind == "own":
        pytest.skip("Python has no function for keys of the caller's own; C++ checks this vector")
    options = {"scope": scope, "secret": secret or None, "canonical": canonical}
    arrays = {tensor.path: array(tensor) for tensor in tensors}
    first = next(iter(arrays.values()))
    match kind:
        case "content":
            keys = [tk.key(first, **options)]
        case "structure":
            if scope or secret:
                pytest.skip("structure_key takes no scope in Python; C++ checks this vector")
            keys = [tk.structure_key(first)]
        case "tuple":
            keys = [tk.tuple_key(arrays, **options)]
        case "rows":
            keys = list(tk.row_keys(first, **options))
        case "tuple_rows":
            keys = list(tk.tuple_row_keys(arrays, **options))
    assert ",".join(key.hex() for key in keys) == vector[6]
