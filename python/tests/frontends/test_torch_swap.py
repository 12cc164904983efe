"""Functions, methods, and swapping cached layers into a model and out of it."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer, cache_submodule, cached, uncache  # noqa: E402

RECORDS = 2  # entries of a plan beside its rows: what the probe found, how outputs are made


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def frozen(*sizes):
    return nn.Linear(*sizes).requires_grad_(False)


# --- Functions.


def test_a_function_of_modules_is_cached():
    first, second = frozen(8, 4), nn.BatchNorm1d(4).requires_grad_(False).eval()
    options = {"memory": "1 MiB", "fingerprint": "strict"}
    layer = cached(lambda x: second(first(x)).relu(), modules=[first, second], **options)
    x = torch.randn(20, 8)
    expected = second(first(x)).relu()
    for _ in range(2):
        assert torch.allclose(layer(x), expected, atol=1e-6)
    assert (layer.stats.hits, layer.stats.misses) == (20, 20)
    for change in (first.weight.data.mul_, second.running_mean.add_):
        change(2)
        assert torch.allclose(layer(x), second(first(x)).relu(), atol=1e-6)
        assert not torch.allclose(layer(x), expected, atol=1e-3)
    assert layer.stats.misses == 60
    assert layer.stats.bound == 1 << 20


def test_a_function_owns_its_modules():
    encoder = nn.Sequential(nn.Linear(8, 4), nn.Dropout())
    layer = cached(lambda x: encoder(x), modules=[encoder])
    assert list(layer.state_dict()) == ["0.0.weight", "0.0.bias"]
    layer.eval().requires_grad_(False).double()
    assert not encoder[1].training
    assert encoder[0].weight.dtype == torch.float64
    with torch.no_grad():
        weights = {name: torch.ones_like(value) for name, value in layer.state_dict().items()}
        called = torch.func.functional_call(layer, weights, (torch.ones(3, 8).double(),))
    assert torch.equal(called, torch.full((3, 4), 9.0).double())


def test_what_a_function_encloses_counts():
    class Scale:
        def __init__(self, by):
            self.by = by

    def times(factor):
        return cached(lambda x: x * factor, modules=[], cache=cache)

    cache = tk.ActivationCache("1 MiB")
    x = torch.randn(20, 4)
    for factor in (2.0, 3.0, torch.tensor(4.0)):
        assert torch.equal(times(factor)(x), x * factor)
    assert torch.equal(cached(lambda x: x + 1, [], cache=cache)(x), x + 1)
    assert len(cache) == 80 + 4 * RECORDS


HIDDEN = frozen(8, 4)


def test_modules_that_are_missing_are_named():
    encoder, other = frozen(8, 4), frozen(8, 4)
    with pytest.raises(errors.InvalidArgument, match="the module 'encoder', which is not in"):
        cached(lambda x: encoder(x) + other(x), modules=[other])
    with pytest.raises(errors.InvalidArgument, match="the module 'HIDDEN'"):
        cached(lambda x: [HIDDEN(x) for _ in range(2)][0], modules=[other])
    whole = nn.Sequential(encoder)
    cached(lambda x: encoder(x), modules=[whole])  # as a part of another
    with pytest.raises(errors.InvalidArgument, match=r"modules\[1\] is str"):
        cached(lambda x: x, modules=[other, "encoder"])
    with pytest.raises(errors.InvalidArgument, match="expected a callable"):
        cached(1, modules=[])


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_of_a_function_would_call_the_modules_of_the_original(way):
    encoder = frozen(8, 4)
    layer = cached(lambda x: encoder(x), modules=[encoder])
    with pytest.raises(errors.Unsupported, match=r"call cached\(\) again"):
        way(layer)


# --- Methods.


class Coder(nn.Module):
    """A layer with two methods beside forward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def encode(self, x):
        return x + self.weight

    def decode(self, x):
        return x - self.weight

    def forward(self, x):
        return self.decode(self.encode(x) * 2)

    note = "text"


def test_a_method_is_cached_under_its_name_and_by_a_call():
    layer = CachedLayer(Coder(), method="encode", fingerprint="strict")
    x = torch.randn(20, 4)
    assert torch.equal(layer.encode(x), x + 1)
    assert torch.equal(layer(x), x + 1)
    assert (layer.stats.hits, layer.stats.misses) == (20, 20)
    assert torch.equal(layer.decode(x), x - 1)  # the layer's own
    assert layer.stats.lookups == 40
    assert layer.note == "text"
    layer.weight.data.fill_(3)
    assert torch.equal(layer.encode(x), x + 3)


