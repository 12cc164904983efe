"""BLAKE3 and XXH3 judged from outside: the `blake3` and `xxhash` packages and the b3sum program."""

from __future__ import annotations

import random
import shutil
import subprocess

import numpy as np
import pytest
from blake3 import blake3

from tensorkey import _core

TARGETS = _core.digest_targets()
KEY = bytes(range(32))


@pytest.fixture(params=TARGETS)
def target(request):
    _core.force_digest_target(request.param)
    yield request.param
    _core.force_digest_target(None)


def random_bytes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def test_there_is_a_plain_target_beside_the_wide_ones():
    assert TARGETS[-1] == "portable"
    with pytest.raises(ValueError, match="no target"):
        _core.force_digest_target("avx1024")


def test_every_short_length(target):
    data = random_bytes(4200)
    for length in range(4201):
        piece = data[:length]
        assert _core.blake3(piece) == blake3(piece).digest(), length
        assert _core.blake3(piece, key=KEY) == blake3(piece, key=KEY).digest(), length


def test_long_lengths(target):
    data = random_bytes(3_000_000, 1)
    rng = random.Random(1)
    for length in [rng.randrange(4200, len(data)) for _ in range(40)] + [1 << 20, (1 << 20) + 1]:
        piece = data[rng.randrange(64) :][:length]
        assert _core.blake3(piece) == blake3(piece).digest(), length


def test_every_row_length(target):
    rng = random.Random(2)
    lengths = [*range(0, 200), *(rng.randrange(200, 6000) for _ in range(60)), 1024, 1025, 2048]
    for length in lengths:
        rows = random_bytes(length * 37, length).reshape(37, length)
        for key in (None, KEY):
            expected = b"".join(blake3(row, key=key).digest() for row in rows)
            assert _core.blake3_rows(rows, key=key) == expected, (length, key)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_a_digest(threads):
    data = random_bytes(33_333_333, 3)
    assert _core.blake3(data, threads=threads) == blake3(data).digest()
    rows = data[:32_000_000].reshape(4, 8_000_000)
    expected = b"".join(blake3(row).digest() for row in rows)
    assert _core.blake3_rows(rows, threads=threads) == expected


def test_b3sum_agrees(tmp_path):
    assert shutil.which("b3sum"), "the program b3sum is missing; on Debian: apt-get install b3sum"
    for length in (0, 1, 1023, 1024, 1025, 70_000, 5_000_001):
        data = random_bytes(length, length)
        path = tmp_path / str(length)
        path.write_bytes(data.tobytes())
        said = subprocess.run(["b3sum", "--no-names", path], capture_output=True, check=True)
        assert said.stdout.decode().strip() == _core.blake3(data).hex()


def test_bad_arguments():
    with pytest.raises(ValueError, match="exactly 32"):
        _core.blake3(b"", key=b"short")
    with pytest.raises(ValueError, match="C-contiguous"):
        _core.blake3(np.zeros((4, 4), np.uint8).T[1:])
    with pytest.raises(ValueError, match="at least one dim"):
        _core.blake3_rows(np.uint8(1))


def test_change_digest_sees_dtype_shape_elements_and_order():
    a, b = np.arange(6.0), np.arange(6.0, 12.0)
    digest = _core.change_digest
    seen = [
        digest([a, b]),
        digest([b, a]),
        digest([a]),
        digest([]),
        digest([a.reshape(2, 3), b]),
        digest([a.view(np.int64), b]),
        digest([a, np.nextafter(b, 99)]),
        digest([np.concatenate([a, b])]),
    ]
    assert len(set(seen)) == len(seen)
    assert digest([a.copy(), b.reshape(2, 3).T.copy().T.reshape(6)]) == seen[0]
