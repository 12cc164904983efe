"""Whatever PyTorch does to a cached layer, answers are right; what cannot be cached is counted."""

import threading

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

# PyTorch's own, on the way into these transformations.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make(**options):
    layer = nn.Sequential(nn.Linear(16, 32), nn.Tanh()).eval().requires_grad_(False)
    return layer, CachedLayer(layer, **options), torch.randn(20, 16)


def reasons(cached):
    return list(cached.stats.bypasses)


def bypassed(cached, text):
    (reason,) = reasons(cached)
    return text in reason


# --- Gradients.


def test_trainable_weights_run_uncached_and_the_stats_name_the_cure():
    layer, cached, x = make()
    layer.requires_grad_(True)
    cached(x).sum().backward()
    assert layer[0].weight.grad is not None
    assert bypassed(cached, "requires_grad_(False)")
    assert cached.stats.lookups == 0
    with torch.no_grad():
        cached(x)
        cached(x)
    assert cached.stats.hits == 20


def test_a_gradient_with_respect_to_the_input_is_there():
    layer, cached, x = make()
    cached(x)
    x.requires_grad_(True)
    cached(x).sum().backward()
    expected = x.grad.clone()
    x.grad = None
    layer(x).sum().backward()
    assert torch.equal(expected, x.grad)
    assert bypassed(cached, "an input requires grad")
    cached(x.detach())
    assert cached.stats.hits == 20


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    layer, cached, x = make()
    cached(x)  # a checkpoint without gradients may be answered
    x.requires_grad_(True)
    head = nn.Linear(32, 1)
    output = torch.utils.checkpoint.checkpoint(
        lambda x: head(cached(x)), x, use_reentrant=reentrant
    )
    output.sum().backward()
    assert torch.allclose(output, head(layer(x)), atol=1e-6)
    expected = torch.autograd.grad(head(layer(x)).sum(), (x, head.weight))
    assert torch.allclose(x.grad, expected[0], atol=1e-6)
    assert torch.allclose(head.weight.grad, expected[1], atol=1e-4)
    assert bypassed(cached, "an input requires grad")


