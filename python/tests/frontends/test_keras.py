"""Cached layers of Keras 3, on the backend that KERAS_BACKEND names."""

import functools
import os
import threading

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.keras import CachedLayer  # noqa: E402
from tensorkey.testing import check_hits_equal_chunks  # noqa: E402

# Keras's own, with NumPy 2: variables and tensors of PyTorch that require grad.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
BACKEND = keras.backend.backend()
supported = pytest.mark.skipif(
    BACKEND not in ("tensorflow", "torch", "jax"), reason=f"no cached layers on {BACKEND}"
)
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow only")
torch_only = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch only")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def same(one, other):
    return array(one).tobytes() == array(other).tobytes()


def as_chunks_run(layer):
    """Return the layer as its chunks are run: on JAX jitted, its weights arguments."""
    if BACKEND != "jax":
        return layer
    import jax

    run = jax.jit(layer.stateless_call)

    def compiled(x):
        values = [[v.value for v in vs] for vs in variables]
        return run(*values, x)[0]

    variables = (layer.trainable_variables, layer.non_trainable_variables)
    return compiled


def batch(rows=40, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *(shape or (8,)))).astype("float32")


def encoder():
    layer = keras.Sequential(
        [
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(4),
        ]
    )
    layer.build((None, 8))
    layer.trainable = False
    return layer


@keras.saving.register_keras_serializable(package="tensorkey_tests")
class Pair(keras.layers.Layer):
    def call(self, a, b):
        return a - 2 * b


