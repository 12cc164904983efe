"""Hits that are not true: found by verify, and never left to another process."""

import json
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear():
    return nn.Linear(8, 8).requires_grad_(False)


def planted(mode="guard", **options):
    """A layer whose weight was written past its guard, so that its entries are wrong."""
    cached = CachedLayer(linear(), fingerprint=mode, bypass="never", chunk=32, **options)
    x = torch.randn(32, 8)
    cached(x)
    cached(x)
    cached.inner.weight.data[0, 0] += 0.5
    return cached, x


# --- verify and on_error.


def test_without_verify_a_guard_gives_the_old_answer():
    cached, x = planted()
    assert not torch.allclose(cached(x), cached.inner(x))
    assert (cached.stats.hits, cached.stats.verified) == (64, 0)


def test_what_is_found_is_counted_and_the_next_call_is_right():
    cached, x = planted(verify=1.0)
    assert (cached.stats.verified, cached.stats.deviating) == (32, 0)
    cached(x)
    stats = cached.stats
    assert (stats.verified, stats.deviating) == (64, 32)
    expected = (x[:, 0] * 0.5).abs().max()
    assert stats.largest_deviation == pytest.approx(float(expected), rel=1e-3)
    assert torch.allclose(cached(x), cached.inner(x), atol=1e-6)  # it looked closely
    assert cached.stats.deviating == 32
    assert cached.stats.misses == 64


def test_what_is_found_is_warned_of():
    cached, x = planted(verify=1.0, on_error="warn")
    with pytest.warns(RuntimeWarning, match="verify: 32 hits of this call differ"):
        cached(x)
    cached(x)


def test_what_is_found_is_raised():
    cached, x = planted(verify=1.0, on_error="raise")
    with pytest.raises(errors.CorruptEntry, match="name it by scope= or state="):
        cached(x)
    assert torch.allclose(cached(x), cached.inner(x), atol=1e-6)


def test_what_is_found_is_dropped():
    cached, x = planted(verify=1.0, on_error="drop")
    before = cached.stats.entries
    assert before >= 32
    cached(x)
    assert cached.stats.entries <= before - 32
    for _ in range(2):
        assert torch.allclose(cached(x), cached.inner(x), atol=1e-6)
    assert cached.stats.deviating == 32
    assert cached.stats.misses == 64


def test_a_share_of_hits_is_verified_and_tolerance_is_absolute():
    cached, x = planted(verify=0.1)
    for _ in range(40):
        if cached.stats.deviating:
            break
        cached(x)
    stats = cached.stats
    assert 0 < stats.deviating <= stats.verified < stats.hits
    tolerant, x = planted(verify=1.0, tolerance=1e3)
    tolerant(x)
    assert (tolerant.stats.verified, tolerant.stats.deviating) == (64, 0)


def test_an_own_key_that_means_another_input_is_found():
    cached = CachedLayer(linear(), verify=1.0, bypass="never", chunk=32)
    x, names = torch.randn(32, 8), [f"{i}.png" for i in range(32)]
    cached.with_keys(names)(x)
    x[3] = 7
    cached.with_keys(names)(x)
    assert cached.stats.deviating == 1


# --- Rows of weights that nobody has read. The directory outlives the process.

WRITER = """
import json, os, signal, sys
import torch
from tensorkey.torch import CachedLayer
disk, way, seed = sys.argv[1], sys.argv[2], 0
torch.manual_seed(seed)
layer = torch.nn.Linear(8, 8).requires_grad_(False)
cached = CachedLayer(layer, disk=disk, bypass="never", chunk=1, probe=False)
x = torch.randn(400, 8, generator=torch.Generator().manual_seed(9))
engine = cached._engine
for i in range(2):
    cached(x[i : i + 1])
for _ in range(8):
    engine.fingerprint.observe(1e-12)  # a layer so fast that all weights are read every 1000 calls
cached(x[2:3])
cached.cache.flush()
cached(x[3:103])
pending = cached.stats.pending
changed = way.startswith("changed")
if changed:
    layer.weight.data[0, 0] += 1  # in the window: no guard sees it
    cached(x[103:203])
print(json.dumps({"pending": pending, "after": cached.stats.pending}), flush=True)
if way.endswith("flush"):
    cached.cache.flush()
if way.endswith(("flush", "killed")):
    os.kill(os.getpid(), signal.SIGKILL)
"""
READER = """
import json, sys
import torch
from tensorkey.torch import CachedLayer
disk, changed = sys.argv[1], sys.argv[2] == "changed"
torch.manual_seed(0)
layer = torch.nn.Linear(8, 8).requires_grad_(False)
x = torch.randn(400, 8, generator=torch.Generator().manual_seed(9))
cached = CachedLayer(layer, disk=disk, bypass="never", chunk=1, probe=False)
result = {}
for state in ("old", "new"):
    if state == "new":
        layer.weight.data[0, 0] += 1
        cached._engine.fingerprint.demand()
    before = cached.stats.hits
    output = torch.cat([cached(x[:103]), cached(x[103:203])])
    truth = torch.cat([layer(row[None]) for row in x[:203]])
    result[state] = {
        "hits": cached.stats.hits - before,
        "wrong": int((output != truth).any(1).sum()),
    }
print(json.dumps(result))
"""


def in_new_process(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("way", "stored"),
    [
        ("unchanged, killed", 3),
        ("unchanged, flush", 103),
        ("unchanged, exit", 103),
        ("changed, killed", 3),
        ("changed, flush", 3),
        ("changed, exit", 3),
    ],
)
def test_the_next_process_finds_no_wrong_row(tmp_path, way, stored):
    disk = tmp_path / "activations"
    wrote = in_new_process(WRITER, disk, way)
    assert wrote["pending"] >= 100
    assert wrote["after"] == wrote["pending"] + (100 if way.startswith("changed") else 0)
    found = in_new_process(READER, disk, way.partition(",")[0])
    assert found["old"]["wrong"] == found["new"]["wrong"] == 0
    assert found["old"]["hits"] == stored
    assert found["new"]["hits"] == 0