def test_a_head_trains_on_cached_rows():
    _, cached, x = make()
    head = nn.Linear(32, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        head(cached(x)).square().mean().backward()
        optimizer.step()
    assert cached.stats.hits == 40


# --- Transformations.


def test_vmap_grad_jvp_and_functionalize():
    layer, cached, x = make()
    cached(x)
    func = torch.func
    assert torch.allclose(func.vmap(cached)(x[None]), layer(x)[None])
    grad = func.grad(lambda x: cached(x).sum())(x)
    assert torch.allclose(grad, func.grad(lambda x: layer(x).sum())(x))
    primal, tangent = func.jvp(cached, (x,), (x,))
    assert torch.allclose(primal, layer(x), atol=1e-6)
    assert torch.allclose(tangent, func.jvp(layer, (x,), (x,))[1])
    assert torch.allclose(func.functionalize(cached)(x), layer(x))
    for transform in (func.jacrev, func.jacfwd):
        rows = transform(lambda x: cached(x).sum(1))(x[:2])
        assert torch.allclose(rows, transform(lambda x: layer(x).sum(1))(x[:2]), atol=1e-6)
    assert bypassed(cached, "torch.func")
    assert cached.stats.lookups == 20


def test_dual_numbers():
    layer, cached, x = make()
    cached(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(cached(dual)).tangent
        expected = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    assert torch.equal(tangent, expected)
    assert bypassed(cached, "forward-mode")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_hit_is_not_baked_into_a_trace():
    layer, cached, x = make()
    cached(x)
    traced = torch.jit.trace(cached, (x,), check_trace=False)
    other = torch.randn(7, 16)
    assert torch.allclose(traced(other), layer(other), atol=1e-6)
    assert bypassed(cached, "jit.trace")


def test_make_fx_and_symbolic_trace():
    layer, cached, x = make()
    cached(x)
    other = torch.randn(20, 16)
    graph = torch.fx.experimental.proxy_tensor.make_fx(cached)(x)
    assert torch.allclose(graph(other), layer(other))
    graph = torch.fx.symbolic_trace(nn.Sequential(cached, nn.ReLU()))
    assert torch.allclose(graph(other), layer(other).relu())
    single = CachedLayer(nn.Linear(16, 4).requires_grad_(False))
    graph = torch.fx.symbolic_trace(nn.Sequential(single))
    assert torch.equal(graph(other), single.inner(other))


def test_fake_and_meta_tensors():
    layer, cached, x = make()
    cached(x)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert cached(mode.from_tensor(x)).shape == (20, 32)
    assert reasons(cached) == ["a dispatch mode"]
    assert CachedLayer(nn.Linear(16, 4, device="meta"))(x.to("meta")).shape == (20, 4)
    fake = mode.from_tensor(x)
    layer = CachedLayer(nn.ReLU())
    assert layer(fake).shape == x.shape
    assert bypassed(layer, "a tensor subclass: FakeTensor")


def test_modes():
    _, cached, x = make()
    expected = cached(x)
    with FlopCounterMode(display=False) as counter:
        cached(x)
    assert counter.get_total_flops() == 2 * 20 * 16 * 32
    with torch.device("cpu"):
        assert torch.equal(cached(x), expected)  # a device context is no reason
    assert cached.stats.hits == 20

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        cached(x)
    assert reasons(cached) == ["a dispatch mode", "a function mode"]


# --- Inputs, outputs, hooks.


class Anything(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs, **options):
        return self.function(*inputs, **options)


class Special(torch.Tensor):
    pass


def subclass(x):
    return x.as_subclass(Special)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ((), "no tensor with rows among the arguments"),
        (("text",), "no tensor with rows"),
        ((torch.ones(()),), "no tensor with rows"),
        ((torch.ones(0, 3),), "a batch of 0 rows"),
        ((subclass(torch.ones(3, 2)),), "a tensor subclass: Special"),
        ((torch.ones(3, 2), object()), "object"),
        ((torch.ones(3, 2).to_sparse(),), "an input has no key"),
    ],
)
def test_inputs_that_have_no_rows_run_uncached(inputs, reason):
    cached = CachedLayer(Anything(lambda *inputs: inputs))
    result = cached(*inputs)
    assert len(result) == len(inputs)
    assert all(one is other for one, other in zip(result, inputs, strict=True))
    assert bypassed(cached, reason)


def test_other_arguments_are_part_of_every_key():
    def forward(x, scale=1.0, *, table=None, mode="sum"):
        shift = 0 if table is None else getattr(table, mode)()
        return x * (1.0 if scale is None else scale) + shift

    cached = CachedLayer(Anything(forward), bypass="never")
    x, table = torch.arange(6.0).reshape(3, 2), torch.arange(4.0).reshape(4, 1)
    calls = [
        ((x,), {}),
        ((x, None), {}),
        ((x, 2.0), {}),
        ((x, torch.tensor(3.0)), {}),
        ((x,), {"table": table}),
        ((x,), {"table": table + 1}),
        ((x,), {"table": table, "mode": "mean"}),
    ]
    for _ in range(2):
        for args, kwargs in calls:
            assert torch.equal(cached(*args, **kwargs), forward(*args, **kwargs))
    assert cached.stats.misses == cached.stats.hits == 3 * len(calls)
    assert cached.stats.bypasses == {}


def test_memory_formats_of_inputs_and_outputs():
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False).eval()
    cached = CachedLayer(layer, bypass="never")
    x = torch.randn(20, 3, 8, 8)
    expected = cached(x)
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(cached(last), expected)
    assert cached.stats.hits == 20
    inside = CachedLayer(Anything(lambda x: x.to(memory_format=torch.channels_last)))
    for _ in range(2):
        assert torch.equal(inside(last), x)
    assert inside.stats.hits == 20


