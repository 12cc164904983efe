"""Cached layers of Keras 3 inside graphs of TensorFlow: tf.function, fit, evaluate, predict."""

import gc
import os
import threading
import weakref

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
if keras.backend.backend() != "tensorflow":
    pytest.skip("graphs of TensorFlow", allow_module_level=True)
np = pytest.importorskip("numpy")
tf = pytest.importorskip("tensorflow")

import tensorkey as tk  # noqa: E402
from tensorkey.keras import CachedLayer  # noqa: E402
from tensorkey.testing import check_hits_equal_chunks  # noqa: E402

# Keras's own, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def batch(rows=40, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *(shape or (8,)))).astype("float32")


def frozen(layer, *shape):
    layer.build((None, *shape))
    layer.trainable = False
    return layer


def encoder():
    layers = [
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(4),
    ]
    return frozen(keras.Sequential(layers), 8)


def graph_of(layer, *shape):
    """One trace for batches of any size."""
    spec = tf.TensorSpec([None, *(shape or (8,))])
    return tf.function(lambda x: layer(x), input_signature=[spec])


def counts(cached):
    return cached.stats.misses, cached.stats.hits


# --- Hits are counted exactly, in real models.


def pixels():
    """A small stack such as MobileNet is made of."""
    layers = [
        *(keras.layers.Conv2D(8, 3, 2, "same"), keras.layers.BatchNormalization()),
        *(keras.layers.ReLU(6.0), keras.layers.DepthwiseConv2D(3, padding="same")),
        *(keras.layers.BatchNormalization(), keras.layers.ReLU(6.0)),
        *(keras.layers.Conv2D(12, 1), keras.layers.GlobalAveragePooling2D()),
    ]
    model = keras.Sequential(layers)
    model(keras.Input((12, 12, 3)))
    model.trainable = False
    return model, batch(80, 12, 12, 3)


def words():
    layers = [keras.layers.Embedding(50, 6, mask_zero=True), keras.layers.LSTM(5)]
    model = keras.Sequential([keras.Input((7,), dtype="int32"), *layers])
    model(keras.Input((7,), dtype="int32"))
    model.trainable = False
    return model, np.random.default_rng(0).integers(0, 50, (80, 7)).astype("int32")


def pair():
    text, image = keras.Input((6,), name="text"), keras.Input((4, 4, 1), name="image")
    both = keras.layers.Concatenate()([keras.layers.Dense(3)(text), keras.layers.Flatten()(image)])
    model = keras.Model({"text": text, "image": image}, both)
    model.trainable = False
    return model, {"text": batch(80, 6), "image": batch(80, 4, 4, 1, seed=1)}


@pytest.mark.parametrize(("make", "chunk"), [(pixels, 32), (words, 1), (pair, 32), (pair, 1)])
def test_fit_evaluate_and_predict(make, chunk):
    layer, x = make()
    cached = CachedLayer(layer, chunk=chunk, bits="slot", bypass="never")
    inputs = keras.tree.map_structure(
        lambda a: keras.Input(batch_shape=a.shape, dtype=a.dtype, name=a.name), layer.input
    )
    head = keras.layers.Dense(2)
    model = keras.Model(inputs, head(cached(inputs)))
    plain = keras.Model(inputs, head(layer(inputs, training=False)))
    y = batch(80, 2, seed=5)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(x, y, batch_size=32, epochs=3, verbose=0).history["loss"]
    assert counts(cached) == (80, 160)
    assert history[-1] < history[0]
    loss = model.evaluate(x, y, verbose=0)
    assert counts(cached) == (80, 240)
    predicted = model.predict(x, verbose=0)
    assert counts(cached) == (80, 320)
    plain.compile(loss="mse")
    assert np.allclose(predicted, plain.predict(x, verbose=0), atol=1e-5)
    assert np.allclose(loss, plain.evaluate(x, y, verbose=0), atol=1e-5)
    assert cached.stats.bypasses == {}
    assert cached.stats.errors == {}


