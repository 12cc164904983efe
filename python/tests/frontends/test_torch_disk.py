"""Cached layers with a directory: warm in the next process and in workers, never wrong."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer, tensor  # noqa: E402

# Other tests may have imported JAX, whose threads no worker here needs.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning"),
]
METHODS = ["fork", "spawn"]
# Entries beside rows: how outputs are made, for each state of the weights; what the probe found;
# and in which environment rows were stored.
FORM = VERDICT = PLACE = 1
SECRET, OTHER_SECRET = bytes(range(32)), bytes(32)


@pytest.fixture
def disk(tmp_path) -> Path:
    return tmp_path / "activations"


def in_new_process(program: str, *arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- A second process.

PROGRAM = """
import json, sys
import torch
from tensorkey.torch import CachedLayer
disk, seed = sys.argv[1], int(sys.argv[2])
options = json.loads(sys.argv[3])
if "secret" in options:
    options["secret"] = bytes.fromhex(options["secret"])
torch.manual_seed(seed)
layer = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.GELU(), torch.nn.Linear(24, 8))
layer.eval().requires_grad_(False)
x = torch.randn(80, 16, generator=torch.Generator().manual_seed(9))
cached = CachedLayer(layer, disk=disk, bypass="never", **options)
bits = cached(x).view(torch.int32).tolist()
assert cached.cache.flush()
stats = cached.stats
print(json.dumps({"bits": bits, "hits": stats.hits, "misses": stats.misses,
                  "stored": stats.cache.stored_hits, "runs": stats.probe_runs,
                  "corrupt": stats.cache.disk.corrupt, "entries": stats.cache.disk.entries}))
"""


def run(disk: Path, seed: int = 0, **options) -> dict:
    return in_new_process(PROGRAM, disk, seed, json.dumps(options))


def test_a_second_process_starts_warm_and_bit_identical(disk):
    first, second = run(disk), run(disk)
    assert (first["hits"], first["misses"]) == (0, 80)
    assert (second["hits"], second["misses"], second["stored"]) == (80, 0, 80 + FORM + VERDICT)
    assert first["bits"] == second["bits"]


def test_other_weights_miss(disk):
    first, other, again = run(disk), run(disk, seed=1), run(disk)
    assert (other["hits"], other["misses"]) == (0, 80)
    assert other["entries"] == 160 + 2 * FORM + VERDICT + PLACE
    assert other["bits"] != first["bits"]
    assert again["hits"] == 80
    assert again["bits"] == first["bits"]


@pytest.mark.parametrize("change", [{"scope": "v2"}, {"codec": "fp16"}, {"chunk": 1}])
def test_other_options_miss(disk, change):
    run(disk)
    assert run(disk, **change)["misses"] == 80
    assert run(disk, **change)["hits"] == 80


def test_a_secret_keeps_strangers_out(disk):
    first = run(disk, secret=SECRET.hex())
    assert run(disk, secret=SECRET.hex())["hits"] == 80
    for options in ({}, {"secret": OTHER_SECRET.hex()}):
        stranger = run(disk, **options)
        assert (stranger["hits"], stranger["misses"]) == (0, 80)
        assert stranger["bits"] == first["bits"]
    assert run(disk, secret=SECRET.hex())["hits"] == 80


def test_damaged_files_cost_time_and_nothing_else(disk):
    first = run(disk)
    for segment in disk.glob("*.seg"):
        data = bytearray(segment.read_bytes())
        for at in range(100, len(data) // 2, 512):
            data[at] ^= 1
        segment.write_bytes(data)
    second = run(disk)
    assert second["bits"] == first["bits"]
    assert second["misses"] > 0
    assert 0 <= second["corrupt"] - second["misses"] <= FORM + VERDICT + PLACE
    assert run(disk)["hits"] == 80


# --- Options and copies.


def frozen(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8)).requires_grad_(False)


def cached_layer(disk: Path, seed: int = 0, **options) -> CachedLayer:
    return CachedLayer(frozen(seed), disk=disk, bypass="never", chunk=1, probe=False, **options)


def test_a_cache_and_a_disk_exclude_each_other(disk):
    cache = tk.ActivationCache("1 MiB")
    for option in ({"disk": disk}, {"disk_limit": "1 GiB"}):
        with pytest.raises(errors.InvalidArgument, match="expected one of them"):
            CachedLayer(frozen(), cache=cache, **option)
    with pytest.raises(errors.InvalidArgument, match="disk_limit is given without disk"):
        CachedLayer(frozen(), disk_limit="1 GiB")
    assert not disk.exists()
    disk.write_text("a file")
    with pytest.raises(errors.StoreUnavailable, match="is no directory"):
        CachedLayer(frozen(), disk=disk)


def test_layers_share_a_directory_and_never_answers(disk):
    x = torch.randn(20, 16)
    one, other = cached_layer(disk), cached_layer(disk, seed=1)
    assert torch.equal(one(x), CachedLayer(frozen(), chunk=1, probe=False)(x))
    assert torch.equal(other(x), CachedLayer(frozen(1), chunk=1, probe=False)(x))
    assert one.cache.flush()
    assert other.cache.flush()
    assert one.stats.cache.disk.entries == 40 + 2 * FORM + PLACE
    assert one.stats.cache.disk.bound == 10 << 30
    one.cache_clear()  # this layer's entries
    assert one.stats.cache.disk.entries == 20 + FORM + PLACE
    third = cached_layer(disk, seed=1, disk_limit="8 MiB")
    third(x)
    assert third.stats.hits == 20
    assert third.stats.cache.disk.bound == 8 << 20
    assert "disk" in str(third.stats)


def test_copies_have_the_directory(disk):
    x = torch.randn(20, 16)
    cached = cached_layer(disk, memory="3 MiB")
    expected = cached(x)
    assert cached.cache.flush()
    shared = CachedLayer(frozen(), cache=cached.cache, bypass="never", chunk=1, probe=False)
    twins = [copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))]
    twins += [pickle.loads(pickle.dumps(shared))]
    for twin in twins:
        assert twin.cache is not cached.cache
        assert twin.cache.disk == str(disk)
        assert twin.stats.bound == 3 << 20
        assert torch.equal(twin(x), expected)
        assert (twin.stats.hits, twin.stats.misses) == (20, 0)
    assert copy.deepcopy(shared).cache is cached.cache


def test_a_pickle_has_no_secret(disk):
    x = torch.randn(20, 16)
    cached = cached_layer(disk, secret=SECRET)
    expected = cached(x)
    assert cached.cache.flush()
    data = pickle.dumps(cached)
    assert SECRET not in data
    loaded = pickle.loads(data)
    assert torch.equal(loaded(x), expected)
    assert loaded.stats.misses == 20
    twin = copy.deepcopy(cached)  # in the same process it is the twin's too
    assert torch.equal(twin(x), expected)
    assert twin.stats.hits == 20


# --- Workers of a DataLoader.


class Rows(Dataset):
    """Rows of random numbers, each encoded in the worker."""

    def __init__(self, disk: Path, count: int = 64) -> None:
        self.disk = disk
        self.rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.rows)


class EncodedRows(Rows):
    """By a cached layer, which is made in the parent and travels to the workers."""

    def __init__(self, disk: Path, count: int = 64) -> None:
        super().__init__(disk, count)
        self.layer = cached_layer(disk)

    def __getitem__(self, i: int) -> tuple:
        before = self.layer.stats.hits
        out = self.layer(self.rows[i : i + 1])[0]
        return out, self.layer.stats.hits - before


class KeptRows(Rows):
    """By hand, with a cache that the worker makes."""

    cache: tk.ActivationCache | None = None

    def __getitem__(self, i: int) -> tuple:
        if self.cache is None:
            self.cache = tk.ActivationCache("1 MiB", disk=self.disk)
        runs = []

        def compute() -> torch.Tensor:
            runs.append(i)
            return self.rows[i] * 2

        entry = self.cache.get_or_compute(tk.key(self.rows[i], scope="times 2"), compute)
        return tensor(entry[0]), 1 - len(runs)

    def __getstate__(self) -> dict:
        return vars(self) | {"cache": None}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [EncodedRows, KeptRows])
def test_workers_of_a_loader_read_and_write(disk, kind, method):
    # Workers run with one thread, which is part of the environment that a layer's keys have.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = kind(disk)
        loader = DataLoader(
            data, batch_size=8, num_workers=2, multiprocessing_context=method, shuffle=True
        )
        hits = []
        for _ in range(2):  # each time with new workers
            rows, found = zip(*loader, strict=True)
            assert sum(len(batch) for batch in rows) == 64
            hits.append(int(torch.cat(found).sum()))
        assert hits == [0, 64]
        if kind is EncodedRows:
            plain = frozen()
            expected = torch.cat([plain(row[None]) for row in data.rows])
            fresh = cached_layer(disk)
            assert torch.equal(fresh(data.rows), expected)
            assert fresh.stats.hits == 64
        kept = 64 + (FORM + PLACE if kind is EncodedRows else 0)
        assert tk.ActivationCache(None, disk=disk).stats.disk.entries == kept
    finally:
        torch.set_num_threads(threads)


# --- One run of a row over processes.

RANK = """
import os, sys, time
import torch
from tensorkey.torch import CachedLayer
disk, log = sys.argv[1:]
class Slow(torch.nn.Module):
    def forward(self, x):
        os.write(LOG, b"".join(b"%d " % int(row[0]) for row in x if row[0] >= 0))
        time.sleep(0.05)
        return x * 2