def test_methods_of_one_module_share_a_cache_and_never_answers():
    cache, coder = tk.ActivationCache("1 MiB"), Coder()
    encoder = CachedLayer(coder, method="encode", cache=cache)
    decoder = CachedLayer(coder, method="decode", cache=cache)
    whole = CachedLayer(coder, cache=cache)
    x = torch.randn(20, 4)
    for _ in range(2):
        assert torch.equal(encoder.encode(x), x + 1)
        assert torch.equal(decoder.decode(x), x - 1)
        assert torch.equal(whole(x), coder(x))
    assert len(cache) == 60 + 3 * RECORDS
    assert encoder.stats.hits == decoder.stats.hits == whole.stats.hits == 20


def test_two_wrappers_cache_two_methods_of_one_module():
    inner = CachedLayer(Coder(), method="encode")
    outer = CachedLayer(inner, method="decode")
    x = torch.randn(20, 4)
    for _ in range(2):
        assert torch.equal(outer.encode(x), x + 1)
        assert torch.equal(outer.decode(x), x - 1)
    assert inner.stats.hits == 20
    assert outer.stats.hits == 20


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_the_method(way):
    layer = way(CachedLayer(Coder(), method="encode", compile="operator"))
    x = torch.randn(20, 4)
    assert torch.equal(layer.encode(x), x + 1)
    assert layer.stats.misses == 20
    run = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(run(x), x + 1)
    assert layer.stats.hits == 20


def test_methods_that_are_none():
    for name, hint in (("encod", "is 'encode' meant"), ("note", "no method 'note'")):
        with pytest.raises(errors.InvalidArgument, match=hint):
            CachedLayer(Coder(), method=name)
    with pytest.raises(errors.InvalidArgument, match="no method 3"):
        CachedLayer(Coder(), method=3)
    with pytest.raises(errors.InvalidArgument, match="a method of the wrapper, too"):
        CachedLayer(Coder(), method="state_dict")
    assert torch.equal(
        CachedLayer(Coder(), method="forward")(torch.ones(1, 1)), torch.ones(1, 1) * 3
    )


# --- Swapping.


def model():
    layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)])
    whole = nn.Module()
    whole.encoder = nn.Module()
    whole.encoder.layers = layers
    whole.head = nn.Linear(4, 2)
    return whole.requires_grad_(False).eval()


def names(module):
    return [name for name, _ in module.named_modules()]


def test_swapping_in_and_out_leaves_names_and_weights():
    whole = model()
    before, known, layers = whole.state_dict(), names(whole), list(whole.encoder.layers)
    layer = cache_submodule(whole, "encoder.layers.3", memory="1 MiB", chunk=1)
    assert layer is whole.encoder.layers[3]
    assert layer.inner is layers[3]
    assert layer.stats.bound == 1 << 20
    assert whole.state_dict().keys() == before.keys()
    assert names(whole) == known
    whole.load_state_dict(before, strict=True)
    x = torch.randn(5, 4)
    assert torch.allclose(whole.encoder.layers[3](x), layers[3](x), atol=1e-6)
    whole.encoder.layers[3](x)
    assert layer.stats.hits == 5
    inside = cache_submodule(whole, "encoder.layers.3.0")
    head = cache_submodule(whole, "head")
    assert whole.head is head
    assert layers[3][0] is inside
    assert uncache(whole) == 3
    assert uncache(whole) == 0
    assert list(whole.encoder.layers) == layers
    assert not any(isinstance(module, CachedLayer) for module in whole.modules())


def test_a_wrapper_in_a_wrapper_is_undone_whole():
    whole = model()
    plain = whole.head
    whole.head = CachedLayer(CachedLayer(plain))
    assert uncache(whole) == 2
    assert whole.head is plain


def test_uncache_leaves_the_model_itself():
    whole = CachedLayer(nn.Sequential(CachedLayer(frozen(4, 4))))
    assert uncache(whole) == 1
    assert isinstance(whole, CachedLayer)
    assert isinstance(whole.inner[0], nn.Linear)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("encoder.layers.9", "the nearest is 'encoder.layers"),
        ("encoder.layer.3", "the nearest is 'encoder.layers.3'"),
        ("haed", "the nearest is 'head'"),
        ("", "wrap it in CachedLayer"),
        ("head.weight", "the nearest is 'head'"),
        ("head.", "no submodule 'head.'"),
    ],
)
def test_a_path_that_does_not_exist_names_the_nearest(path, hint):
    with pytest.raises(errors.InvalidArgument, match=hint):
        cache_submodule(model(), path)


def test_what_cannot_be_swapped_is_refused_and_left():
    whole = model()
    cache_submodule(whole, "head")
    with pytest.raises(errors.InvalidArgument, match="cached already"):
        cache_submodule(whole, "head")
    with pytest.raises(errors.InvalidArgument, match="expected a"):
        cache_submodule("model", "head")
    with pytest.raises(errors.InvalidArgument):
        cache_submodule(whole, "encoder.layers.0", chunk=3)
    assert uncache(whole) == 1
    assert "no submodule 'x'" in str(
        pytest.raises(errors.InvalidArgument, cache_submodule, nn.ReLU(), "x").value
    )