def test_training_through_the_cache_is_training_without_it():
    layer, x, y = frozen(keras.layers.Dense(5, activation="tanh"), 8), batch(96), batch(96, 1)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    ends = []
    for run in (layer, cached):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((8,))
        model = keras.Model(inputs, keras.layers.Dense(1)(run(inputs)))
        model.compile(keras.optimizers.Adam(0.05), "mse", steps_per_execution=2)
        model.fit(x, y, epochs=4, batch_size=32, verbose=0)
        ends.append(model.layers[-1].get_weights())
    for one, other in zip(*ends, strict=True):
        assert np.allclose(one, other, atol=1e-5)
    assert counts(cached) == (96, 288)


# --- Bits.


class Squashed(keras.layers.Layer):
    """Keeps its bits at every place of a chunk of 32, on every CPU."""

    def call(self, x):
        return keras.ops.relu(x * 3.0 - 1.0) / 7.0


def attention():
    x = keras.Input((6, 16))
    return keras.Model(x, keras.layers.MultiHeadAttention(2, 8)(x, x))


@pytest.mark.parametrize("name", ["dense", "conv", "lstm", "attention", "squashed"])
def test_no_bit_differs_from_the_layer_in_chunks(name):
    layer, shape = {
        "dense": (encoder, (8,)),
        "conv": (lambda: keras.layers.Conv2D(6, 3), (9, 9, 3)),
        "lstm": (lambda: keras.layers.LSTM(12), (5, 8)),
        "attention": (attention, (6, 16)),
        "squashed": (Squashed, (8,)),
    }[name]
    layer, x = layer(), batch(60, *shape)
    layer(x[:2])
    layer.trainable = False
    cached = CachedLayer(layer, bypass="never")
    asked, bare = graph_of(cached, *shape), graph_of(layer, *shape)
    for first in (0, 32):  # what these bits depend on is found out
        asked(batch(32, *shape, seed=first + 9))
    check_hits_equal_chunks(
        lambda rows: asked(x[list(rows)]).numpy(),
        lambda rows: bare(x[list(rows)]).numpy(),
        lambda one, other: one.tobytes() == other.tobytes(),
        rows=60,
        chunk=cached.stats.chunk,
        count=120 if name == "dense" else 40,
        seed=3,
        restart=cached.cache_clear,
    )
    assert cached.stats.hits > 100
    assert cached.stats.bypasses == {}
    assert cached.stats.errors == {}
    if name == "squashed":
        assert cached.stats.chunk == 32


def test_bits_are_those_of_every_graph():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    x = batch(40)
    model = keras.Sequential([keras.Input((8,)), cached])
    model.compile("sgd", "mse")
    expected = graph_of(cached)(x).numpy()
    cached.cache_clear()
    assert model.predict(x, batch_size=16, verbose=0).tobytes() == expected.tobytes()
    cached.cache_clear()
    data = tf.data.Dataset.from_tensor_slices(x).batch(7).map(lambda rows: cached(rows) + 0.0)
    assert np.concatenate([part.numpy() for part in data]).tobytes() == expected.tobytes()
    assert cached.stats.hits == 0


def test_what_predict_filled_serves_fit_and_what_precompute_filled_does_not():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    x = batch(40)
    cached.precompute([x])
    keras.Sequential([keras.Input((8,)), cached]).predict(x, verbose=0)
    assert counts(cached) == (80, 0)
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], verbose=0)
    assert counts(cached) == (80, 40)


def test_an_eager_answer_never_answers_a_graph():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    x = batch(20)
    cached(x)
    assert counts(cached) == (20, 0)
    graph_of(cached)(x)
    assert counts(cached) == (40, 0)
    cached(x)
    graph_of(cached)(x)
    assert counts(cached) == (40, 40)


def test_a_layer_whose_bits_change_by_place_runs_row_by_row():
    class Slotted(keras.layers.Layer):
        def call(self, x):
            return x + tf.cast(tf.range(tf.shape(x)[0]) % 4, x.dtype)[:, None] * 1e-7

    layer = Slotted()
    layer(batch(2))
    cached = CachedLayer(layer, bypass="never")
    asked = graph_of(cached)
    x = np.ones((40, 8), "float32") + batch(40, 1)
    for _ in range(2):
        assert np.allclose(asked(x), x, atol=1e-5)
    assert cached.stats.chunk == 1
    assert np.array_equal(asked(x), x)
    assert cached.stats.hits == 40


