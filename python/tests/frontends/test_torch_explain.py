"""explain(): each reason why a row is a hit or a miss; and what the counters hint at."""

import re
import time

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def cached(layer=None, **options):
    layer = nn.Linear(8, 8) if layer is None else layer
    return CachedLayer(layer.eval().requires_grad_(False), **{"bypass": "never"} | options)


def reasons(explanation):
    return [row.reason for row in explanation]


def only(explanation):
    assert len(set(explanation)) == 1, explanation
    return explanation[0]


def test_hits_and_rows_never_seen():
    encoder = cached()
    x = torch.randn(4, 8)
    encoder(x[:2])
    found = encoder.explain(x)
    assert found == [(True, "hit")] * 2 + [(False, "never seen")] * 2
    assert str(found) == "2 rows: hit\n2 rows: never seen"
    assert str(encoder.explain(x[2:3])) == "1 row: never seen"


def test_equal_rows_of_a_batch():
    encoder = cached()
    x = torch.randn(2, 8)
    encoder(x[:1])
    found = encoder.explain(x[[0, 1, 0, 1]])
    assert [row.hit for row in found] == [True, False, True, True]
    assert reasons(found)[1:] == ["never seen", "hit", "answered by an equal row of this batch"]
    encoder(x[[0, 1, 0, 1]])
    assert encoder.stats.hits == 3


RUNS = [0]


class Counting(nn.Module):
    def forward(self, x):
        RUNS[0] += 1
        return x * 2


def test_nothing_is_run_counted_or_stored():
    encoder = cached(Counting())
    x = torch.randn(40, 8)
    encoder(x[:20])
    before, ran = encoder.stats, RUNS[0]
    for batch in (x, x.double(), x[:, :4], x[:5]):
        encoder.explain(batch)
    with torch.autocast("cpu", torch.bfloat16):
        encoder.explain(x)
    encoder.bypass = "always"
    encoder.explain(x)
    with tk.disabled():
        encoder.explain(x)
    encoder.bypass = "never"
    assert encoder.stats == before
    assert RUNS[0] == ran
    assert len(encoder.cache) == before.entries


def test_before_the_first_call():
    assert only(cached().explain(torch.ones(3, 8))[:1]) == (False, "never seen")


def test_other_weights_and_until_when():
    encoder = cached()
    x = torch.randn(2, 8)
    encoder(x)
    weight = encoder.inner.weight
    before = weight.clone()
    weight.mul_(2)
    row = only(encoder.explain(x))
    assert re.fullmatch(r"seen under other weights, until \d\d:\d\d:\d\d", row.reason)
    encoder(x)
    assert only(encoder.explain(x)).hit
    weight.copy_(before)
    assert only(encoder.explain(x)).hit


def test_the_last_call_counts(monkeypatch):
    encoder = cached()
    now = [1000.0]
    monkeypatch.setattr("tensorkey._history.time.time", lambda: now[0])
    monkeypatch.setattr("tensorkey._history.perf_counter", lambda: encoder._engine.history.clock)
    x = torch.randn(2, 8)
    encoder(x)
    now[0] = 2000.0
    encoder(x)
    encoder.inner.weight.mul_(2)
    [seen, _] = next(encoder._engine.history.others(*another(encoder, x)))
    assert seen.when == 2000.0


def another(encoder, x):
    engine = encoder._engine
    arguments = engine.signature.take((x,), {})
    about, state = engine.about(arguments, arguments.form)
    return about, state.weights, arguments.form


def test_a_changed_attribute():
    encoder = cached(nn.LayerNorm(8))
    x = torch.randn(2, 8)
    encoder(x)
    encoder.inner.eps = 0.5
    assert "code or attributes changed, until" in only(encoder.explain(x)).reason


def test_another_dtype():
    encoder = cached(nn.Identity())
    x = torch.randn(2, 8).bfloat16().float()
    encoder(x)
    reason = only(encoder.explain(x.double())).reason
    assert reason == "seen with another dtype: float32 then, float64 now"
    assert only(encoder.explain(torch.randn(2, 8).double())).reason == "never seen"


def test_another_length():
    encoder = cached(nn.Embedding(9, 4))
    encoder(torch.tensor([[1, 2, 3, 0, 0]]))
    reason = only(encoder.explain(torch.tensor([[1, 2, 3, 0]]))).reason
    assert reason == "seen at another length: 5 then, 4 now; trim= would make it a hit"
    reason = only(encoder.explain(torch.tensor([[1, 2, 3, 0, 0, 0]]))).reason
    assert reason == "seen at another length: 5 then, 6 now; trim= would make it a hit"
    assert only(encoder.explain(torch.tensor([[1, 2, 4, 0]]))).reason == "never seen"


def test_another_environment():
    encoder = cached()
    x = torch.randn(2, 8)
    encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        reason = only(encoder.explain(x)).reason
    assert reason == "seen in another environment: autocast '' then, 'torch.bfloat16' now"
    torch.set_default_dtype(torch.float64)
    try:
        reason = only(encoder.explain(x)).reason
    finally:
        torch.set_default_dtype(torch.float32)
    there = "default dtype 'torch.float32' then, 'torch.float64' now"
    assert reason == f"seen in another environment: {there}"


def test_other_arguments():
    class Scaled(nn.Module):
        def forward(self, x, scale=1.0):
            return x * scale

    encoder = cached(Scaled())
    x = torch.randn(2, 8)
    encoder(x)
    reason = only(encoder.explain(x, scale=2.0)).reason
    assert reason == "seen with other arguments beside the rows"


