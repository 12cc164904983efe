"""Models without their cached layers, exported models, saved and moved weights."""

import os
import subprocess
import sys

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

from tensorkey.keras import CachedLayer, strip  # noqa: E402

# Keras's own, with NumPy 2: variables and tensors of PyTorch that require grad.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BACKEND = keras.backend.backend()
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow only")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def batch(rows=20, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *(shape or (8,)))).astype("float32")


def cached_dense(units=4, width=8, name=None):
    layer = keras.layers.Dense(units)
    layer.build((None, width))
    layer.trainable = False
    return CachedLayer(layer, chunk=1, bypass="never", name=name)


@keras.saving.register_keras_serializable(package="tensorkey_tests")
class Block(keras.layers.Layer):
    """Cached layers in attributes, weights and plain values of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = cached_dense()
        self.more = {"towers": [cached_dense(5, 4), keras.layers.Dense(2)], "scale": 3.0}
        self.names = ["a", "b"]

    def build(self, shape):
        self.gain = self.add_weight(shape=(2,), initializer="ones")
        self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.more["towers"][1].build((None, 5))

    def call(self, x):
        x = self.first(x)
        for tower in self.more["towers"]:
            x = tower(x)
        return x * self.gain * self.more["scale"]


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.block = Block()
        self.head = keras.layers.Dense(1)
        self.plain = keras.layers.Dense(8)

    def call(self, x):
        return self.head(self.block(self.plain(x)))


def sequential():
    inner = keras.Sequential([cached_dense(name="in"), keras.layers.Dense(6)], name="inner")
    return keras.Sequential([keras.Input((8,), name="x"), inner, keras.layers.Dense(1)], name="s")


def functional():
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    shared = cached_dense()
    both = keras.layers.Concatenate()([shared(left), keras.ops.relu(shared(right))])
    outputs = {"far": keras.layers.Dense(3)(both), "near": Block()(left)}
    return keras.Model([left, right], outputs, name="f")


def cached_in(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, CachedLayer)]


@pytest.mark.parametrize("make", [sequential, functional, Subclassed, Block])
def test_a_stripped_model_is_the_plain_one_with_the_same_weights(make):
    model = make()
    x = [batch(), batch(seed=1)] if make is functional else batch()
    model(x)
    expected = keras.tree.map_structure(array, model(x))
    cached = cached_in(model)
    assert cached
    plain = strip(model)
    assert cached_in(plain) == []
    assert cached_in(model) == cached  # it stays as it is
    assert plain.name == model.name
    assert plain.built
    for kind in ("weights", "trainable_weights", "non_trainable_weights"):
        one, other = getattr(plain, kind), getattr(model, kind)
        assert list(map(id, one)) == list(map(id, other))
    found = keras.tree.map_structure(array, plain(x))
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        assert np.allclose(one, other, atol=1e-5)
    model.set_weights([w + 1 for w in model.get_weights()])
    one, other = keras.tree.flatten(plain(x))[0], keras.tree.flatten(model(x))[0]
    assert np.allclose(array(one), array(other), rtol=1e-4)
    assert not np.allclose(array(one), keras.tree.flatten(expected)[0], atol=1e-2)
    if make is sequential:
        assert [layer.name for layer in plain.layers[0].layers][1:] == [
            layer.name for layer in model.layers[0].layers
        ][1:]
    if make is Block:
        assert type(plain) is Block
        assert plain.names == ["a", "b"]
        assert plain.more["scale"] == 3.0
        assert plain.more["towers"][1] is model.more["towers"][1]


def test_what_holds_no_cached_layer_is_returned_itself():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    assert strip(model) is model
    layer = keras.layers.Dense(3)
    assert strip(CachedLayer(CachedLayer(layer))) is layer


def test_a_stripped_model_trains_the_same_weights():
    model = sequential()
    cached_in(model)[0].layer.trainable = True
    plain = strip(model)
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    before = model.get_weights()
    plain.fit(batch(40), batch(40, 1, seed=2), verbose=0)
    moved = [np.abs(a - b).max() > 0 for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(moved)
    assert cached_in(model)[0].stats.lookups == 0


def test_a_stripped_model_is_frozen_and_thawed_like_the_other():
    model = functional()
    model.trainable = False
    plain = strip(model)
    assert plain.trainable_weights == []
    plain.trainable = True
    assert len(plain.trainable_weights) == len(model.weights) - 1  # one is not for training


def test_weights_move_between_plain_and_cached_models():
    model, other = sequential(), strip(sequential())
    other.set_weights([w * 0 + 0.5 for w in model.get_weights()])
    x = batch()
    assert not np.allclose(array(model(x)), array(other(x)), atol=1e-3)
    model.set_weights(other.get_weights())
    assert np.allclose(array(model(x)), array(other(x)), atol=1e-5)


def test_a_weights_file_moves_by_way_of_strip(tmp_path):
    model, other = sequential(), sequential()
    other.set_weights([w + 1 for w in other.get_weights()])
    path = tmp_path / "plain.weights.h5"
    strip(other).save_weights(path)
    with pytest.raises(ValueError, match="Layer|layer"):  # the path of a weight gains /layer/
        model.load_weights(path)
    strip(model).load_weights(path)
    assert np.allclose(array(model(batch())), array(other(batch())), atol=1e-5)


def test_a_keras_file_of_a_stripped_model_names_no_cached_layer(tmp_path):
    model = sequential()
    path = tmp_path / "plain.keras"
    strip(model).save(path)
    loaded = keras.saving.load_model(path)
    assert cached_in(loaded) == []
    assert np.allclose(array(loaded(batch())), array(model(batch())), atol=1e-5)
    twice = tmp_path / "cached.keras"
    model.save(twice)
    again = keras.saving.load_model(twice)
    assert len(cached_in(again)) == 1
    assert np.allclose(again.predict(batch(), verbose=0), array(model(batch())), atol=1e-5)
    assert np.allclose(array(strip(again)(batch())), array(model(batch())), atol=1e-5)


# --- Exported models.

LOADS = """
import sys, numpy as np, tensorflow as tf
x, expected = np.load(sys.argv[2] + "/x.npy"), np.load(sys.argv[2] + "/expected.npy")
for name in sys.argv[3:]:
    loaded = tf.saved_model.load(f"{sys.argv[2]}/{name}")
    run = getattr(loaded, "serve", None) or loaded.signatures["serving_default"]
    output = run(tf.constant(x))
    output = next(iter(output.values())) if isinstance(output, dict) else output
    assert np.allclose(output, expected, atol=1e-5), name
    assert output.shape == (20, 1)
    assert run(tf.constant(x[:3])) is not None
