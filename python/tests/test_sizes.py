import math

import pytest

from tensorkey import errors
from tensorkey._sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 1),
        (4096, 4096),
        ("17", 17),
        ("17 B", 17),
        ("1KB", 1000),
        ("1 KiB", 1024),
        ("1.5 KiB", 1536),
        ("2 gib", 2 << 30),
        (" 3 MB ", 3_000_000),
        ("1 TiB", 1 << 40),
        ("1TB", 10**12),
    ],
)
def test_reads_sizes(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize(
    "size",
    [0, -1, True, False, 1.5, math.nan, math.inf, None, b"1", "", "GiB", "-1 GiB", "0 KiB"]
    + ["0.0001 B", "nan", "1e3", "1 PiB", "1 GiBs", "1 2", "１ KiB"],
)
def test_refuses_what_is_no_size(size):
    with pytest.raises(errors.InvalidArgument, match="expected a positive int"):
        parse_bytes(size)


def test_writes_sizes_for_people():
    assert [format_bytes(n) for n in (0, 1023, 1024, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 TiB",
    ]
