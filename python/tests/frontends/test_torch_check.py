"""tk.check(): one table before anybody commits to caching."""

import dataclasses
import math
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer, cached  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder():
    layer = nn.Sequential(nn.Linear(16, 512), nn.GELU(), nn.Linear(512, 512), nn.Linear(512, 8))
    return layer.eval().requires_grad_(False)


def test_a_layer_that_may_be_cached():
    found = tk.check(encoder(), torch.randn(64, 16))
    assert found.refused is None
    assert (found.rows, found.chunk) == (64, 32)
    assert found.verdict.startswith("clean")
    assert min(found.milliseconds_layer, found.milliseconds_miss, found.milliseconds_hit) > 0
    assert 32 < found.bytes_row < 4096
    assert found.break_even >= 0
    assert any("6 tensors of weights" in text for text in found.scope)
    assert any("Linear" in text for text in found.scope)
    assert found.notes == []
    text = str(found)
    assert len(text.splitlines()) == len([line for line in text.splitlines() if line[:13].strip()])
    for name in ("verdict", "layer alone", "all hits", "no hit", "worth it", "a row", "depends on"):
        assert any(line.startswith(name) for line in text.splitlines()), name
    assert "assumed      nothing" in text


def test_break_even():
    some = tk.check(nn.Identity(), torch.ones(2, 2))

    def of(layer, miss, hit):
        return dataclasses.replace(
            some,
            refused=None,
            milliseconds_layer=layer,
            milliseconds_miss=miss,
            milliseconds_hit=hit,
        ).break_even

    assert of(10, 12, 2) == 0.2
    assert of(10, 9, 2) == 0
    assert of(1, 12, 2) > 1
    assert math.isinf(of(1, 2, 3))


def test_a_layer_too_cheap():
    found = tk.check(nn.Identity(), torch.ones(64, 4))
    assert found.break_even > 1
    assert "never: it is too cheap" in str(found)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (nn.Sequential(nn.Linear(16, 8), nn.Dropout()), "draws random numbers"),
        (Centred(), "cannot be cached one by one"),
        (nn.BatchNorm1d(16), "changes its own state"),
    ],
    ids=["dropout", "batch statistics", "BatchNorm in training"],
)
def test_refused_layers_are_no_error(layer, why):
    layer.train().requires_grad_(False)
    x = torch.randn(64, 16)
    state = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    found = tk.check(layer, x)
    assert why in found.refused
    assert found.milliseconds_layer > 0
    assert math.isnan(found.milliseconds_hit)
    text = str(found)
    assert text.startswith("verdict      " + found.refused)
    assert "all hits" not in text
    assert "layer alone" in text
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in layer.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_a_layer_that_is_bypassed():
    layer = encoder()
    layer[0].register_forward_hook(lambda *_: None)
    found = tk.check(layer, torch.randn(4, 16))
    assert found.refused.startswith("runs without the cache: forward hooks inside the layer")
    assert tk.check(encoder(), torch.randn(0, 16)).refused == (
        "runs without the cache: a batch of 0 rows"
    )


def test_a_trainable_layer_is_measured_as_in_inference():
    layer = encoder().requires_grad_()
    found = tk.check(layer, torch.randn(32, 16))
    assert found.refused is None
    assert ["while gradients are recorded" in note for note in found.notes] == [True]
    assert "note         while gradients are recorded" in str(found)
    assert all(weight.grad is None and weight.requires_grad for weight in layer.parameters())


def test_assumptions_are_named():
    factor = {"of": 2.0}
    layer = nn.Identity()
    found = tk.check(cached(lambda x: layer(x) * factor["of"], [layer]), torch.randn(32, 4))
    assert found.refused is None
    assert isinstance(found.assumptions, list)


def test_batches_of_several_kinds():
    class Two(nn.Module):
        def forward(self, x, y=None):
            return x if y is None else x + y

    x = torch.randn(20, 4)
    for batch in (x, (x,), (x, x), {"x": x, "y": x}):
        assert tk.check(Two(), batch).rows == 20


def test_a_cached_layer_keeps_its_entries_and_options():
    layer = CachedLayer(encoder(), chunk=64, secret=b"s" * 32)
    x = torch.randn(20, 16)
    layer(x)
    before = layer.stats
    found = tk.check(layer, x)
    assert found.chunk == 64
    assert layer.stats == before


def test_a_trimmed_layer():
    class Tokens(nn.Module):
        def forward(self, ids, mask):
            return (ids * mask)[..., None].float()

    layer = CachedLayer(Tokens(), trim=("mask", 1))
    ids = torch.arange(80).reshape(16, 5)
    found = tk.check(layer, {"ids": ids, "mask": torch.ones_like(ids)})
    assert found.refused is None
    assert any(text.startswith("trim:") for text in found.assumptions)


def test_exceptions_of_the_layer_pass_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        tk.check(encoder(), torch.randn(4, 3))


@pytest.mark.parametrize(
    "what", [None, "layer", lambda x: x, torch.ones(1)], ids=lambda what: type(what).__name__
)
def test_what_is_no_layer(what):
    with pytest.raises(errors.Unsupported, match="expected a torch.nn.Module, a Keras layer"):
        tk.check(what, torch.ones(1))


def test_a_layer_of_keras():
    pytest.importorskip("keras")
    code = """
import keras, numpy as np, tensorkey as tk
layer = keras.Sequential([keras.layers.Dense(64), keras.layers.Dense(4)])
layer.trainable = False
x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
found = tk.check(layer, keras.ops.convert_to_tensor(x))
assert found.refused is None, found
assert found.rows == 32 and found.milliseconds_hit > 0, found
dropout = keras.Sequential([keras.layers.Dense(4), keras.layers.GaussianNoise(1.0)])
print(tk.check(dropout, keras.ops.convert_to_tensor(x)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
