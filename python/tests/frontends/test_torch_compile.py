"""torch.compile: an eager island by default, an operator where asked; right for any batch size."""

import copy
import gc
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

# PyTorch's own, on the way into the compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated.*:FutureWarning"),
]
BATCHES = (4, 7, 13, 64, 5, 30, 2, 100, 1)
KINDS = ["island", "operator"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def encoder():
    layer = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    return layer.eval().requires_grad_(False)


class Model(nn.Module):
    """Something before the layer, a head after it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer(x * 2))


def compiled(model, kind, backend="eager"):
    return torch.compile(model, backend=backend, fullgraph=kind == "operator")


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def breaks():
    return sum(torch._dynamo.utils.counters["graph_break"].values())


# --- Both ways.


@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_size_is_right_and_cached(kind):
    cached = CachedLayer(encoder(), chunk=1, compile=kind, bypass="never")
    plain = Model(cached.inner)
    model = Model(cached)
    model.head = plain.head
    run = compiled(model, kind)
    for _ in range(2):
        for rows in BATCHES:
            x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
            assert torch.allclose(run(x), plain(x), atol=1e-5)
    assert cached.stats.hits == cached.stats.misses == sum(BATCHES)
    assert cached.stats.bypasses == {}
    if kind == "operator":
        assert graphs() <= 3
        assert breaks() == 0
    else:
        assert graphs() <= 6  # before and after the island
        assert breaks() == graphs()  # for each form of the batch, one there and one in the layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_head_trains(kind, backend):
    cached = CachedLayer(encoder(), chunk=1, compile=kind, bypass="never")
    model = Model(cached)
    plain = Model(cached.inner)
    plain.head.load_state_dict(model.head.state_dict())
    run = compiled(model, kind, backend)
    x = torch.randn(9, 16)
    for _ in range(2):
        run(x).square().sum().backward()
        plain(x).square().sum().backward()
    assert torch.allclose(model.head.weight.grad, plain.head.weight.grad, rtol=1e-4, atol=1e-6)
    assert cached.stats.hits == 9


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_layer_and_its_input(kind):
    layer = encoder()
    cached = CachedLayer(layer, chunk=1, compile=kind, bypass="never")
    run = compiled(cached, kind, "aot_eager")
    x = torch.randn(5, 16)
    run(x)
    layer[0].requires_grad_(True)
    run(x).sum().backward()
    assert layer[0].weight.grad is not None
    layer.requires_grad_(False)
    run(x)
    assert cached.stats.hits == 5
    x.requires_grad_(True)
    run(x).sum().backward()
    expected = torch.autograd.grad(layer(x).sum(), x)[0]
    assert torch.allclose(x.grad, expected, atol=1e-6)
    assert cached.stats.lookups == 10


@pytest.mark.parametrize("kind", KINDS)
def test_changed_weights_change_the_answer(kind):
    options = {"chunk": 1, "bypass": "never", "fingerprint": "strict"}
    cached = CachedLayer(encoder(), compile=kind, **options)
    run = compiled(cached, kind)
    x = torch.randn(5, 16)
    before = run(x)
    cached.inner[0].weight.data.mul_(2)
    assert torch.allclose(run(x), cached.inner(x), atol=1e-6)
    cached.inner[2] = nn.Linear(32, 8).requires_grad_(False)
    assert torch.allclose(run(x), cached.inner(x), atol=1e-6)
    assert not torch.equal(run(x), before)
    assert cached.stats.misses == 15


@pytest.mark.parametrize("kind", KINDS)
def test_two_layers_in_one_model(kind):
    first = CachedLayer(nn.Linear(4, 4).requires_grad_(False), chunk=1, compile=kind)
    second = CachedLayer(nn.Linear(4, 4).requires_grad_(False), chunk=1, compile=kind)
    first.bypass = second.bypass = "never"
    run = compiled(nn.Sequential(first, nn.ReLU(), second), kind)
    x = torch.randn(6, 4)
    for _ in range(2):
        assert torch.allclose(run(x), second.inner(first.inner(x).relu()), atol=1e-6)
    assert (first.stats.hits, second.stats.hits) == (6, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_mode_and_autocast(kind):
    cached = CachedLayer(encoder(), chunk=1, compile=kind, bypass="never")
    run = compiled(cached, kind, "aot_eager")
    x = torch.randn(5, 16)
    with torch.inference_mode():
        inferred = run(x)
    assert torch.allclose(inferred, cached.inner(x), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            half = run(x)
            assert half.dtype == torch.bfloat16
            assert torch.allclose(half, cached.inner(x), atol=1e-2)
    assert run(x).dtype == torch.float32
    assert cached.stats.misses == 10
    assert cached.stats.bypasses == {}


def test_an_island_keeps_eager_entries():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    x = torch.randn(5, 16)
    expected = cached(x)
    run = compiled(Model(cached), "island")
    run(x / 2)
    assert cached.stats.hits == 5
    assert torch.equal(cached(x), expected)


def test_the_whole_graph_needs_the_operator_and_the_error_says_so():
    run = torch.compile(CachedLayer(encoder()), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile='operator'"):
        run(torch.randn(4, 16))
    with pytest.raises(errors.InvalidArgument, match="'island' or 'operator'"):
        CachedLayer(encoder(), compile="graph")


def test_the_method_compile_of_the_wrapper():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    cached.compile(backend="eager")
    x = torch.randn(5, 16)
    assert torch.allclose(cached(x), cached.inner(x), atol=1e-6)
    cached(x)
    assert cached.stats.hits == 5
    assert torch.allclose(pickle.loads(pickle.dumps(cached))(x), cached.inner(x), atol=1e-6)


def test_a_layer_compiled_inside_runs_compiled():
    seen = []

    def backend(graph, example):
        seen.append(graph)
        return graph

    inner = torch.compile(encoder(), backend=backend)
    run = torch.compile(Model(CachedLayer(inner, chunk=1, bypass="never")), backend="eager")
    x = torch.randn(5, 16)
    assert torch.allclose(run(x), run(x))
    assert seen


def test_eager_and_compiled_layers_share_no_answers():
    cache = tk.ActivationCache("1 MiB")
    layer = encoder()
    eager = CachedLayer(layer, cache=cache, bypass="never")
    x = torch.randn(20, 16)
    eager(x)
    compiled = CachedLayer(torch.compile(layer, backend="eager"), cache=cache, bypass="never")
    for _ in range(2):
        assert torch.allclose(compiled(x), layer(x), atol=1e-6)
    assert compiled.stats.misses == compiled.stats.hits == 20
    eager(x)
    assert eager.stats.hits == 20
    layer.compile(backend="eager")  # in place
    assert torch.allclose(eager(x), layer(x), atol=1e-6)
    assert (eager.stats.hits, eager.stats.misses) == (20, 40)


# --- The operator.


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(11, 6, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def test_batch_and_length_are_symbolic():
    cached = CachedLayer(
        Recurrent().requires_grad_(False), chunk=1, compile="operator", bypass="never"
    )
    run = torch.compile(lambda x: cached(x) + 1, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows, length in ((4, 5), (7, 3), (3, 9), (5, 4)):
        x = torch.randn(rows, length, 11)
        assert torch.allclose(run(x), cached.inner(x) + 1, atol=1e-6)
    assert graphs() == 1


def the_call(*args, autocast="", **kwargs):
    from tensorkey._torch_compile import fold

    parts = [], [], []
    nest = fold((args, kwargs), *parts)
    return repr((nest, autocast)), *parts


@pytest.mark.parametrize("autocast", ["", "torch.bfloat16"])
def test_opcheck(autocast):
    for layer in (encoder(), nn.Identity(), nn.Sequential(nn.ReLU(inplace=True), nn.Flatten())):
        cached = CachedLayer(layer, chunk=1, compile="operator", bypass="never")
        for _ in range(2):
            operator = vars(cached)["_operator"]
            arguments = (operator.handle, *the_call(torch.randn(3, 16), autocast=autocast))
            result = torch.library.opcheck(torch.ops.tensorkey.cached, arguments)
            assert set(result.values()) == {"SUCCESS"}


def test_a_dead_handle_is_named():
    cached = CachedLayer(encoder(), compile="operator")
    handle = vars(cached)["_operator"].handle
    arguments = the_call(torch.randn(3, 16))
    del cached
    gc.collect()
    with pytest.raises(errors.InvalidArgument, match=f"no layer with the handle {handle}"):
        torch.ops.tensorkey.cached(handle, *arguments)


def test_copies_have_handles_of_their_own():
    cached = CachedLayer(encoder(), chunk=1, compile="operator", bypass="never")
    twins = [copy.deepcopy(cached), copy.copy(cached), pickle.loads(pickle.dumps(cached))]
    assert len({vars(layer)["_operator"].handle for layer in (cached, *twins)}) == 4
    twins[0].inner[0].weight.data.zero_()
    x = torch.randn(4, 16)
    for layer in (cached, *twins):
        run = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.allclose(run(x), layer.inner(x), atol=1e-6)
        assert layer.stats.misses == 4


def test_trainable_weights_put_in_later_are_not_lost():
    cached = CachedLayer(encoder(), chunk=1, compile="operator", bypass="never")
    run = torch.compile(cached, backend="eager", fullgraph=True)
    x = torch.randn(4, 16)
    run(x)
    cached.inner[0].weight = nn.Parameter(torch.ones(32, 16))
    run(x).sum().backward()
    assert cached.inner[0].weight.grad is not None
    cached.requires_grad_(False)
    run(x)
    cached.inner[2] = nn.Linear(32, 8)
    with pytest.raises(errors.Unsupported, match="the next call compiles anew"):
        run(x)
    run(x).sum().backward()
    assert cached.inner[2].weight.grad is not None


class Pair(nn.Module):
    """A nest in, a nest out."""

    def forward(self, x, options, scale=1.0):
        return {"sum": x["a"] + options[0], "none": None, "more": [x["b"] * scale]}


def test_nests_of_plain_python():
    cached = CachedLayer(Pair(), chunk=1, compile="operator", bypass="never")
    run = torch.compile(lambda *a, **k: cached(*a, **k), backend="eager", fullgraph=True)
    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}
    for scale in (2.0, 3.0, 4, 5, True, float("inf")):
        result = run(x, (torch.ones(3, 2), "text"), scale=scale)
        assert list(result) == ["sum", "none", "more"]
        assert result["none"] is None
        assert torch.equal(result["sum"], x["a"] + 1)
        assert torch.equal(result["more"][0], x["b"] * scale)


def test_what_no_operator_takes_is_named():
    cached = CachedLayer(Pair(), chunk=1, compile="operator")
    x = {"a": torch.randn(3, 2), "b": torch.randn(3, 2)}
    for scale in (b"bytes", {1: 2}):
        run = torch.compile(lambda *a, **k: cached(*a, **k), backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="compile='operator'"):
            run(x, (torch.ones(3, 2), "text"), scale=scale)


class Unregistered(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.ones(1, 2)

    def forward(self, x):
        return x + self.table


def test_a_layer_with_tensors_that_no_registry_has_needs_the_island():
    cached = CachedLayer(Unregistered(), chunk=1, compile="operator")
    x = torch.randn(3, 2)
    assert torch.equal(cached(x), x + 1)
    with pytest.raises(Exception, match="neither parameters nor buffers"):
        torch.compile(cached, backend="eager", fullgraph=True)(x)


def test_one_code_for_many_layers():
    @torch.compile(backend="eager", fullgraph=True)
    def run(layer, x):
        return layer(x) + 1

    x = torch.ones(3, 16)
    for _ in range(4):
        cached = CachedLayer(encoder(), chunk=1, compile="operator", bypass="never")
        assert torch.allclose(run(cached, x), cached.inner(x) + 1, atol=1e-6)
        assert cached.stats.misses == 1