@keras.saving.register_keras_serializable(package="tensorkey_tests")
class Scaled(keras.layers.Layer):
    def __init__(self, scale=2.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.dense = keras.layers.Dense(3)
        self.table = np.ones(3, "float32")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * self.scale + keras.ops.convert_to_tensor(self.table)


@pytest.mark.skipif(BACKEND in ("tensorflow", "torch", "jax"), reason="this backend is supported")
def test_another_backend_is_refused_by_name():
    with pytest.raises(errors.Unsupported, match=f"the Keras backend is '{BACKEND}'"):
        CachedLayer(keras.layers.Dense(3))


@supported
@pytest.mark.parametrize("chunk", [1, 32])
@pytest.mark.parametrize("name", ["dense", "conv", "lstm", "attention"])
def test_no_bit_differs_from_the_layer_in_chunks(name, chunk):
    layer, x = {
        "dense": lambda: (encoder(), batch(60)),
        "conv": lambda: (
            keras.Sequential(
                [keras.layers.Conv2D(6, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
            ),
            batch(60, 9, 9, 3),
        ),
        "lstm": lambda: (keras.layers.LSTM(12), batch(60, 5, 8)),
        "attention": lambda: (self_attention(), batch(60, 6, 16)),
    }[name]()
    layer.trainable = False
    layer(x[:2])
    run = as_chunks_run(layer)
    cached = CachedLayer(layer, chunk=chunk, bypass="never")
    cached(x[:32])
    if cached.stats.probe.startswith("slot"):  # of matrix products on some processors
        chunk = 1
    check_hits_equal_chunks(
        lambda rows: cached(x[list(rows)]),
        lambda rows: run(keras.ops.convert_to_tensor(x[list(rows)])),
        same,
        rows=60,
        chunk=chunk,
        count=10 if chunk == 1 else 50,
        seed=3,
        restart=cached.cache_clear,
    )
    assert cached.stats.chunk == chunk
    assert cached.stats.hits > 0
    assert cached.stats.bypasses == {}


def self_attention():
    x = keras.Input((6, 16))
    return keras.Model(x, keras.layers.MultiHeadAttention(2, 8)(x, x))


@supported
def test_several_inputs_by_position_and_as_a_list():
    a, b = batch(20), batch(20, seed=1)
    cached = CachedLayer(Pair(), bypass="never")
    cached(a, b)  # builds
    assert np.array_equal(array(cached(a, b)), a - 2 * b)
    assert np.array_equal(array(cached(b, a)), b - 2 * a)
    assert np.array_equal(array(cached(a, b)), a - 2 * b)
    assert (cached.stats.hits, cached.stats.misses) == (20, 40)
    joined = CachedLayer(keras.layers.Concatenate(), bypass="never")
    for _ in range(3):
        assert np.array_equal(array(joined([a, b])), np.concatenate([a, b], 1))
    assert joined.stats.hits == 20


@supported
def test_a_frozen_layer_runs_as_in_inference_inside_fit():
    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    x, y = batch(64), np.zeros((64, 1), "float32")
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(x, y, epochs=3, batch_size=32, verbose=0, shuffle=False)
    stats = cached.stats
    assert (stats.misses, stats.hits) == (64, 128)
    model.predict(x, verbose=0)
    model.evaluate(x, y, verbose=0)
    assert cached.stats.misses == 64
    assert np.allclose(array(cached(x)), array(layer(x, training=False)), atol=1e-6)
    expected = array(model.layers[-1](layer(x, training=False)))
    assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-5)


@supported
def test_sublayers_without_a_training_argument_do_not_see_that_fit_trains():
    @keras.saving.register_keras_serializable(package="tensorkey_tests")
    class Outer(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.drop = keras.layers.Dropout(0.5)

        def call(self, x):
            return self.drop(x)

    cached = CachedLayer(Outer(), bypass="never")
    x = batch(20)
    for _ in range(3):
        assert np.array_equal(array(cached(x, training=True)), x)
    assert cached.stats.hits == 20


@tensorflow_only
def test_tapes_and_accumulators_are_respected():
    import tensorflow as tf

    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    x = tf.constant(batch(20))
    cached(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(cached(x) ** 2)
    with tf.GradientTape() as plain:
        plain.watch(x)
        expected = tf.reduce_sum(layer(x) ** 2)
    assert np.allclose(tape.gradient(loss, x), plain.gradient(expected, x), atol=1e-5)
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as forward:
        output = cached(x)
    assert forward.jvp(output) is not None
    (reason,) = cached.stats.bypasses
    assert "gradient with respect to the input" in reason
    with tf.GradientTape():
        cached(x)
    assert cached.stats.hits == 20
    layer.trainable = True
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(cached(x))
    assert all(g is not None for g in tape.gradient(loss, layer.trainable_weights))
    assert any("layer.trainable = False" in reason for reason in cached.stats.bypasses)


@torch_only
def test_gradients_on_torch():
    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    x = keras.ops.convert_to_tensor(batch(20))
    cached(x)
    x.requires_grad_(True)
    keras.ops.sum(cached(x)).backward()
    assert x.grad is not None
    assert any("an input requires grad" in reason for reason in cached.stats.bypasses)
    layer.trainable = True
    keras.ops.sum(cached(x.detach())).backward()
    assert layer.trainable_weights[0].value.grad is not None
    assert any("layer.trainable = False" in reason for reason in cached.stats.bypasses)


@supported
def test_functional_models_build_and_mixed_calls_agree():
    inputs = keras.Input((8,))
    cached = CachedLayer(keras.layers.Dense(5), bypass="never")
    outputs = cached(inputs)
    assert outputs.shape == (None, 5)
    assert cached.layer.built
    model = keras.Model(inputs, outputs)
    assert len(model.weights) == 2
    x = batch(20)
    assert np.allclose(model.predict(x, verbose=0), array(cached.layer(x)), atol=1e-6)
    two = keras.Input((4,)), keras.Input((4,))
    pair = CachedLayer(Pair(), bypass="never")(*two)
    model = keras.Model(list(two), pair)
    a, b = batch(20, 4), batch(20, 4, seed=1)
    assert np.array_equal(model.predict([a, b], verbose=0), a - 2 * b)


@supported
def test_saving_keeps_weights_and_options_and_no_cache(tmp_path):
    x = batch(64)
    secret = bytes(range(100, 132))
    cached = CachedLayer(
        encoder(), memory="32 MiB", chunk=32, scope=b"\xff", secret=secret, name="enc"
    )
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    expected = model.predict(x, verbose=0)
    cached(x)
    path = tmp_path / "model.keras"
    model.save(path)
    assert path.stat().st_size < 60_000
    assert secret not in path.read_bytes()
    assert str(secret.hex()) not in str(cached.get_config())
    loaded = keras.saving.load_model(path)
    assert np.array_equal(loaded.predict(x, verbose=0), expected)
    twin = loaded.get_layer("enc")
    assert isinstance(twin, CachedLayer)
    assert twin.stats.bound == 32 << 20
    assert twin._options.scope == b"\xff"
    assert twin._options.secret not in (None, secret)
    assert same(twin(x), cached(x))


def changes():
    def assign(layer):
        weight = layer.weights[0]
        weight.assign(array(weight) + 1)

    def set_weights(layer):
        layer.set_weights([w + 1 for w in layer.get_weights()])

    def statistics(layer):
        layer.layers[1].moving_mean.assign(np.ones(16))

    def epsilon(layer):
        layer.layers[1].epsilon = 1.0

    def activation(layer):
        layer.layers[0].activation = keras.activations.tanh

    return {
        "assign": assign,
        "set_weights": set_weights,
        "statistics": statistics,
        "epsilon": epsilon,
        "activation": activation,
    }


@supported
@pytest.mark.parametrize("name", changes())
def test_after_a_change_no_old_answer(name):
    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    x = batch(32)
    before = cached(x)
    kept = layer.get_weights()
    changes()[name](layer)
    after = cached(x)
    assert not same(after, before)
    assert np.allclose(array(after), array(layer(x)), atol=1e-5)
    assert cached.stats.hits == 0
    if name in ("assign", "set_weights", "statistics"):
        layer.set_weights(kept)
        assert same(cached(x), before)
        assert cached.stats.hits == 32


@supported
def test_attributes_and_sublayers_of_own_layers_count():
    layer = Scaled()
    layer(batch(2))
    layer.trainable = False
    cached = CachedLayer(layer, bypass="never")
    x = batch(32)
    seen = [array(cached(x))]

    def check():
        seen.append(array(cached(x)))
        assert np.allclose(seen[-1], array(layer(x)), atol=1e-5)
        assert cached.stats.hits == 0

    layer.scale = 3.0
    check()
    layer.table[:] = 5
    check()
    dense = keras.layers.Dense(3, trainable=False)
    dense.build((None, 8))
    layer._tracker.unlock()
    layer.dense = dense
    check()
    assert cached.stats.assumptions == []


@supported
def test_a_functional_model_is_told_by_its_graph():
    def build(first, second):
        x = keras.Input((8,))
        return keras.Model(x, first(second(x)))

    layers = [keras.layers.Activation("relu"), keras.layers.Rescaling(-2.0)]
    from tensorkey._fingerprint import Fingerprint
    from tensorkey._keras_layers import KerasLayers

    digests = set()
    for first, second in (layers, layers[::-1]):
        tracker = Fingerprint(KerasLayers(), functools.partial(build, first, second))
        digests.add(tracker.check().digest)
    assert len(digests) == 2


@supported
def test_settings_of_keras_count():
    class Shifted(keras.layers.Layer):
        def call(self, x):
            return x + keras.config.epsilon()

    layer = Shifted()
    x = batch(20)
    layer(x)
    cached = CachedLayer(layer, bypass="never")
    before = cached(x)
    epsilon = keras.config.epsilon()
    try:
        keras.config.set_epsilon(1.0)
        assert same(cached(x), layer(x))
    finally:
        keras.config.set_epsilon(epsilon)
    assert same(cached(x), before)
    assert cached.stats.hits == 20


@supported
def test_a_call_changes_nothing_that_the_fingerprint_reads():
    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    x = batch(20)
    cached(x)
    reading = cached._fingerprint.reading()
    cached(x)
    layer(x)
    assert cached._fingerprint.read() is reading


@supported
def test_masks_and_losses_run_the_layer_itself():
    embedding = keras.layers.Embedding(10, 4, mask_zero=True)
    tail = CachedLayer(keras.layers.LSTM(3), bypass="never")
    tail.layer.trainable = False
    ids = np.array([[1, 2, 0], [3, 0, 0]] * 10)
    output = tail(embedding(ids))
    assert np.allclose(array(output), array(tail.layer(embedding(ids))), atol=1e-6)
    tail(embedding(ids))
    assert "an input with a mask" in tail.stats.bypasses
    assert tail.stats.lookups == 0

    @keras.saving.register_keras_serializable(package="tensorkey_tests")
    class Losing(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x))
            return x

    losing = CachedLayer(Losing(), bypass="never")
    x = batch(20)
    for _ in range(3):
        losing(x)
    assert any("adds losses" in reason for reason in losing.stats.bypasses)
    assert losing.stats.entries == 0


@supported
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "mixed_bfloat16"])
def test_dtype_policies_are_the_layers(dtype):
    layer = keras.layers.Dense(8, dtype=dtype, trainable=False)
    cached = CachedLayer(layer, bypass="never")
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 unless told")
    wide = "float32" if BACKEND == "jax" else "float64"
    x = keras.ops.convert_to_tensor(batch(20), dtype=wide)
    cached(x)
    one, two, plain = cached(x), cached(x), layer(x)
    assert one.dtype == plain.dtype
    assert cached.stats.hits == 20
    widened = [array(keras.ops.cast(y, wide)) for y in (one, two, plain)]
    assert np.array_equal(widened[0], widened[1])
    assert np.allclose(widened[0], widened[2], atol=1e-2)


@supported
def test_the_probe_refuses_dependent_rows_and_randomness():
    class Centred(keras.layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0)

    class Noise(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seed = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)

    class Unseeded(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x))

    x = batch(40)
    for layer, text in ((Centred(), "rows depend on each other"), (Noise(), "its own state")):
        layer(x)
        cached = CachedLayer(layer, bypass="never")
        with pytest.raises(errors.Unsupported, match=text):
            cached(x)
    noise = layer
    state = array(noise.seed.state.value).copy()
    with pytest.raises(errors.Unsupported):
        cached(x)
    assert np.array_equal(array(noise.seed.state.value), state)
    unseeded = Unseeded()
    unseeded(x)
    cached = CachedLayer(unseeded, bypass="never")
    if BACKEND == "jax":  # which runs chunks jitted, where Keras takes no seed of its own
        cached(x)
        assert cached.stats.lookups == 0
        return
    with pytest.raises(errors.Unsupported):
        cached(x)