def test_what_the_probe_refuses_in_a_graph():
    class Centred(keras.layers.Layer):
        def call(self, x):
            return x - keras.ops.mean(x, axis=0)

    layer = Centred()
    layer(batch(2))
    cached = CachedLayer(layer, bypass="never")
    asked = graph_of(cached)
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot be cached one by one"):
        asked(batch(40))
    x = batch(40, seed=1)
    assert np.allclose(asked(x), layer(x), atol=1e-6)  # from then on as in eager calls: uncached
    assert any("refused by the probe" in reason for reason in cached.stats.bypasses)
    assert cached.stats.hits == 0


# --- Weights that change.


def changed(layer, name, tmp_path):
    if name == "assign":
        layer.weights[0].assign(layer.weights[0] + 1)
    elif name == "set_weights":
        layer.set_weights([w + 1 for w in layer.get_weights()])
    elif name == "load_weights":
        other = encoder()
        other.set_weights([w * 2 for w in layer.get_weights()])
        other.save_weights(tmp_path / "other.weights.h5")
        layer.load_weights(tmp_path / "other.weights.h5")
    elif name == "statistics":
        layer.layers[1].moving_mean.assign(np.ones(16))
    elif name == "optimizer":
        optimizer = keras.optimizers.SGD(0.5)
        weights = layer.weights[:2]
        optimizer.apply([tf.ones_like(w) for w in weights], weights)


@pytest.mark.parametrize(
    "name", ["assign", "set_weights", "load_weights", "statistics", "optimizer"]
)
def test_after_a_change_no_old_answer(name, tmp_path):
    layer = encoder()
    cached = CachedLayer(layer, chunk=1, bypass="never")
    x = batch(20)
    asked = graph_of(cached)
    before = asked(x).numpy()
    kept = layer.get_weights()
    changed(layer, name, tmp_path)
    after = asked(x).numpy()
    assert np.abs(after - before).max() > 1e-3
    assert np.allclose(after, layer(x), atol=1e-5)
    assert counts(cached) == (40, 0)
    layer.set_weights(kept)
    assert asked(x).numpy().tobytes() == before.tobytes()
    assert counts(cached) == (40, 20)


def test_a_change_inside_the_same_graph_is_seen_at_once():
    layer = frozen(keras.layers.Dense(3), 8)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    raw = layer.bias._value

    @tf.function
    def asked(x):
        first = cached(x)
        raw.assign_add(tf.ones(3))
        second = cached(x)
        layer.kernel.assign(layer.kernel * 2.0)
        return first, second, cached(x)

    x, bias, kernel = batch(20), layer.bias.numpy(), layer.kernel.numpy()
    for step in range(1, 4):
        first, second, third = asked(x)
        assert np.allclose(first, x @ kernel + bias, atol=1e-4)
        assert np.allclose(second, x @ kernel + bias + 1, atol=1e-4)
        kernel, bias = kernel * 2, bias + 1
        assert np.allclose(third, x @ kernel + bias, atol=1e-4)
        # The first call has the weights of the third one before.
        assert counts(cached) == (20 + 40 * step, 20 * (step - 1))


def test_statistics_that_a_graph_updates_are_seen():
    normal = frozen(keras.layers.BatchNormalization(momentum=0.5), 8)
    cached = CachedLayer(normal, chunk=1, bypass="never")

    @tf.function
    def asked(x):
        mean = normal.moving_mean
        mean.assign(mean * 0.5 + tf.reduce_mean(x, 0) * 0.5)
        return cached(x)

    x = batch(20) + 3.0
    seen = [asked(x).numpy() for _ in range(3)]
    assert np.abs(seen[1] - seen[0]).max() > 0.1
    assert np.allclose(seen[-1], normal(x), atol=1e-5)
    assert cached.stats.hits == 0


def test_attributes_are_those_of_the_trace():
    layer = frozen(keras.layers.LeakyReLU(0.5), 8)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    x = -np.abs(batch(20))
    one = graph_of(cached)
    assert np.allclose(one(x), x * 0.5)
    layer.negative_slope = 0.1
    two = graph_of(cached)
    assert np.allclose(one(x), x * 0.5)  # as of a bare layer
    assert np.allclose(two(x), x * 0.1, atol=1e-6)
    assert counts(cached) == (40, 20)


