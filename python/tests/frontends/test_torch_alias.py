"""The wrapper is the layer, to state dicts, moves, copies and pickles."""

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder():
    layer = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8))
    return layer.eval().requires_grad_(False)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 20, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def test_state_dicts_have_the_same_keys():
    layer = encoder()
    model = nn.Sequential(CachedLayer(layer), nn.Linear(8, 1))
    plain = nn.Sequential(layer, nn.Linear(8, 1))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.state_dict()._metadata.keys() == plain.state_dict()._metadata.keys()
    assert dict(model.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    model.load_state_dict(plain.state_dict(), strict=True)
    state = {key: value + 1 for key, value in plain.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert torch.equal(layer[0].weight, state["0.0.weight"])
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({}, strict=True)
    cached = CachedLayer(encoder())
    cached.load_state_dict(layer.state_dict())
    assert torch.equal(cached.inner[0].weight, layer[0].weight)


@pytest.mark.parametrize(
    "make",
    [encoder, Recurrent, lambda: nn.BatchNorm1d(16), lambda: nn.LSTM(2, 2), lambda: parametrized()],
)
def test_modes_moves_and_attributes_reach_the_layer(make):
    layer = make()
    cached = CachedLayer(layer)
    cached.train()
    assert layer.training
    assert cached.training
    cached.eval()
    assert not any(module.training for module in layer.modules())
    cached.half()
    assert {p.dtype for p in layer.parameters()} == {torch.float16}
    cached.to("meta")
    assert all(p.is_meta for p in layer.parameters())
    layer.note = "kept"
    assert cached.note == "kept"
    cached.note = "changed"
    assert layer.note == "changed"
    del cached.note
    assert not hasattr(layer, "note")
    with pytest.raises(AttributeError):
        _ = cached.note


def parametrized():
    layer = nn.Linear(4, 4)
    nn.utils.parametrizations.weight_norm(layer)
    return layer


def test_a_parametrized_layer_is_cached():
    layer = parametrized().requires_grad_(False)
    cached = CachedLayer(layer)
    x = torch.randn(32, 4)
    cached(x)
    assert torch.allclose(cached(x), layer(x), atol=1e-6)
    layer.parametrizations.weight.original0.data.mul_(2)
    assert torch.allclose(cached(x), layer(x), atol=1e-6)
    assert (cached.stats.hits, cached.stats.misses) == (32, 64)


def copies():
    def save(layer):
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
        "torch.save": save,
    }


@pytest.mark.parametrize("name", copies())
def test_copies_have_own_weights_options_and_an_empty_cache(name):
    x = torch.randn(32, 16)
    secret = bytes(range(32))
    cached = CachedLayer(encoder(), memory="1 MiB", chunk=32, scope="s", secret=secret)
    expected = cached(x)
    twin = copies()[name](cached)
    assert twin.stats.entries == 0
    assert twin.stats.bound == 1 << 20
    assert twin.inner is not cached.inner
    assert twin._parameters is twin.inner._parameters
    assert twin.inner[0].weight.data_ptr() != cached.inner[0].weight.data_ptr()
    assert torch.equal(twin(x), expected)
    twin.inner[0].weight.data.zero_()
    assert not torch.equal(twin(x), expected)
    assert torch.equal(cached(x), expected)


def test_a_secret_is_in_no_repr_and_no_pickle():
    secret = bytes(range(100, 132))
    cached = CachedLayer(encoder(), secret=secret)
    cached(torch.randn(32, 16))
    assert secret not in pickle.dumps(cached)
    for shown in (repr(cached), str(cached.stats), repr(cached._options)):
        assert str(secret) not in shown
        assert secret.hex() not in shown
    loaded = pickle.loads(pickle.dumps(cached))
    assert loaded._options.secret not in (None, secret)
    assert copy.deepcopy(cached)._options.secret == secret


def test_functional_call_uses_the_given_weights():
    cached = CachedLayer(encoder())
    x = torch.randn(32, 16)
    plain = cached(x)
    weights = {key: value * 2 for key, value in cached.state_dict().items()}
    called = torch.func.functional_call(cached, weights, (x,))
    assert torch.allclose(
        called, torch.func.functional_call(cached.inner, weights, (x,)), atol=1e-5
    )
    assert torch.equal(cached(x), plain)


def test_a_wrapper_in_a_wrapper():
    inner = CachedLayer(encoder())
    outer = CachedLayer(nn.Sequential(inner, nn.Linear(8, 4).requires_grad_(False)))
    x = torch.randn(32, 16)
    first = outer(x)
    assert torch.equal(outer(x), first)
    assert outer.stats.hits == 32
    assert inner.stats.misses > 0
