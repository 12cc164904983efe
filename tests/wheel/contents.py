"""Checks what a wheel holds: the module, its stub and the Python files; no archive, no header.

And the module exports nothing of the archives that are linked into it: another copy of zstd or
SQLite in the process would be mixed up with ours.

usage: contents.py WHEEL
"""

import io
import re
import sys
import zipfile

from elftools.elf.elffile import ELFFile

ALLOWED = (
    r"tensorkey/(\w+/)*\w+\.py",
    r"tensorkey/_core\.[\w.-]+\.so",
    r"tensorkey/_core\.pyi",
    r"tensorkey/py\.typed",
    r"tensorkey-[\w.]+\.dist-info/.+",
)
REQUIRED = (
    r"tensorkey/__init__\.py",
    r"tensorkey/_core\.[\w.-]+\.so",
    r"tensorkey/_core\.pyi",
    r"tensorkey/py\.typed",
    r".*/licenses/LICENSE",
    r".*/licenses/THIRD_PARTY_NOTICES\.md",
)


FOREIGN = re.compile(r"ZSTD|sqlite3", re.IGNORECASE)


def exported(module: bytes) -> list[str]:
    symbols = ELFFile(io.BytesIO(module)).get_section_by_name(".dynsym").iter_symbols()
    return [symbol.name for symbol in symbols if symbol["st_shndx"] != "SHN_UNDEF"]


def problems(wheel: str) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/")]
        modules = [file.read(name) for name in names if name.endswith(".so")]
    surplus = [name for name in names if not any(re.fullmatch(p, name) for p in ALLOWED)]
    absent = [p for p in REQUIRED if not any(re.fullmatch(p, name) for name in names)]
    tag = [] if "-manylinux" in wheel else [f"not a manylinux wheel: {wheel}"]
    foreign = {name for module in modules for name in exported(module) if FOREIGN.search(name)}
    return (
        [f"does not belong in the wheel: {name}" for name in surplus]
        + [f"missing from the wheel: {pattern}" for pattern in absent]
        + [f"exported, but not ours: {name}" for name in sorted(foreign)]
        + tag
    )


if __name__ == "__main__":
    found = problems(sys.argv[1])
    print("\n".join(found) or f"{sys.argv[1]}: contents as expected")
    sys.exit(bool(found))