@supported
def test_another_batch_size_is_an_error_before_anything_is_stored():
    class Total(keras.layers.Layer):
        def call(self, x):
            return keras.ops.sum(x, axis=0, keepdims=True)

    layer = Total()
    layer(batch(4))
    cached = CachedLayer(layer, bypass="never")
    with pytest.raises(errors.InvalidArgument, match="neither a row for each input row"):
        cached(batch(4))
    assert cached.stats.entries == 0


@supported
def test_options_out_of_range_are_refused():
    for options in ({"memory": 0}, {"chunk": 3}, {"secret": b""}):
        with pytest.raises(errors.InvalidArgument):
            CachedLayer(keras.layers.ReLU(), **options)
    with pytest.raises(errors.InvalidArgument, match="expected a Keras layer"):
        CachedLayer(len)


# --- The cache behind it.


@supported
def test_layers_share_a_cache_and_never_answers():
    cache = tk.ActivationCache("4 MiB")
    two = CachedLayer(keras.layers.Rescaling(2.0), cache=cache, bypass="never")
    three = CachedLayer(keras.layers.Rescaling(3.0), cache=cache, bypass="never")
    x = batch(20)
    for _ in range(3):  # the first call builds
        assert np.array_equal(array(two(x)), x * 2)
        assert np.array_equal(array(three(x)), x * 3)
    assert (two.stats.misses, two.stats.hits) == (20, 20)
    assert two.cache is cache
    assert len(cache) == 44  # what the probe found and how outputs are made: two of each
    two.cache_clear()
    assert len(cache) == 23  # what the probe found holds for any weights
    two.reset_stats()
    assert two.stats.lookups == 0
    with pytest.raises(errors.InvalidArgument, match="expected one of them"):
        CachedLayer(keras.layers.ReLU(), cache=cache, memory="1 GiB")


