"""Checks what a wheel holds: the module, its stub and the Python files; no archive, no header.

usage: contents.py WHEEL
"""

import re
import sys
import zipfile

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


def problems(wheel: str) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if not name.endswith("/")]
    surplus = [name for name in names if not any(re.fullmatch(p, name) for p in ALLOWED)]
    absent = [p for p in REQUIRED if not any(re.fullmatch(p, name) for name in names)]
    tag = [] if "-manylinux" in wheel else [f"not a manylinux wheel: {wheel}"]
    return (
        [f"does not belong in the wheel: {name}" for name in surplus]
        + [f"missing from the wheel: {pattern}" for pattern in absent]
        + tag
    )


if __name__ == "__main__":
    found = problems(sys.argv[1])
    print("\n".join(found) or f"{sys.argv[1]}: contents as expected")
    sys.exit(bool(found))