assert not any(name.startswith("tensorkey") for name in sys.modules)
"""


@tensorflow_only
def test_what_is_exported_is_the_layer_itself(tmp_path):
    import tensorflow as tf

    model = sequential()
    [cached] = cached_in(model)
    model.compile("sgd", "mse")
    x = batch()
    model.fit(x, x[:, :1], verbose=0)  # graphs that call back are there
    expected = model.predict(x, verbose=0)
    lookups = cached.stats.lookups

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.serve = tf.function(model, input_signature=[tf.TensorSpec([None, 8])])

    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, tmp_path / "saved")
    module = Module()
    module.serve(x)
    tf.saved_model.save(module, tmp_path / "module")
    assert cached.stats.lookups == lookups + 20
    assert any("is exported" in reason for reason in cached.stats.bypasses)
    assert any("is saved" in reason for reason in cached.stats.bypasses)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "expected.npy", expected)
    command = [sys.executable, "-c", LOADS, "_", tmp_path, "exported", "saved", "module"]
    subprocess.run(command, check=True, timeout=300)
    assert np.allclose(model.predict(x, verbose=0), expected)  # still cached here
    assert cached.stats.hits >= 20


@tensorflow_only
def test_a_graph_that_calls_back_is_not_saved(tmp_path):
    import tensorflow as tf

    class Module(tf.Module):
        pass

    module = Module()
    module.model = model = sequential()
    asked = tf.function(model, input_signature=[tf.TensorSpec([None, 8])])
    traced = asked.get_concrete_function()
    with pytest.raises(AssertionError, match="use_tensorkey_keras_strip_before_saving"):
        tf.saved_model.save(module, tmp_path / "module", signatures=traced)