def test_another_chunk(tmp_path):
    layer = nn.Linear(8, 8)
    cache = tk.ActivationCache()
    x = torch.randn(2, 8)
    cached(layer, cache=cache, chunk=32)(x)
    other = cached(layer, cache=cache, chunk=1)
    assert only(other.explain(x)).reason == "seen in chunks of 32, which have other bits"


def test_evicted():
    encoder = cached(memory="64 KiB")
    x = torch.randn(4000, 8)
    encoder(x)
    found = {row.reason for row in encoder.explain(x)}
    assert any(reason.startswith("evicted") for reason in found), found
    assert encoder.stats.evictions or encoder.stats.rejections


def test_expired():
    encoder = CachedLayer(
        nn.Linear(8, 8).requires_grad_(False), cache=tk.ActivationCache(ttl=0.01), bypass="never"
    )
    x = torch.randn(2, 8)
    encoder(x)
    time.sleep(0.05)
    assert only(encoder.explain(x)).reason == "expired: older than ttl"


# --- Calls without the cache.


def alone(encoder, *args, **kwargs):
    reason = only(encoder.explain(*args, **kwargs)).reason
    prefix = "runs without the cache: "
    assert reason.startswith(prefix)
    return reason.removeprefix(prefix)


def test_switched_off():
    encoder = cached()
    x = torch.randn(2, 8)
    with tk.disabled():
        assert "tensorkey.disabled()" in alone(encoder, x)
    encoder.bypass = "always"
    assert alone(encoder, x) == "bypass='always'"


def test_stepped_aside():
    encoder = cached(nn.Identity(), bypass="auto")
    encoder._engine.core.stats  # noqa: B018  # what it decides comes from there
    for _ in range(20000):
        encoder(torch.randn(64, 64))
        if encoder.stats.decision.startswith("stepped aside"):
            break
    assert alone(encoder, torch.randn(2, 64)).startswith(
        "bypass='auto' stepped aside: a call costs"
    )


def test_bypassed_calls():
    x = torch.randn(3, 8)
    training = CachedLayer(nn.Linear(8, 8))
    assert alone(training, x).startswith("weights are trainable")
    assert len(training.explain(x)) == 3
    assert alone(cached(), x.requires_grad_()).startswith("an input requires grad")
    assert alone(cached(), torch.ones(0, 8)) == "a batch of 0 rows"
    hooked = cached(nn.Sequential(nn.Linear(8, 8)))
    hooked.inner[0].register_forward_hook(lambda *_: None)
    assert alone(hooked, torch.ones(1, 8)).startswith("forward hooks inside the layer")


def test_under_a_transform():
    encoder, found = cached(), []

    def f(row):
        found.append(alone(encoder, row))
        return row

    torch.func.vmap(f)(torch.ones(2, 1, 8))
    assert found == ["a torch.func transform"]


def test_refused_layers():
    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    encoder = cached(Centred())
    x = torch.randn(40, 8)
    with pytest.raises(errors.Unsupported):
        encoder(x)
    row = only(encoder.explain(x))
    assert not row.hit
    assert row.reason.startswith(
        "not cached: [CachedLayer] the rows of this layer cannot be cached"
    )


def test_whole_batches():
    encoder = cached(rows="batch")
    x = torch.randn(3, 8)
    encoder(x)
    assert encoder.explain(x) == [(True, "hit")]
    assert encoder.explain(x[:2]) == [(False, "never seen")]


def test_several_tensors_and_a_secret():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    encoder = cached(Two(), secret=b"s" * 32)
    x = torch.randn(4, 8)
    encoder(x[:2], x[:2])
    assert [row.hit for row in encoder.explain(x[:3], y=x[:3])] == [True, True, False]
    assert [row.hit for row in encoder.explain(x[:2], x[1:3])] == [False, False]


def test_trimmed_rows():
    class Tokens(nn.Module):
        def forward(self, ids, mask):
            return (ids * mask)[..., None].float()

    encoder = cached(Tokens(), trim=("mask", 1))
    ids = torch.tensor([[1, 2, 3, 9, 9], [1, 2, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    encoder(ids, mask)
    longer = torch.tensor([[1, 2] + [7] * 50, [1, 2, 3] + [0] * 49, [5] * 52])
    lengths = torch.tensor([2, 3, 52])
    found = encoder.explain(longer, mask=(torch.arange(52) < lengths[:, None]).long())
    assert [row.hit for row in found] == [True, True, False]
    assert alone(encoder, ids, torch.ones(2)) == "trim: the mask 'mask' has no dim 1"


# --- Hints.


def test_padding_is_noticed():
    encoder = cached(nn.Embedding(20, 4))
    text = [[5, 6, 7], [8, 9, 0]]
    encoder(torch.tensor(text))
    encoder(torch.tensor(text))
    assert not any("padding" in hint for hint in encoder.stats.hints)
    encoder(torch.tensor([[5, 6, 7, 0, 0], [8, 9, 0, 0, 0], [1, 2, 3, 4, 5]]))
    hints = [hint for hint in encoder.stats.hints if "padding" in hint]
    assert len(hints) == 1
    assert "trim=('attention_mask', 1)" in hints[0]
    encoder.reset_stats()
    assert encoder.stats.hints == []


@pytest.mark.parametrize("text", [[[5, 6, 1], [8, 9, 1]], [[1, 1, 1]]])
def test_other_rows_are_no_padding(text):
    encoder = cached(nn.Embedding(20, 4))
    encoder(torch.tensor(text))
    encoder(torch.tensor([[5, 6, 7, 0, 0], [8, 9, 3, 4, 5]]))
    assert encoder.stats.hints == []
