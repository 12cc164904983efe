"""precompute(): filling a cache from a loader, also after a kill."""

import io
import json
import signal
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset, TensorDataset  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    def forward(self, x, y=None):
        return x * 2 if y is None else x + y


def cached(**options):
    return CachedLayer(Two(), **options)


@pytest.mark.parametrize(
    "loader",
    [
        lambda: X.split(8),
        lambda: iter(X.split(8)),
        lambda: [(x,) for x in X.split(8)],
        lambda: [[x] for x in X.split(8)],
        lambda: [(x, x) for x in X.split(8)],
        lambda: [{"x": x} for x in X.split(8)],
        lambda: DataLoader(TensorDataset(X), batch_size=8),
        lambda: DataLoader(X, batch_size=8, shuffle=True),
        lambda: DataLoader([{"x": x, "y": x} for x in X], batch_size=8),
        lambda: DataLoader(Stream(), batch_size=8),
    ],
    ids=[
        "split",
        "iterator",
        "tuple",
        "list",
        "pair",
        "dict",
        "tuples",
        "tensors",
        "dicts",
        "stream",
    ],
)
def test_loaders(loader):
    layer = cached()
    done = layer.precompute(loader(), progress=False)
    assert (done.batches, done.lookups, done.hits, done.misses) == (5, 40, 0, 40)
    again = layer.precompute(loader(), progress=False)
    assert (again.lookups, again.hits, again.misses) == (40, 40, 0)
    assert layer.stats.lookups == 80


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


@pytest.mark.parametrize(
    "batches",
    [
        lambda: [(range(i, i + 8), X[i : i + 8]) for i in range(0, 40, 8)],
        lambda: [[range(i, i + 8), [X[i : i + 8]]] for i in range(0, 40, 8)],
        lambda: [(range(i, i + 8), {"x": X[i : i + 8]}) for i in range(0, 40, 8)],
        lambda: DataLoader(TensorDataset(torch.arange(40), X), batch_size=8),
        lambda: DataLoader([*enumerate(X)], batch_size=8),
    ],
)
def test_pairs_of_keys_and_inputs(batches):
    layer = cached()
    assert layer.precompute(batches(), keys=True, progress=False).misses == 40
    assert torch.equal(layer.to_table(range(40)), X * 2)


def test_functions_read_what_is_missing():
    layer, asked = cached(), []

    def batch(first):
        def load(missing):
            asked.extend(first + i for i in missing)
            return X[[first + i for i in missing]]

        return [str(i) for i in range(first, first + 8)], load

    layer.precompute([batch(0)], keys=True, progress=False)
    asked.clear()
    done = layer.precompute([batch(0), batch(8)], keys=True, progress=False)
    assert (done.hits, done.misses) == (8, 8)
    assert sorted(set(asked)) == [*range(8, 16)]


def test_trainable_layers_are_filled_too():
    layer = CachedLayer(nn.Linear(8, 8))
    assert layer.precompute(X.split(8), progress=False).misses == 40
    assert layer.stats.bypasses == {}


def test_bypass_auto_does_not_step_aside():
    layer = cached(bypass="auto")
    done = layer.precompute([torch.full((4, 2), float(i)) for i in range(300)], progress=False)
    assert done.batches == 300
    assert layer.bypass == "auto"
    with pytest.raises(TypeError):
        layer.precompute([object()], progress=False)
    assert layer.bypass == "auto"


def test_switched_off_nothing_is_filled():
    layer = cached()
    with tk.disabled():
        done = layer.precompute(X.split(8), progress=False)
    assert done.misses == 0
    assert done.bypasses == {"tensorkey.disabled()": 5}
    assert layer.precompute([], progress=False).lookups == 0


def test_a_directory_has_it_all_when_it_returns(tmp_path):
    layer = cached(disk=tmp_path / "d")
    layer.precompute(X.split(8), progress=False)
    assert layer.stats.pending == 0
    assert layer.stats.cache.disk.insertions >= 40


FILL = """
import os, signal, sys, torch
from tensorkey.torch import CachedLayer
torch.manual_seed(0)
layer = CachedLayer(torch.nn.Linear(8, 8), disk=sys.argv[1])
x = torch.arange(320.0).reshape(40, 8)

def loader(end):
    for i, batch in enumerate(x.split(8)):
        if i == end:
            layer.cache.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        yield range(8 * i, 8 * i + 8), batch

done = layer.precompute(loader(int(sys.argv[2])), keys=True, progress=False)
import json
print(json.dumps([done.hits, done.misses]))
"""


def test_a_fill_that_was_killed_goes_on(tmp_path):
    def fill(end):
        command = [sys.executable, "-c", FILL, str(tmp_path / "d"), str(end)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    killed = fill(3)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = fill(-1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [24, 16]


# --- The bar.


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("progress", [True, None])
def test_a_bar_on_a_terminal(progress, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    cached().precompute(X.split(8), progress=progress)
    shown = screen.getvalue()
    for part in ("precompute", "5/5", "rows/s", "0% hits", "new in the end"):
        assert part in shown, part


@pytest.mark.parametrize("progress", [False, None])
def test_no_bar_elsewhere(progress, capsys):
    cached().precompute(X.split(8), progress=progress)
    assert capsys.readouterr() == ("", "")


def test_no_bar_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    cached().precompute(X.split(8))
    assert screen.getvalue() == ""
    with pytest.raises(errors.Unsupported, match=r"pip install tensorkey\[cli\]"):
        cached().precompute(X.split(8), progress=True)


def test_the_bar_ends_with_an_exception(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys, "stderr", Terminal())

    def loader():
        yield X[:8]
        raise OSError("a disk is away")

    layer = cached()
    with pytest.raises(OSError, match="a disk is away"):
        layer.precompute(loader(), progress=True)
    assert layer.stats.misses == 8