# --- Gradients.


def gradients_of(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.sin(layer(x)))
    return tape.gradient(loss, x)


def test_gradients_are_the_plain_layers():
    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    x = tf.constant(batch(20))
    expected = gradients_of(layer, x).numpy()
    asked = graph_of(cached)
    asked(x)
    inside = tf.function(lambda x: gradients_of(cached, x))
    for found in (
        gradients_of(cached, x),  # eager
        gradients_of(asked, x),  # the tape outside of the graph
        tf.function(lambda x: gradients_of(asked, x))(x),  # and outside of a nested one
        inside(x),
    ):
        assert np.allclose(found, expected, atol=1e-6)
    assert cached.stats.hits >= 20
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as forward:
        output = asked(x)
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as plain:
        truth = layer(x)
    assert np.abs(plain.jvp(truth)).max() > 0.1
    assert np.allclose(forward.jvp(output), plain.jvp(truth), atol=1e-6)


def test_second_gradients():
    layer = frozen(keras.layers.Dense(4, activation="tanh"), 8)
    asked = graph_of(CachedLayer(layer, bypass="never"))
    x = tf.constant(batch(20))

    def second(run):
        with tf.GradientTape() as tape:
            tape.watch(x)
            first = tf.reduce_sum(gradients_of(run, x) ** 2)
        return tape.gradient(first, x).numpy()

    assert np.abs(second(layer)).max() > 1e-2
    assert np.allclose(second(asked), second(layer), atol=1e-5)


def test_gradients_through_a_loop_and_of_weights_as_they_were():
    layer = frozen(keras.layers.Dense(8, activation="tanh"), 8)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    x, kernel = tf.constant(batch(20)), layer.kernel.numpy()

    def three_times(run):
        spec = tf.TensorShape([None, 8])

        def loop(x):
            body = lambda i, x: (i + 1, tf.ensure_shape(run(x), spec))  # noqa: E731
            _, x = tf.while_loop(
                lambda i, x: i < 3, body, (0, x), shape_invariants=(tf.TensorShape([]), spec)
            )
            layer.kernel.assign(layer.kernel * 2.0)  # after it
            return x

        found = gradients_of(tf.function(loop), x)
        layer.kernel.assign(kernel)
        return found.numpy()

    expected = three_times(layer)
    assert np.abs(expected).max() > 1e-2
    assert np.allclose(three_times(cached), expected, atol=1e-6)
    assert cached.stats.misses == 60


RUNS = []


class Counted(keras.layers.Layer):
    """Tells how many rows it is run on, when it is run."""

    def build(self, shape):
        self.dense = keras.layers.Dense(4)
        self.dense.build(shape)

    def call(self, x):
        ran = tf.numpy_function(lambda rows: RUNS.append(int(rows)), [tf.shape(x)[0]], [])
        with tf.control_dependencies([ran] if ran is not None else []):
            return self.dense(x)


def test_the_layer_is_not_run_for_gradients_of_a_head():
    layer = frozen(Counted(), 8)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = batch(40), batch(40, 1, seed=2)
    model.fit(x, y, epochs=1, verbose=0)
    assert cached.stats.misses == 40
    RUNS.clear()
    model.fit(x, y, epochs=2, verbose=0)
    assert cached.stats.hits == 80
    assert RUNS == []


def test_gradients_of_trainable_weights():
    layer = keras.layers.Dense(4)
    layer.build((None, 8))
    cached = CachedLayer(layer, chunk=1, bypass="never")
    asked = graph_of(cached)
    x = tf.constant(batch(20))
    asked(x)
    with tf.GradientTape() as tape:  # nothing in the graph tells of it
        loss = tf.reduce_sum(asked(x) ** 2)
    with tf.GradientTape() as plain:
        truth = tf.reduce_sum(layer(x) ** 2)
    weights = [v._value for v in layer.trainable_weights]
    for one, other in zip(
        tape.gradient(loss, weights), plain.gradient(truth, weights), strict=True
    ):
        assert np.allclose(one, other, atol=1e-4)
    assert counts(cached) == (20, 20)


