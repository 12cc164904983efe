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
    cached = CachedLayer(layer, fingerprint="strict")
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
    options = {"memory": "1 MiB", "chunk": 32, "scope": "s", "fingerprint": "strict"}
    cached = CachedLayer(encoder(), **options, secret=secret)
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


def shared_model():
    """A model that holds one cached layer twice, and a head that shares its weight."""
    cached = CachedLayer(nn.Linear(4, 4).requires_grad_(False))
    model = nn.ModuleDict({"one": cached, "other": cached, "head": nn.Linear(4, 4)})
    model["head"].weight = cached.inner.weight
    return model


def test_names_are_those_of_the_plain_model():
    layer = encoder()
    layer.register_buffer("table", torch.ones(2), persistent=False)
    model = nn.ModuleDict({"encoder": CachedLayer(layer), "head": nn.Linear(8, 1)})
    plain = nn.ModuleDict({"encoder": layer, "head": model["head"]})
    for listing in ("named_parameters", "named_buffers", "named_children"):
        names = [name for name, _ in getattr(model, listing)()]
        assert names == [name for name, _ in getattr(plain, listing)()]
    assert dict(model.named_modules()).keys() == dict(plain.named_modules()).keys()
    for name, parameter in model.named_parameters():
        assert parameter is plain.get_parameter(name)
    assert model.get_submodule("encoder.0") is layer[0]
    assert [id(part) for part in model["encoder"].children()] == [id(p) for p in layer.children()]


def test_state_dicts_take_a_prefix():
    layer = encoder()
    cached = CachedLayer(layer)
    for keywords in ({}, {"keep_vars": True}):
        one, other = (m.state_dict(prefix="a.b.", **keywords) for m in (cached, layer))
        assert list(one) == list(other)
        assert one._metadata == other._metadata
    target = {}
    assert cached.state_dict(destination=target, prefix="x.") is target
    assert "x.0.weight" in target


def test_dtypes_and_devices():
    layer = encoder()
    cached = CachedLayer(layer)
    for move in (cached.bfloat16, cached.double, cached.float, cached.cpu):
        assert move() is cached
    assert cached.to(torch.bfloat16) is cached
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert cached.float().to_empty(device="cpu") is cached
    assert cached.share_memory() is cached
    assert all(p.is_shared() for p in layer.parameters())


def test_gradients_are_switched_and_cleared():
    layer = encoder()
    cached = CachedLayer(layer)
    assert cached.requires_grad_(True) is cached
    assert all(p.requires_grad for p in layer.parameters())
    cached(torch.ones(3, 16)).sum().backward()
    assert layer[0].weight.grad is not None
    cached.zero_grad()
    assert all(p.grad is None for p in layer.parameters())


def test_apply_sees_the_layer_and_not_the_wrapper():
    seen = []
    model = nn.Sequential(CachedLayer(encoder()), nn.Linear(8, 1))
    assert model.apply(seen.append) is model
    assert [type(part) for part in seen] == [
        *(nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear, nn.Sequential),
        *(nn.Linear, nn.Sequential),
    ]
    cached = model[0]
    assert cached.apply(lambda part: None) is cached


def test_what_the_wrapper_is():
    cached = CachedLayer(encoder())
    assert isinstance(cached, nn.Module)
    assert isinstance(cached, CachedLayer)
    assert not isinstance(cached, nn.Sequential)
    assert isinstance(cached.inner, nn.Sequential)
    assert len(cached.inner) == 4
    assert "inner" in dir(cached)
    assert "append" in dir(cached)  # of Sequential


def test_a_layer_that_stands_twice_in_a_model():
    model = shared_model()
    assert len(list(model.parameters())) == 3
    x = torch.randn(20, 4)
    assert torch.equal(model["one"](x), model["other"](x))
    assert model["one"].stats.hits == 20
    twin = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    for other in (twin, loaded):
        assert other["one"] is other["other"]
        assert other["one"] is not model["one"]
        assert other["head"].weight is other["one"].inner.weight
        assert other["head"].weight is not model["head"].weight
        assert other["one"].stats.lookups == 0
        assert torch.equal(other["one"](x), model["one"](x))