@supported
def test_a_directory_outlives_the_layer(tmp_path):
    disk = tmp_path / "activations"
    layer, x = encoder(), batch()
    first = CachedLayer(layer, disk=disk, disk_limit="16 MiB", bypass="never")
    expected = first(x)
    assert first.cache.flush()
    # Beside the rows: what the probe found, how outputs are made, the environment.
    assert (first.stats.misses, first.stats.cache.disk.entries) == (40, 43)
    second = CachedLayer(layer, disk=str(disk), bypass="never")
    assert same(second(x), expected)
    assert (second.stats.hits, second.stats.cache.stored_hits) == (40, 42)
    assert second.stats.cache.disk.bound == 16 << 20
    assert str(disk) not in str(second.get_config())  # may be loaded on another machine
    second.cache_clear()
    assert second.stats.cache.disk.entries == 2  # the first and the last of these hold on
    second(x)
    assert second.stats.misses == 40
    with pytest.raises(errors.InvalidArgument, match="expected one of them"):
        CachedLayer(layer, cache=tk.ActivationCache("1 MiB"), disk=disk)


@supported
def test_the_config_has_the_options_and_no_cache():
    cache = tk.ActivationCache("4 MiB")
    layer = CachedLayer(keras.layers.Rescaling(2.0), cache=cache, codec="bf16", bypass="never")
    twin = CachedLayer.from_config(layer.get_config())
    assert twin.cache is not cache
    assert twin.stats.bound == 4 << 20
    assert (twin.bypass, twin.stats.codec) == ("never", "bf16")
    layer.bypass = "always"
    assert layer.get_config()["bypass"] == "always"