def test_a_layer_that_trains_runs_uncached():
    layer = keras.layers.Dense(4)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = layer.kernel.numpy()
    model.fit(batch(40), batch(40, 1, seed=2), verbose=0)
    assert np.abs(layer.kernel.numpy() - before).max() > 1e-4
    assert cached.stats.lookups == 0
    assert any("layer.trainable = False" in reason for reason in cached.stats.bypasses)
    for _ in range(2):
        model.predict(batch(40), verbose=0)
    assert cached.stats.hits == 40


# --- What a graph cannot be answered in.


def test_keras_compiles_no_model_with_a_cached_layer():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    with pytest.warns(UserWarning, match="Model doesn't support `jit_compile=True`"):
        model.compile("sgd", "mse", jit_compile=True)
    assert model.jit_compile is False
    x = batch(40)
    for _ in range(2):
        model.fit(x, x[:, :1], verbose=0)
    assert counts(cached) == (40, 40)


def test_xla_is_detected_while_tracing():
    layer = encoder()
    cached = CachedLayer(layer, bypass="never")
    x = batch(20)

    @tf.function(jit_compile=True)
    def compiled(x):
        return tf.function(cached)(x) + cached(x)

    assert np.allclose(compiled(x), 2 * layer(x), atol=1e-5)
    (reason,) = cached.stats.bypasses
    assert reason.startswith("XLA")


def test_xla_that_nothing_tells_of_is_an_error_and_no_wrong_answer():
    asked = graph_of(CachedLayer(encoder(), bypass="never"))
    x = tf.constant(batch(20))
    asked(x)
    compiled = tf.function(lambda x: asked(x), jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="PyFunc"):
        compiled(x)


def bypassed(layer, x, text, **options):
    """Assert that a graph runs the layer itself, and why; return how often that was counted."""
    layer(x[:2])
    cached = CachedLayer(layer, bypass="never", **options)
    asked = tf.function(cached, input_signature=[tf.TensorSpec([None, *x.shape[1:]], x.dtype)])
    for rows in (x, x[:3], x):
        for one, other in zip(
            keras.tree.flatten(asked(rows)), keras.tree.flatten(layer(rows)), strict=True
        ):
            assert np.allclose(one, other, atol=1e-5)
    assert cached.stats.lookups == 0
    [(reason, count)] = cached.stats.bypasses.items()
    assert text in reason
    assert count == 1  # once for the trace
    assert cached.stats.errors == {}


def test_outputs_that_are_not_by_row():
    class Table(keras.layers.Layer):
        def call(self, x):
            return x, tf.ones((5, 2))

    class Folded(keras.layers.Layer):
        def call(self, x):
            return tf.reshape(x, [-1, 2])

    class Total(keras.layers.Layer):
        def call(self, x):
            return x, tf.reduce_sum(x)

    bypassed(Table(), batch(20), "no row for each of its input")
    bypassed(Folded(), batch(20), "12 rows for 3")
    bypassed(Total(), batch(20), "no row for each of its input")


def test_layers_that_are_made_for_one_batch_size():
    class Fixed(keras.layers.Layer):
        def call(self, x):
            return x + tf.zeros([int(x.shape[0]), 1])

    layer, x = Fixed(), batch(20)
    layer(x)
    cached = CachedLayer(layer, bypass="never")
    assert np.array_equal(tf.function(cached)(tf.constant(x)), x)
    (reason,) = cached.stats.bypasses
    assert "for a batch of any size: TypeError" in reason


