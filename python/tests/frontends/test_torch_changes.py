"""After any change of a cached layer, however made, no old answer appears."""

import copy
import functools
import random

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey.testing import run_in_chunks  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder():
    layer = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8))
    return layer.eval().requires_grad_(False)


def changes():
    def step(layer):
        layer.requires_grad_(True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        layer(torch.ones(2, 16)).square().sum().backward()
        optimizer.step()
        layer.requires_grad_(False)

    def load(assign):
        def change(layer):
            state = {key: value * 2 + 1 for key, value in layer.state_dict().items()}
            layer.load_state_dict(state, assign=assign)
            layer.requires_grad_(False)

        return change

    def replace(layer):
        layer[0] = nn.Linear(16, 32).requires_grad_(False)

    return {
        "step": step,
        "copy_": lambda m: m[0].weight.copy_(torch.ones(32, 16)),
        "data": lambda m: m[0].weight.data.add_(1),
        "foreach": lambda m: torch._foreach_add_([p.data for p in m.parameters()], 1.0),
        "numpy": lambda m: m[0].weight.numpy().__setitem__((0, 0), 9.0),
        "load": load(False),
        "assign": load(True),
        "replaced submodule": replace,
        "replaced Parameter": lambda m: setattr(
            m[3], "bias", nn.Parameter(torch.ones(8), requires_grad=False)
        ),
        "eps": lambda m: setattr(m[1], "eps", 1.0),
        "instance forward": lambda m: setattr(m[2], "forward", torch.relu),
    }


# A guard sees these at once; the others the next strict check (test_torch_fingerprint.py).
GUARDED = ("step", "copy_", "load", "assign", "replaced submodule", "replaced Parameter")


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "strict") for name in changes()]
    + [(name, mode) for name in GUARDED for mode in ("auto", "guard")],
)
def test_after_a_change_no_old_answer(name, mode):
    layer = encoder()
    cached = CachedLayer(layer, fingerprint=mode)
    x = torch.randn(32, 16)
    before = cached(x)
    kept = copy.deepcopy(layer.state_dict())
    changes()[name](layer)
    after = cached(x)
    assert not torch.equal(after, before)
    assert torch.allclose(after, layer(x), atol=1e-5)
    assert cached.stats.hits == 0
    if name in ("step", "copy_", "data", "foreach", "numpy", "load"):
        layer.load_state_dict(kept)
        assert torch.equal(cached(x), before)
        assert cached.stats.hits == 32  # earlier entries are found again


def test_batch_statistics_count():
    layer = nn.BatchNorm1d(16).requires_grad_(False).eval()
    cached = CachedLayer(layer)
    x = torch.randn(32, 16)
    before = cached(x)
    layer.train()(x)
    layer.eval()
    assert not torch.equal(cached(x), before)


def test_the_environment_counts():
    cached = CachedLayer(encoder())
    x = torch.randn(32, 16)
    cached(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        cached(x)
        assert cached.stats.hits == 0
    finally:
        torch.set_num_threads(threads)
    with torch.autocast("cpu", torch.bfloat16):
        assert cached(x).dtype == torch.bfloat16
    assert cached(x).dtype == torch.float32
    assert cached.stats.hits == 32


def test_scopes_and_chunks_do_not_share():
    cache = tk.ActivationCache("16 MiB")
    x, layer = torch.randn(32, 16), encoder()
    chunks = {}
    for hits in (0, 32):
        for scope in ("", "a", b"b"):
            for chunk in (32, 1):
                cached = CachedLayer(layer, cache=cache, scope=scope, chunk=chunk)
                cached(x)
                assert (cached.stats.hits, cached.stats.misses) == (hits, 32 - hits)
                chunks[chunk, hits] = cached.stats.chunk
    # Who finds that others run one row at a time follows them.
    assert chunks == {(32, 0): 32, (1, 0): 1, (32, 32): 1, (1, 32): 1}


@torch.no_grad()
def run_rows(layer, x, rows):
    return layer(x.index_select(0, torch.tensor(rows)))


def test_any_interleaving_of_calls_and_changes_is_exact():
    """Against the layer run in chunks at that moment, over random walks."""
    source = random.Random(5)
    for walk in range(4):
        layer = encoder()
        memory = source.choice(["1 GiB", "64 KiB"])
        options = {"chunk": 32, "memory": memory, "bypass": "never"}
        cached = CachedLayer(layer, fingerprint="strict", **options)
        x = torch.randn(60, 16)
        kept = [copy.deepcopy(layer.state_dict())]
        moves = list(changes().values())
        for step in range(60):
            move = source.random()
            if move < 0.15:
                source.choice(moves[:6])(layer)
                kept.append(copy.deepcopy(layer.state_dict()))
            elif move < 0.3:
                layer.load_state_dict(source.choice(kept))
            elif move < 0.35:
                cached.cache_clear()
            rows = [source.randrange(60) for _ in range(source.randint(1, 70))]
            output = cached(x[rows])
            truth = torch.stack(run_in_chunks(functools.partial(run_rows, layer, x), rows, 32))
            assert torch.equal(output, truth), (walk, step)
        assert cached.stats.bypasses == {}