@supported
def test_bypass_and_disabled():
    layer = keras.layers.Rescaling(2.0)
    cached = CachedLayer(layer, bypass="always", chunk=1)
    x = batch(4)
    for _ in range(3):
        assert np.array_equal(array(cached(x)), x * 2)
    assert cached.stats.lookups == 0
    assert cached.stats.bypasses["bypass='always'"] >= 2
    cached.bypass = "never"
    cached(x)
    with tk.disabled():
        assert np.array_equal(array(cached(x)), x * 2)
    cached(x)
    assert cached.stats.bypasses["tensorkey.disabled()"] == 1
    assert cached.stats.hits == 4
    inputs = keras.Input((8,))
    cached.bypass = "always"
    model = keras.Model(inputs, cached(inputs))  # a symbolic call goes through the wrapper
    assert cached in model.layers
    assert np.array_equal(model.predict(x, verbose=0), x * 2)
    with pytest.raises(errors.InvalidArgument, match="expected 'auto'"):
        cached.bypass = "sometimes"


@supported
def test_a_frozen_layer_that_is_stepped_aside_for_runs_as_in_inference():
    layer = encoder()
    cached = CachedLayer(layer, bypass="always")
    x = batch(20)
    assert np.allclose(array(cached(x, training=True)), array(layer(x, training=False)), atol=1e-5)


@supported
def test_threads_run_a_row_once():
    cached = CachedLayer(encoder(), bypass="never")
    x = batch(20)
    cached(x)
    cached.cache_clear()
    cached.reset_stats()
    threads = [threading.Thread(target=cached, args=(x,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = cached.stats
    assert (stats.lookups, stats.misses, stats.hits) == (160, 20, 140)
    assert stats.seconds_frontend > 0