LOG = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
from tensorkey import ActivationCache
cache = ActivationCache("1 MiB", disk=disk, lease_timeout=60)
cached = CachedLayer(Slow(), cache=cache, bypass="never", chunk=1, probe=False)
cached(torch.full((1, 4), -1.0))  # settles what is found out at the first call
x = torch.arange(24.0)[:, None].repeat(1, 4)
print("ready", flush=True)
sys.stdin.readline()
assert torch.equal(cached(x), x * 2)
"""


def test_ranks_that_ask_for_the_same_rows_run_each_once(disk, tmp_path):
    log = tmp_path / "log"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, disk, log], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for rank in ranks:
        assert rank.stdout.readline() == b"ready\n"
    for rank in ranks:
        rank.stdin.write(b"go\n")
        rank.stdin.flush()
    for rank in ranks:
        rank.communicate(timeout=120)
    assert [rank.returncode for rank in ranks] == [0, 0]
    run_rows = sorted(map(int, log.read_text().split()))
    assert sorted(set(run_rows)) == list(range(24))
    assert len(run_rows) == 24


FORK = """
import os, signal, sys
import torch
from tensorkey.torch import CachedLayer
torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork
layer = torch.nn.Linear(16, 8).requires_grad_(False)
cached = CachedLayer(layer, disk=sys.argv[1], bypass="never", chunk=1, probe=False)
x = torch.randn(20, 16)
expected = cached(x[:10])
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = torch.equal(cached(x[:10]), expected)
    cached(x)
    os._exit(0 if same and cached.cache.flush(30) else 1)
assert os.waitpid(child, 0)[1] == 0
cached.cache.refresh()
cached(x)
print(cached.stats.hits)
"""


def test_a_forked_child_goes_on(disk):
    assert in_new_process(FORK, disk) == 20