def test_outputs_that_have_no_key():
    class Words(keras.layers.Layer):
        def call(self, x):
            return tf.strings.as_string(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor(x.shape, "string")

    layer, x = Words(autocast=False), batch(20)
    cached = CachedLayer(layer, bypass="never")
    assert tf.function(cached)(tf.constant(x)).dtype == tf.string
    assert any("of dtype string" in reason for reason in cached.stats.bypasses)


def test_an_empty_batch_and_a_layer_that_does_nothing():
    cached = CachedLayer(keras.layers.Identity(), chunk=1, bypass="never")
    asked = graph_of(cached)
    x = batch(20)
    assert asked(x[:0]).shape == (0, 8)
    for _ in range(2):
        assert np.array_equal(asked(x), x)
    assert counts(cached) == (20, 20)


def test_layers_that_change_state_or_add_losses():
    class Counting(keras.layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.calls.assign_add(1.0)
            return x + 0.0

    class Losing(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x))
            return x + 0.0

    bypassed(Counting(), batch(20), "changes state, by AssignVariableOp")
    bypassed(Losing(), batch(20), "adds losses")
    layer = Losing()
    model = keras.Sequential([keras.Input((8,)), CachedLayer(layer), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((20, 8), "float32")
    assert model.evaluate(x, model.predict(x, verbose=0), verbose=0) == pytest.approx(1.0)


def test_masks():
    embedding = keras.layers.Embedding(10, 4, mask_zero=True, trainable=False)
    ids = np.array([[1, 2, 0], [3, 0, 0]] * 10, "int32")
    embedding(ids)
    cached = CachedLayer(embedding, chunk=1, bypass="never")
    asked = tf.function(
        lambda x: (y := cached(x), y._keras_mask),
        input_signature=[tf.TensorSpec([None, 3], "int32")],
    )
    for _ in range(2):
        output, mask = asked(ids)
        assert np.array_equal(mask, ids != 0)
        assert np.array_equal(output, embedding(ids))
    assert counts(cached) == (2, 38)
    lstm = frozen(keras.layers.LSTM(3), 3, 4)
    tail = CachedLayer(lstm, bypass="never")
    both = tf.function(lambda x: tail(cached(x)))
    assert np.allclose(both(ids), lstm(embedding(ids)), atol=1e-6)
    assert tail.stats.bypasses == {"an input with a mask": 1}
    model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding])
    bypassed(model, ids, "mask that follows from a run alone")


def test_options_that_graphs_do_not_have():
    for options, text in (
        ({"rows": "batch"}, "rows='batch'"),
        ({"by": "structure"}, "by='structure'"),
        ({"outputs": (lambda x: [x], lambda parts: parts[0])}, "outputs="),
        ({"codec": "fp16"}, "codec='fp16'"),
    ):
        bypassed(keras.layers.Rescaling(2.0), batch(20), text, **options)


def test_keys_of_ones_own_are_for_eager_calls():
    layer = frozen(keras.layers.Dense(3), 8)
    cached = CachedLayer(layer, bypass="never")
    x = batch(4)
    output = tf.function(lambda x: cached.with_keys(["a", "b", "c", "d"])(x))(x)
    assert np.allclose(output, layer(x), atol=1e-6)
    assert list(cached.stats.bypasses) == ["inside a graph, which has no keys of the caller's own"]


def test_loops_that_cannot_call_back_and_loops_that_can():
    layer = encoder()
    cached = CachedLayer(layer, chunk=1, bypass="never")
    x = tf.constant(batch(20))
    row = lambda r: cached(r[None])[0]  # noqa: E731
    assert np.allclose(tf.vectorized_map(row, x), layer(x), atol=1e-5)
    assert cached.stats.bypasses == {"tf.vectorized_map, which cannot call back": 1}
    mapped = tf.function(lambda x: tf.map_fn(row, x))
    for _ in range(2):
        assert np.allclose(mapped(x), layer(x), atol=1e-5)
    assert counts(cached) == (20, 20)


# --- Arguments.


@keras.saving.register_keras_serializable(package="tensorkey_tests")
class Blend(keras.layers.Layer):
    def call(self, a, b, scale=1.0, table=None):
        total = a - 2 * b * scale
        return total if table is None else total + table


def test_arguments_that_are_not_rows():
    layer = Blend()
    layer(batch(2), batch(2))
    cached = CachedLayer(layer, chunk=1, bypass="never")
    a, b = batch(20), batch(20, seed=1)
    table = np.arange(8, dtype="float32")

    @tf.function
    def asked(a, b):
        return cached(a, b), cached(a, b, scale=3.0), cached(a, b, table=table)

    for _ in range(2):
        one, two, three = asked(a, b)
        assert np.allclose(one, a - 2 * b, atol=1e-6)
        assert np.allclose(two, a - 6 * b, atol=1e-5)
        assert np.allclose(three, a - 2 * b + table, atol=1e-5)
    assert counts(cached) == (60, 60)
    other = tf.function(lambda a, b, t: cached(a, b, table=t))
    assert np.allclose(other(a, b, table + 1), a - 2 * b + table + 1, atol=1e-5)
    assert len(cached.stats.bypasses) == 1  # the value of the table is not known


def test_rows_of_several_arguments_that_do_not_match():
    layer = Blend()
    layer(batch(2), batch(2))
    cached = CachedLayer(layer, chunk=1, bypass="never")
    specs = [tf.TensorSpec([None, 8])] * 2
    asked = tf.function(lambda a, b: cached(a, b), input_signature=specs)
    a, b = batch(20), batch(1, seed=1)
    assert np.allclose(asked(a, b), a - 2 * b, atol=1e-6)  # b is repeated
    assert np.allclose(asked(a, a), -a, atol=1e-6)
    assert cached.stats.misses == 20


def test_nests_dtypes_and_lengths():
    layer = frozen(keras.layers.LSTM(5, return_sequences=True, return_state=True), 7, 3)
    cached = CachedLayer(layer, chunk=1, bypass="never")
    asked = tf.function(cached)
    for length in (7, 7, 4):
        x = batch(20, length, 3)
        found, expected = asked(x), layer(x)
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert np.allclose(one, other, atol=1e-5)
    assert counts(cached) == (40, 20)
    any_length = tf.function(cached, input_signature=[tf.TensorSpec([None, None, 3])])
    assert any_length(x)[1].shape == (20, 5)
    assert any("not known while traced" in reason for reason in cached.stats.bypasses)
    last = CachedLayer(frozen(keras.layers.LSTM(5), 7, 3), chunk=1, bypass="never")
    any_length = tf.function(last, input_signature=[tf.TensorSpec([None, None, 3])])
    for length in (7, 4, 7):
        x = batch(20, length, 3)
        assert np.allclose(any_length(x), last.layer(x), atol=1e-5)
    assert counts(last) == (40, 20)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "mixed_bfloat16"])
