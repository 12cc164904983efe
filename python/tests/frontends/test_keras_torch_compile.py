"""Cached layers of Keras 3 on PyTorch in models that Keras compiles."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

from tensorkey.keras import CachedLayer  # noqa: E402

pytestmark = [
    # Keras's own, with NumPy 2: variables and tensors of PyTorch that require grad.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # PyTorch's own, of what Keras does while it is traced.
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch only"),
]


@pytest.fixture
def graphs(monkeypatch):
    """Return the graphs that are compiled meanwhile; they are run as they are."""
    torch = pytest.importorskip("torch")
    compiled, compiler = [], torch.compile

    def keep(module, examples):
        compiled.append(module)
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=keep))
    keras.utils.set_random_seed(0)
    yield compiled
    torch._dynamo.reset()


def batch(rows=64, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, width)).astype("float32")


def models():
    layer = keras.Sequential(
        [keras.layers.Dense(16, activation="relu"), keras.layers.BatchNormalization()]
    )
    layer.build((None, 8))
    layer.trainable = False
    cached = CachedLayer(layer, bypass="never")
    model, plain = (
        keras.Sequential([keras.Input((8,)), part, keras.layers.Dense(1)])
        for part in (cached, layer)
    )
    plain.set_weights(model.get_weights())
    model.compile("sgd", "mse", jit_compile=True)
    plain.compile("sgd", "mse", jit_compile=False)
    return cached, model, plain


def test_a_compiled_model_answers_from_the_cache(graphs):
    cached, model, plain = models()
    x = batch()
    expected = plain.predict(x, verbose=0)
    assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    count = len(graphs)
    assert count > 0  # what is around the layer is compiled
    for _ in range(2):
        assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert len(graphs) == count  # and nothing of the cache, which differs from call to call
    assert (cached.stats.misses, cached.stats.hits, cached.stats.errors) == (64, 128, {})
    for rounds in range(2):
        weight = cached.layer.weights[0]
        weight.assign(keras.ops.convert_to_numpy(weight.value) + 1)
        found = model.predict(x, verbose=0)
        assert np.allclose(found, plain.predict(x, verbose=0), atol=1e-5)
        assert cached.stats.misses == 128 + 64 * rounds


def test_gradients_of_a_head_flow_through_a_compiled_model(graphs):
    import torch

    cached, model, plain = models()
    x = keras.ops.convert_to_tensor(batch())
    compiled = torch.compile(lambda x: model(x, training=True))
    found = []
    for run in (compiled, compiled, lambda x: plain(x, training=True)):
        for each in (model, plain):
            each.zero_grad()
        run(x).square().sum().backward()
        head = (model if run is compiled else plain).layers[-1]
        found.append([weight.value.grad.clone() for weight in head.trainable_weights])
    for grads in found[:2]:
        assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(grads, found[2], strict=True))
    assert (cached.stats.misses, cached.stats.hits) == (64, 64)


def test_keys_of_the_callers_own_in_a_compiled_function(graphs):
    import torch

    cached, _, _ = models()
    x = keras.ops.convert_to_tensor(batch())
    named = torch.compile(lambda x: cached.with_keys([*range(64)])(x) * 2)
    expected = keras.ops.convert_to_numpy(cached.layer(x)) * 2
    for _ in range(2):
        assert np.allclose(keras.ops.convert_to_numpy(named(x)), expected, atol=1e-5)
    assert cached.stats.hits == 64
