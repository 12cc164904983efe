"""Writes the golden vectors of docs/key_format.md; run only for a new format version or new dtypes.

    python tests/golden/make_keys.py > tests/golden/keys.tsv

The keys come from the independent program tests/key_format_test.py, never from the library.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

random.seed(20261123)
SECRET = bytes(range(32)).hex()


def data(count: int) -> str:
    return bytes(random.randrange(256) for _ in range(count)).hex()


def vectors(dtypes: dict[str, tuple[int, int]]):
    for dtype, (_, size) in dtypes.items():
        params = {"datetime64": "ns", "timedelta64": "25s"}.get(dtype, "")
        yield f"dtype {dtype}", "content", "", "", "", f"x={dtype}|{params}|2,3|{data(6 * size)}"
        if dtype.startswith("float") or dtype.startswith("complex"):
            # Every value of one byte, or those that canonical mode changes among others.
            part = size // 2 if dtype.startswith("complex") else size
            values = bytes(range(256)) if size == 1 else b""
            for top in ("80", "7f", "ff", "7e", "7c", "fc", "00", "3f"):
                for fill in ("00", "ff", "80", "01"):
                    if size > 1:
                        values += bytes.fromhex(fill) * (part - 1) + bytes.fromhex(top)
            count = len(values) // size
            tensor = f"x={dtype}||{count}|{values.hex()}"
            yield f"canonical {dtype}", "content", "", "", "canonical", tensor
    for dims in ("", "1", "1,1", "2,3", "2,1,3", "2,2,2,2", "1,2,1,2,3", "2,1,2,1,2,2"):
        count = 1
        for dim in dims.split(",") if dims else ():
            count *= int(dim)
        yield f"shape ({dims})", "content", "", "", "", f"x=float32||{dims}|{data(4 * count)}"
    for dims in ("0", "0,3", "3,0", "0,0", "2,0,2"):
        yield f"empty ({dims})", "content", "", "", "", f"x=float32||{dims}|"
    yield "one chunk", "content", "", "", "", f"x=uint8||1024|{data(1024)}"
    yield "chunk and a byte", "content", "", "", "", f"x=uint8||1025|{data(1025)}"
    yield "several chunks", "content", "", "", "", f"x=float64||7,100|{data(5600)}"
    yield "datetime days", "content", "", "", "", f"x=datetime64|D|2|{data(16)}"
    yield "datetime generic", "content", "", "", "", f"x=datetime64|generic|2|{data(16)}"
    tensor = f"x=float32||2,2|{data(16)}"
    for scope in (b"encoder v1", "Größe".encode(), b"\x00\xff"):
        yield f"scope {scope!r}", "content", scope.hex(), "", "", tensor
    yield "long scope", "content", (b"scope " * 100).hex(), "", "", tensor
    yield "secret", "content", "", SECRET, "", tensor
    yield "scope and secret", "content", b"a".hex(), SECRET, "canonical", tensor
    for dims, count in (("", 1), ("2,3", 6), ("1,3", 3), ("0,3", 0), ("2,1,4", 8)):
        yield f"structure ({dims})", "structure", "", "", "", f"x=int16||{dims}|{data(2 * count)}"
    yield "structure, scope", "structure", b"s".hex(), SECRET, "", f"x=int16||2|{data(4)}"
    ids, mask = f"ids=int64||2,4|{data(64)}", f"mask=bool||2,4|{data(8)}"
    yield "tuple", "tuple", "", "", "", f"{ids};{mask}"
    yield "tuple, other order", "tuple", "", "", "", f"{mask};{ids}"
    yield "tuple, scope and secret", "tuple", b"a".hex(), SECRET, "", f"{ids};{mask}"
    yield "tuple of one", "tuple", "", "", "", ids
    nested = f'batch["a"][0]=float32||2|{data(8)};batch["a"][1].z=float32||2|{data(8)}'
    yield "tuple, nested paths, canonical", "tuple", "", "", "canonical", nested
    yield "rows of 64 bytes", "rows", "", "", "", f"x=float32||5,16|{data(320)}"
    yield "rows of scalars", "rows", b"s".hex(), "", "", f"x=int32||3|{data(12)}"
    yield "rows of 1 KiB", "rows", "", "", "", f"x=uint8||3,1024|{data(3072)}"
    yield "rows of 1.5 KB", "rows", "", SECRET, "", f"x=float32||2,384|{data(3072)}"
    yield "rows without elements", "rows", "", "", "", "x=float32||3,0|"
    yield "rows of a tuple", "tuple_rows", b"s".hex(), "", "", f"{ids};{mask}"
    one = b"1".hex()
    yield "own, types apart", "own", "", "", "", f"int={one};text={one};bytes={one}"
    ints = (0, -1, 7, 10, 2**63, -(10**40))
    tensor = ";".join(f"int={str(number).encode().hex()}" for number in ints)
    yield "own ints", "own", b"s".hex(), "", "", tensor
    names = ("", "img_0001.png", "Größe 3/ü", "名前", "a" * 127, "b" * 128, "c" * 3000)
    tensor = ";".join(f"text={name.encode().hex()}" for name in names)
    yield "own names, scope and secret", "own", b"s".hex(), SECRET, "", tensor
    yield "own bytes", "own", "", "", "", "bytes=;bytes=00;bytes=ff00;bytes=0000"


def main() -> None:
    golden = Path(__file__).parent / "keys.tsv"
    if not golden.exists():
        golden.write_text("")  # the module reads it at import
    import key_format_test as page

    print("name\tkind\tscope\tsecret\tflags\ttensors\tkeys")
    for vector in vectors(page.DTYPES):
        keys = page.recompute(*page.columns([*vector, ""]))
        print("\t".join([*vector, ",".join(key.hex() for key in keys)]))


if __name__ == "__main__":
    main()