def test_dtype_policies(dtype):
    layer = keras.layers.Dense(8, dtype=dtype)
    cached = CachedLayer(frozen(layer, 8), chunk=1, bypass="never")
    asked = tf.function(cached, input_signature=[tf.TensorSpec([None, 8], "float64")])
    x = batch(20).astype("float64")
    one, two, plain = asked(x), asked(x), layer(x)
    assert one.dtype == plain.dtype
    assert counts(cached) == (20, 20)
    assert np.array_equal(tf.cast(one, "float64"), tf.cast(two, "float64"))
    assert np.allclose(tf.cast(one, "float64"), tf.cast(plain, "float64"), atol=2e-2)


def test_a_layer_that_was_not_built_is_built_by_the_trace():
    layer = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(2)])
    layer.trainable = False
    cached = CachedLayer(layer, chunk=1, bypass="never")
    asked = tf.function(cached)
    x = batch(20)
    for _ in range(2):
        assert np.allclose(asked(x), layer(x), atol=1e-6)
    assert counts(cached) == (20, 20)


def test_a_cached_layer_inside_another():
    inner = CachedLayer(encoder(), chunk=1, bypass="never")
    outer = CachedLayer(keras.Sequential([keras.Input((8,)), inner]), chunk=1, bypass="never")
    outer.layer.trainable = False
    asked = graph_of(outer)
    x = batch(20)
    for _ in range(2):
        assert np.allclose(asked(x), inner.layer(x), atol=1e-5)
    assert counts(outer) == (20, 20)
    assert inner.stats.errors == {}


# --- Training flags.


def test_training_that_is_followed():
    layer = frozen(keras.Sequential([keras.layers.Dropout(0.5), keras.layers.Dense(4)]), 8)
    cached = CachedLayer(layer, training="follow", chunk=1, bypass="never")
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((20, 8), "float32")
    model.fit(x, x[:, :1], verbose=0)
    assert cached.stats.lookups == 0
    (reason,) = cached.stats.bypasses
    assert "training='follow'" in reason
    assert np.any(cached(x, training=True) != cached(x, training=True))
    for _ in range(2):
        model.predict(x, verbose=0)
    assert counts(cached) == (1, 39)
    twin = CachedLayer.from_config(cached.get_config())
    assert twin._training == "follow"
    with pytest.raises(tk.errors.InvalidArgument, match="'inference' or 'follow'"):
        CachedLayer(layer, training="sometimes")