def test_conjugated_and_negated_views_count_by_value():
    cached = CachedLayer(Anything(lambda x: x * 2), bypass="never")
    x = torch.randn(20, 4, dtype=torch.complex64)
    views = [x, x.conj(), x.imag, x.conj().imag, torch._neg_view(x.real)]
    assert views[1].is_conj()
    assert views[3].is_neg()
    for _ in range(2):
        for view in views:
            assert torch.equal(cached(view), view.clone() * 2)
            assert torch.equal(cached(view.resolve_conj().resolve_neg()), view.clone() * 2)
    assert cached.stats.misses == 100
    assert cached.stats.hits == 300
    special = CachedLayer(Anything(lambda x: torch._neg_view(x)), bypass="never")
    for _ in range(2):
        assert torch.equal(special(x.real), -x.real)


def test_a_transformation_in_one_thread_is_none_in_another():
    layer, cached, x = make(bypass="never")
    expected = cached(x)
    inside, done = threading.Event(), threading.Event()
    gradients = []

    def total(x):
        inside.set()
        assert done.wait(60)
        return cached(x).sum()

    thread = threading.Thread(target=lambda: gradients.append(torch.func.grad(total)(x)))
    thread.start()
    assert inside.wait(60)
    assert torch.equal(cached(x), expected)
    done.set()
    thread.join()
    assert cached.stats.hits == 20
    assert torch.allclose(gradients[0], torch.func.grad(lambda x: layer(x).sum())(x))
    assert bypassed(cached, "torch.func")


def test_keyword_arguments_are_those_of_the_signature():
    class Scaled(nn.Module):
        def forward(self, x, scale=1):
            return x * scale

    cached = CachedLayer(Scaled(), bypass="never")
    x = torch.ones(3, 2)
    for scale in (2, 3):
        for call in (lambda s: cached(x, s), lambda s: cached(x, scale=s)):
            assert torch.equal(call(scale), x * scale)
        assert torch.equal(cached(scale=scale, x=x), x * scale)
    for call in (lambda: cached(x), lambda: cached(x=x), lambda: cached(x, scale=1)):
        assert torch.equal(call(), x)
    assert cached.stats.misses == 3  # three calls of one row that is there thrice
    assert cached.stats.hits == 9 * 3 - 3
    assert cached.stats.bypasses == {}


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize(
    "function",
    [lambda x: (x, x * 2), lambda x: {"a": x}, lambda x: [x, None, {"b": (x > 0, "text")}]],
)
def test_outputs_are_any_nest(function, probe):
    cached = CachedLayer(Anything(function), probe=probe, bypass="never")
    x = torch.randn(20, 2)
    for _ in range(3):
        result, expected = cached(x), function(x)
        assert type(result) is type(expected)
        torch.testing.assert_close(
            result[0] if isinstance(result, list) else result,
            (expected[0] if isinstance(result, list) else expected),
            rtol=0,
            atol=0,
        )
        assert str(result) == str(expected)
    assert (cached.stats.misses, cached.stats.hits) == (20, 40)
    assert cached.stats.bypasses == {}


@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: None, "its output holds no tensor"),
        (lambda x: (x, object()), "object"),
        (subclass, "a Special in the result"),
        (lambda x: x.to_sparse(), "sparse"),
    ],
)
def test_outputs_that_cannot_be_kept_run_uncached(function, reason, probe):
    cached = CachedLayer(Anything(function), probe=probe)
    for _ in range(3):
        result = cached(torch.ones(20, 2))
        assert type(result) is type(function(torch.ones(20, 2)))
    stats = cached.stats
    assert bypassed(cached, reason)
    assert sum(stats.bypasses.values()) == 3
    assert stats.misses == 0 or not probe
    assert stats.hits == 0


@pytest.mark.parametrize("probe", [True, False])
def test_a_sum_over_the_batch_is_refused(probe):
    cached = CachedLayer(Anything(lambda x: x.sum()), probe=probe)
    for _ in range(2):
        with pytest.raises(errors.InvalidArgument, match="neither a row for each input row"):
            cached(torch.randn(20, 2))


