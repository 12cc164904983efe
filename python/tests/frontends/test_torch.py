"""Cached layers of PyTorch: exact answers, whatever hits; options and counters."""

import threading

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.testing import check_hits_equal_chunks  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder():
    layer = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8))
    return layer.eval().requires_grad_(False)


RECORDS = 2  # entries of a plan beside its rows: what the probe found, how outputs are made


def rows_stored(cached):
    return cached.stats.entries - RECORDS


def same_bits(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


# --- The pattern of hits shows in no bit.


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(12, 20, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x, mask):
        return self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]


class TextEncoder(nn.Module):
    """A small MiniLM: embeddings, masked attention, mean of the tokens that count."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(100, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, ids, mask):
        x = self.layer(self.tokens(ids), src_key_padding_mask=mask == 0)
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


def convolution():
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, groups=1)
    return nn.Sequential(*layers)


def masks(rows, length):
    return torch.arange(length)[None] >= torch.randint(1, length + 1, (rows, 1))


CLEAN = {
    "conv + BatchNorm": lambda: (convolution(), [torch.randn(60, 3, 9, 9)]),
    "LSTM": lambda: (Recurrent(), [torch.randn(60, 5, 12)]),
    "masked attention": lambda: (Attention(), [torch.randn(60, 7, 32), masks(60, 7)]),
    "text encoder": lambda: (
        TextEncoder(),
        [torch.randint(0, 100, (60, 7)), (~masks(60, 7)).long()],
    ),
    "bfloat16": lambda: (nn.Linear(16, 32).bfloat16(), [torch.randn(60, 16).bfloat16()]),
    "float64": lambda: (nn.Linear(16, 32).double(), [torch.randn(60, 16).double()]),
    "int output": lambda: (Argmax(), [torch.randn(60, 16)]),
    "bool output": lambda: (Positive(), [torch.randn(60, 16)]),
    "complex output": lambda: (Spectrum(), [torch.randn(60, 16)]),
    "one number a row": lambda: (Total(), [torch.randn(60, 16)]),
}


class Argmax(nn.Module):
    def forward(self, x):
        return x.argmax(1)


class Positive(nn.Module):
    def forward(self, x):
        return x > 0


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


class Total(nn.Module):
    def forward(self, x):
        return x.sum(1)


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("chunk", [1, 32])
def test_no_bit_differs_from_the_layer_in_chunks(name, chunk):
    layer, inputs = CLEAN[name]()
    layer.eval().requires_grad_(False)
    cached = CachedLayer(layer, chunk=chunk, bypass="never")

    def take(rows):
        return [x.index_select(0, torch.tensor(rows)) for x in inputs]

    @torch.no_grad()  # an LSTM at batch size 1 has other bits while gradients are recorded
    def run(rows):
        return layer(*take(rows))

    check_hits_equal_chunks(
        lambda rows: cached(*take(rows)),
        run,
        lambda one, other: same_bits(one.reshape(-1), other.reshape(-1)),
        rows=60,
        chunk=chunk,
        count=40 if chunk == 1 else 150,
        seed=1,
        restart=cached.cache_clear,
    )
    stats = cached.stats
    assert stats.chunk == chunk
    assert stats.bypasses == {}
    assert stats.hits > stats.misses > 0
    assert stats.hits + stats.misses == stats.lookups


def test_a_slot_dependent_layer_equals_the_layer_one_row_at_a_time():
    layer = nn.Linear(7, 5).requires_grad_(False)
    cached = CachedLayer(layer, bypass="never")
    x = torch.randn(60, 7)
    cached(x[:20])
    check_hits_equal_chunks(
        lambda rows: cached(x[rows]),
        lambda rows: layer(x.index_select(0, torch.tensor(rows))),
        same_bits,
        rows=60,
        chunk=cached.stats.chunk,  # 1, but on processors whose kernels do not care
        count=100,
        seed=2,
    )


def test_views_equal_their_copies():
    cached = CachedLayer(encoder())
    x = torch.randn(40, 16)
    expected = cached(x)
    wide = torch.zeros(40, 33)
    wide[:, 1:17] = x
    for view in (x.t().contiguous().t(), wide[:, 1:17], torch.cat([x[:1], x])[1:]):
        assert torch.equal(cached(view), expected)
    assert cached.stats.misses == 40
    assert torch.equal(cached(x[:1].expand(5, 16)), expected[:1].expand(5, 8))


def test_dtype_shape_and_order_of_inputs_count():
    class Pair(nn.Module):
        def forward(self, a, b):
            return a.double().flatten(1)[:, :1] - 2 * b.double().flatten(1)[:, :1]

    cached = CachedLayer(Pair())
    a, b = torch.arange(8.0).reshape(4, 2), torch.arange(8, 16.0).reshape(4, 2)
    for pair in ((a, b), (b, a), (a.int(), b), (a, b.int()), (a.reshape(4, 1, 2), b)):
        assert torch.equal(cached(*pair), Pair()(*pair))
    assert cached.stats.misses == 20
    zeros = torch.zeros(4, 2)
    inverse = CachedLayer(Inverse())
    assert torch.equal(inverse(zeros), 1 / zeros)
    assert torch.equal(inverse(-zeros), 1 / -zeros)


class Inverse(nn.Module):
    def forward(self, x):
        return 1 / x


# --- The caller's tensors are his.


def test_a_changed_output_changes_no_later_hit():
    cached = CachedLayer(encoder())
    x = torch.randn(20, 16)
    expected = cached(x).clone()
    for _ in range(2):
        output = cached(x)
        assert torch.equal(output, expected)
        output.zero_()
    x.zero_()
    assert cached.stats.misses == 20


def test_a_layer_that_writes_to_its_input_writes_to_a_copy():
    cached = CachedLayer(nn.ReLU(inplace=True))
    x = torch.randn(20, 4)
    kept = x.clone()
    assert torch.equal(cached(x), kept.relu())
    assert torch.equal(x, kept)


def test_outputs_feed_autograd_outside_inference_mode():
    cached = CachedLayer(encoder())
    x = torch.randn(20, 16)
    with torch.inference_mode():
        assert cached(x).is_inference()
    output = cached(x)
    assert not output.is_inference()
    assert cached.stats.hits == 20
    head = nn.Linear(8, 1)
    head(output).sum().backward()
    assert head.weight.grad is not None
    with torch.inference_mode():
        made = torch.randn(20, 16)
    assert not cached(made).is_inference()  # an inference tensor as input


# --- Options and counters.


@pytest.mark.parametrize(
    "options",
    [{"memory": 0}, {"memory": -1}, {"memory": "0 B"}, {"chunk": 0}, {"chunk": 2}, {"chunk": 48}]
    + [{"chunk": True}, {"chunk": "32"}, {"scope": 1}, {"secret": b"short"}, {"secret": "x" * 32}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(errors.InvalidArgument):
        CachedLayer(nn.ReLU(), **options)


def test_only_modules_are_wrapped():
    with pytest.raises(errors.InvalidArgument, match=r"expected a torch\.nn\.Module"):
        CachedLayer(torch.relu)


def test_auto_chunk_is_settled_by_the_first_call():
    for rows, chunk in ((15, 1), (16, 32)):
        cached = CachedLayer(encoder())
        cached(torch.randn(rows, 16))
        cached(torch.randn(31 - rows, 16))
        assert cached.stats.chunk == chunk


def test_counters_add_up():
    cached = CachedLayer(encoder(), chunk=32)
    x = torch.randn(40, 16)
    cached(x)
    cached(torch.cat([x[:5], x[:5]]))
    cached(torch.cat([torch.ones(2, 16), x[:1]]))
    stats = cached.stats
    assert (stats.lookups, stats.misses, stats.hits) == (53, 41, 12)
    assert stats.duplicates == 6
    assert stats.padded_rows == 24 + 31
    assert rows_stored(cached) == 41
    assert 0 < stats.bytes <= stats.bound
    assert stats.seconds_spent > 0
    assert stats.to_dict()["hits"] == 12
    assert "12 (22.6%)" in str(stats)
    cached.cache_clear()
    assert cached.stats.entries == 0


def test_the_bound_is_kept_and_large_entries_are_rejected():
    cached = CachedLayer(nn.Identity(), memory="64 KiB")
    for _ in range(20):
        x = torch.randn(32, 64)
        assert torch.equal(cached(x), x)
        assert cached.stats.bytes <= 1 << 16
    assert cached.stats.evictions > 0
    x = torch.randn(2, 1 << 15)
    assert torch.equal(cached(x), x)
    assert cached.stats.rejections == 2


def test_an_exception_of_the_layer_passes_and_stores_nothing():
    class Failing(nn.Module):
        armed = False

        def forward(self, x):
            if (x < 0).any():
                raise KeyError("negative")
            return x

    cached = CachedLayer(Failing(), chunk=32)
    cached(torch.rand(32, 4))
    x = torch.rand(64, 4)
    x[63] = -1  # in the second chunk
    with pytest.raises(KeyError, match="negative"):
        cached(x)
    assert rows_stored(cached) == 32
    cached(x[:63])
    assert cached.stats.misses == 32 + 64 + 63


def test_threads_share_a_layer():
    layer = encoder()
    cached = CachedLayer(layer)
    x = torch.randn(64, 16)
    expected = cached(x)
    failures = []

    def work(seed):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
        for _ in range(20):
            if not torch.equal(cached(x[order]), expected[order]):
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