def test_frozen_layers_run_as_in_inference_in_graphs():
    layer = encoder()
    cached = CachedLayer(layer, chunk=1, bypass="never")
    x = batch(20)
    asked = tf.function(lambda x: cached(x, training=True))
    for _ in range(2):
        assert np.allclose(asked(x), layer(x, training=False), atol=1e-6)
    assert counts(cached) == (20, 20)


# --- Switches, errors, threads, lifetimes.


def test_switches_are_asked_when_the_graph_runs():
    layer = encoder()
    cached = CachedLayer(layer, chunk=1, bypass="never")
    asked = graph_of(cached)
    x = batch(20)
    asked(x)
    with tk.disabled():
        assert np.allclose(asked(x), layer(x), atol=1e-6)
    assert counts(cached) == (20, 0)
    cached.bypass = "always"
    assert np.allclose(asked(x), layer(x), atol=1e-6)
    cached.bypass = "never"
    asked(x)
    assert counts(cached) == (20, 20)
    assert cached.stats.bypasses == {"tensorkey.disabled()": 1, "bypass='always'": 1}


def test_run_eagerly_and_back():
    cached = CachedLayer(encoder(), chunk=1, bypass="never")
    model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
    x = batch(20)
    for number, eagerly in enumerate((True, False, True, False)):
        model.compile("sgd", "mse", run_eagerly=eagerly)
        model.fit(x, x[:, :1], verbose=0)
        assert counts(cached) == ((20, 40)[number > 0], (0, 0, 20, 40)[number])
    tf.config.run_functions_eagerly(True)
    try:
        tf.function(cached)(x)
    finally:
        tf.config.run_functions_eagerly(False)
    assert counts(cached) == (40, 60)


def test_a_graph_that_fails_leaves_nothing_behind():
    class Strict(keras.layers.Layer):
        def call(self, x):
            with tf.control_dependencies([tf.debugging.assert_less(x, 9.0, "too large")]):
                return x * 2.0

    layer = Strict()
    layer(batch(2))
    cached = CachedLayer(layer, chunk=1, bypass="never")
    asked = graph_of(cached)
    x = batch(20)
    x[13] = 10.0
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
            asked(x)
    x[13] = 1.0
    results = []
    threads = [threading.Thread(target=lambda: results.append(asked(x))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [np.array_equal(result, x * 2) for result in results] == [True] * 3
    assert np.array_equal(cached(x), x * 2)  # eager: waits for nobody
    assert cached.stats.errors == {}


def test_two_threads():
    layer = encoder()
    cached = CachedLayer(layer, chunk=1, bypass="never")
    asked = graph_of(cached)
    x = batch(200)
    bare = graph_of(layer)
    rows = [bare(x[i : i + 1]).numpy() for i in range(200)]
    asked(batch(20, seed=9))
    wrong = []

    def work(seed):
        source = np.random.default_rng(seed)
        for _ in range(25):
            picked = source.integers(0, 200, 16)
            output = asked(x[picked]).numpy()
            wrong.extend(i for i, row in zip(picked, output, strict=True) if (row != rows[i]).any())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cached.stats.lookups == 20 + 4 * 25 * 16
    assert cached.stats.errors == {}


def test_rows_of_a_directory_are_read_by_a_graph_of_another_layer(tmp_path):
    layer, x = encoder(), batch(40)
    first = CachedLayer(layer, disk=tmp_path / "kept", chunk=1, bypass="never")
    expected = graph_of(first)(x).numpy()
    assert first.cache.flush()
    second = CachedLayer(layer, disk=tmp_path / "kept", chunk=1, bypass="never")
    assert graph_of(second)(x).numpy().tobytes() == expected.tobytes()
    assert counts(second) == (0, 40)


def test_a_graph_that_is_gone_takes_its_layer_with_it():
    def use():
        cached = CachedLayer(encoder(), bypass="never")
        asked = graph_of(cached)
        x = tf.constant(batch(20))
        asked(x)
        gradients_of(asked, x)
        model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], verbose=0)
        return weakref.ref(cached._engine), weakref.ref(asked.get_concrete_function().graph)

    gone = use()
    keras.backend.clear_session()
    for _ in range(3):
        gc.collect()
    assert [reference() for reference in gone] == [None, None]