def test_a_shallow_copy_shares_weights_and_no_attributes():
    cached = CachedLayer(encoder(), memory="1 MiB")
    shared = CachedLayer(cached.inner, cache=cached.cache, secret=bytes(32))
    for layer in (cached, shared):
        twin = copy.copy(layer)
        assert twin.inner is not layer.inner
        assert twin.inner[0] is layer.inner[0]
        twin.note = "its own"
        assert not hasattr(layer, "note")
        x = torch.randn(20, 16)
        assert torch.equal(twin(x), layer(x))
        assert twin.stats.bound == 1 << 20
    assert copy.copy(shared).cache is shared.cache
    assert copy.copy(cached).cache is not cached.cache
    assert copy.copy(shared)._options.secret == bytes(32)


def test_hooks_of_the_wrapper_are_its_own():
    layer = encoder()
    model = nn.Sequential(CachedLayer(layer), nn.Identity())
    x = torch.randn(20, 16)
    expected = model(x)
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    model[0].register_forward_pre_hook(lambda module, args: (args[0].neg(),))
    assert torch.equal(model(-x), expected + 1)
    assert model[0].stats.hits == 20
    assert not layer._forward_hooks


def test_state_dict_hooks_of_the_layer_run():
    layer = encoder()
    layer.register_state_dict_post_hook(lambda module, state, prefix, local: state.update(extra=1))
    cached = CachedLayer(layer)
    assert nn.Sequential(cached).state_dict()["extra"] == 1
    cached.register_load_state_dict_pre_hook(lambda module, state, prefix, *args: state.pop("old"))
    cached.load_state_dict({**encoder().state_dict(), "old": 1})


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_an_old_weight_norm_runs_uncached():
    layer = nn.utils.weight_norm(nn.Linear(4, 4)).requires_grad_(False)
    cached = CachedLayer(layer)
    x = torch.randn(20, 4)
    for _ in range(2):
        assert torch.allclose(cached(x), layer(x))
        layer.weight_g.data.mul_(2)
    assert cached.stats.lookups == 0
    (reason,) = cached.stats.bypasses
    assert "forward hooks inside" in reason


class Plus(nn.Module):
    def forward(self, weight):
        return weight + 1


def test_a_parametrization_comes_and_goes():
    layer = nn.Linear(4, 4).requires_grad_(False)
    cached = CachedLayer(layer)
    x = torch.randn(32, 4)
    before = cached(x)
    nn.utils.parametrize.register_parametrization(layer, "weight", Plus())
    assert torch.allclose(cached(x), layer(x), atol=1e-6)
    assert not torch.allclose(cached(x), before)
    assert cached.state_dict().keys() == layer.state_dict().keys()
    nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert torch.equal(cached(x), before)
    assert cached.stats.misses == 64


def test_functional_call_and_ensembles_of_a_model():
    model = nn.Sequential(CachedLayer(encoder()), nn.Linear(8, 2).requires_grad_(False))
    plain = nn.Sequential(model[0].inner, model[1])
    x = torch.randn(20, 16)
    states = [{k: v * factor for k, v in plain.state_dict().items()} for factor in (1, 2)]
    for state in states:
        called = torch.func.functional_call(model, state, (x,))
        assert torch.allclose(called, torch.func.functional_call(plain, state, (x,)), atol=1e-5)
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    ensemble = torch.func.vmap(lambda state: torch.func.functional_call(model, state, (x,)))
    truth = torch.func.vmap(lambda state: torch.func.functional_call(plain, state, (x,)))
    assert torch.allclose(ensemble(stacked), truth(stacked), atol=1e-5)


def test_an_optimizer_and_an_average_see_the_layer():
    cached = CachedLayer(encoder().requires_grad_(True))
    model = nn.Sequential(cached, nn.Linear(8, 1))
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(20, 16)
    with torch.no_grad():
        before = cached(x)
    model(x).square().mean().backward()
    optimizer.step()
    average.update_parameters(model)
    with torch.no_grad():
        assert not torch.equal(cached(x), before)
        assert torch.allclose(average(x), model(x), atol=1e-6)
