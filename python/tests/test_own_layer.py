"""A TensorKeyDict as an attribute of a layer of one's own, as docs/mappings.md shows it."""

import copy
import io

import pytest

import tensorkey as tk

np = pytest.importorskip("numpy")

# Keras reads its tensors and variables in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:(.|\\n)*__array__ implementation doesn't accept a")


# --- PyTorch --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch_layer():
    torch = pytest.importorskip("torch")

    class Encoder(torch.nn.Module):
        """A frozen layer that remembers what it computed."""

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4).requires_grad_(False)
            self.cache = tk.TensorKeyDict()
            self.runs = 0

        def forward(self, x):
            y = self.cache.get(x)
            if y is None:
                self.runs += 1
                y = self.cache[x] = self.linear(x)
            return y.clone()

    Encoder.__module__ = __name__
    Encoder.__qualname__ = "Encoder"
    globals()["Encoder"] = Encoder  # so that pickle finds it
    return Encoder


def test_torch_module_remembers(torch_layer):
    import torch

    layer, x = torch_layer(), torch.randn(2, 4)
    first = layer(x)
    assert torch.equal(layer(x.clone()), first)
    assert layer.runs == 1
    layer(x)[:] = 0
    assert torch.equal(layer(x), first), "what is handed out is a clone"
    layer(x + 1)
    assert layer.runs == 2
    assert isinstance(layer.cache, tk.TensorKeyDict)


def test_torch_state_dict_leaves_the_cache_out(torch_layer):
    import torch

    layer = torch_layer()
    layer(torch.randn(2, 4))
    assert set(layer.state_dict()) == {"linear.weight", "linear.bias"}
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = torch_layer()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert len(other.cache) == 0


def test_torch_deepcopy_and_whole_module_save_keep_the_cache(torch_layer):
    import torch

    layer, x = torch_layer(), torch.randn(2, 4)
    y = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert other.cache is not layer.cache
        assert torch.equal(other(x), y)
        assert other.runs == 1
        other(x + 1)
    assert len(layer.cache) == 1
    assert layer.cache[x].data_ptr() != copy.deepcopy(layer).cache[x].data_ptr()


def test_torch_identity_cache_starts_anew_in_a_copy_that_has_its_own_tensors(torch_layer):
    import torch

    layer, x = torch_layer(), torch.randn(2, 4)
    layer.cache = tk.TensorKeyDict(by="identity")
    layer(x)
    assert len(copy.deepcopy(layer).cache) == 1
    with pytest.raises(TypeError, match="objects of this process"):
        torch.save(layer, io.BytesIO())
    del x
    assert len(layer.cache) == 0


def test_torch_module_methods_leave_the_cache_alone(torch_layer):
    import torch

    layer, x = torch_layer(), torch.randn(2, 4)
    layer(x)
    layer.eval().double().train()
    assert len(layer.cache) == 1, "entries of other weights: clear() it when they change"
    assert not list(layer.buffers())
    assert "cache" not in dict(layer.named_modules())


# --- Keras ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras_layer():
    keras = pytest.importorskip("keras")

    @keras.saving.register_keras_serializable("test_own_layer")
    class Remembering(keras.layers.Layer):
        """A frozen layer that remembers what it computed in eager calls."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = keras.layers.Dense(3)
            self.trainable = False
            self.cache = tk.TensorKeyDict()
            self.runs = 0

        def build(self, input_shape):
            self.dense.build(input_shape)

        def call(self, x):
            try:
                y = self.cache.get(x)
            except tk.errors.Unsupported:  # no value while the model is traced
                return self.dense(x)
            if y is None:
                self.runs += 1
                y = self.dense(x)
                self.cache[x] = keras.ops.convert_to_numpy(y)
            return keras.ops.convert_to_tensor(y)

    return Remembering


def to_numpy(tensor):
    import keras

    return keras.ops.convert_to_numpy(tensor)


def test_keras_attribute_stays_what_it_is(keras_layer):
    layer = keras_layer()
    assert type(layer.cache) is tk.TensorKeyDict
    x = np.ones((2, 4), np.float32)
    y = to_numpy(layer(x))
    assert np.array_equal(to_numpy(layer(x)), y)
    assert layer.runs == 1
    assert len(layer.weights) == 2
    layer.cache = tk.TensorKeyDict(layer.cache)
    assert np.array_equal(to_numpy(layer(x)), y)


def test_keras_model_saves_without_the_cache(keras_layer, tmp_path):
    import keras

    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras_layer(name="remembering")(inputs))
    layer = model.get_layer("remembering")
    assert len(layer.cache) == 0, "symbolic calls leave no entry"
    y = to_numpy(model(x))
    assert len(layer.cache) == 1
    assert np.array_equal(to_numpy(model(x)), y)
    assert layer.runs == 1
    model.save(tmp_path / "model.keras")
    small = (tmp_path / "model.keras").stat().st_size
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.get_layer("remembering").cache) == 0
    assert np.allclose(to_numpy(loaded(x)), y)
    for i in range(200):
        layer(x + i)
    model.save(tmp_path / "model.keras")
    assert (tmp_path / "model.keras").stat().st_size < small + 1000
    model.save_weights(tmp_path / "model.weights.h5")
    assert np.allclose(model.predict(x, verbose=0), y, atol=1e-6)
    assert len(layer.cache) == 200, "traced calls leave no entry"


def test_keras_deepcopy(keras_layer):
    layer = keras_layer()
    x = np.ones((2, 4), np.float32)
    layer(x)
    cache = copy.deepcopy(layer.cache)
    cache.clear()
    assert len(layer.cache) == 1