def test_rows_of_different_shapes_run_uncached():
    cached = CachedLayer(Anything(lambda x: x[:, : int(x[0, 0])]), probe=False, chunk=1)
    one, two = torch.full((1, 4), 1.0), torch.full((1, 4), 3.0)
    assert cached(one).shape == (1, 1)
    assert cached(two).shape == (1, 3)
    assert cached(torch.cat([two, one])).shape == (2, 3)
    assert bypassed(cached, "differ in shape")


def test_hooks_inside_run_and_are_counted():
    layer, cached, x = make()
    expected = cached(x)
    seen = []
    handle = layer[1].register_forward_hook(lambda module, args, output: seen.append(output))
    cached(x)
    assert len(seen) == 1
    assert bypassed(cached, "forward hooks inside")
    handle.remove()
    assert torch.equal(cached(x), expected)
    own = cached.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(cached(x), expected + 1)  # around the cache
    own.remove()
    assert cached.stats.hits == 40


def test_lazy_modules_are_built_by_a_first_uncached_call():
    cached = CachedLayer(nn.Sequential(nn.LazyLinear(4)))
    x = torch.randn(20, 16)
    with torch.no_grad():
        cached(x)
        cached(x)
        cached(x)
    assert bypassed(cached, "run the lazy module once first")
    assert cached.stats.hits == 20


def test_weights_without_a_key_run_uncached():
    layer = Anything(lambda x: x)
    layer.register_buffer("table", torch.eye(3).to_sparse())
    cached = CachedLayer(layer)
    assert torch.equal(cached(torch.ones(20, 2)), torch.ones(20, 2))
    assert bypassed(cached, "a weight has no key")


def test_out_of_memory_in_a_larger_chunk_names_the_cure():
    def limited(x):
        if len(x) > 20:
            raise torch.OutOfMemoryError("no room")
        return x

    cached = CachedLayer(Anything(limited))
    x = torch.randn(20, 4)
    assert torch.equal(cached(x), x)
    assert bypassed(cached, "chunk=1 needs less")
    with pytest.raises(torch.OutOfMemoryError):
        cached(torch.randn(40, 4))


def test_what_the_fingerprint_cannot_read_is_an_assumption():
    layer, cached, x = make()
    layer.handle = object()
    cached(x)
    assert cached.stats.assumptions == ["layer.handle: builtins.object"]


@pytest.mark.parametrize("inside", [False, True])
def test_scripted_modules_are_cached(inside):
    layer, _, x = make()
    scripted = torch.jit.script(layer)
    cached = CachedLayer(nn.Sequential(scripted, nn.ReLU()) if inside else scripted, bypass="never")
    plain = cached.inner
    for _ in range(2):
        assert torch.allclose(cached(x), plain(x), atol=1e-6)
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)
    with torch.no_grad():
        layer[0].weight.mul_(2)  # the scripted module's too
    assert torch.allclose(cached(x), plain(x), atol=1e-6)
    assert (cached.stats.misses, cached.stats.hits) == (40, 20)
    assert cached.stats.bypasses == {}


def test_a_compiled_layer_is_cached():
    layer, _, x = make()
    cached = CachedLayer(torch.compile(layer, backend="eager"), fingerprint="strict")
    for _ in range(2):
        assert torch.allclose(cached(x), layer(x), atol=1e-6)
    assert cached.stats.hits == 20
    layer[0].weight.data.mul_(2)
    assert torch.allclose(cached(x), layer(x), atol=1e-6)


def test_an_exception_in_reading_the_layer_is_a_bypass():
    class Hostile(dict):
        def items(self):
            raise RuntimeError("no")

    layer, cached, x = make()
    layer.options = Hostile(a=1)
    assert torch.equal(cached(x), layer(x))
    assert bypassed(cached, "cannot be read: RuntimeError: no")
