"""Cached layers of Keras 3 on JAX inside fit, evaluate, predict, jit, grad and vmap."""

import os
import threading

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

from tensorkey import disabled  # noqa: E402
from tensorkey.keras import CachedLayer  # noqa: E402

pytestmark = [
    # Keras's own, with NumPy 2: get_weights() of variables.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX only"),
]
if keras.backend.backend() == "jax":
    import jax
    from jax import numpy as jnp


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def array(tensor):
    return np.asarray(tensor)


def same(one, other):
    return array(one).tobytes() == array(other).tobytes()


def batch(rows=64, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *(shape or (8,)))).astype("float32")


def cache(layer, **options):
    return CachedLayer(layer, **{"bypass": "never", **options})


def backbone():
    layer = keras.Sequential(
        [
            keras.layers.Dense(16, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(4),
        ]
    )
    layer.build((None, 8))
    layer.layers[1].moving_mean.assign(np.linspace(-1, 1, 16))
    layer.trainable = False
    return layer


class Frozen(keras.layers.Layer):
    """Runs a layer as in inference; Keras passes training=True to frozen layers in fit."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x, training=False)


def model_on(run):
    """Return a head on what `run` makes of an input."""
    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(run(inputs)))
    model.compile("adam", "mse")
    return model


def pair(**options):
    """Return a cached layer, a model on it, and the same model without a cache."""
    layer = backbone()
    cached = cache(layer, **options)
    model = model_on(cached)
    plain = model_on(Frozen(layer))
    plain.set_weights(model.get_weights())
    return cached, model, plain


def losses(model, x, y, **options):
    options = {"epochs": 3, "batch_size": 32, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, **options).history


# --- Models.


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_head_is_trained_on_rows_that_ran_once(jit_compile):
    cached, model, plain = pair()
    x, y = batch(96), batch(96, 1, seed=1)
    for each in (model, plain):
        each.compile("adam", "mse", jit_compile=jit_compile)
    found = losses(model, x, y, validation_data=(x[:32], y[:32]))
    expected = losses(plain, x, y, validation_data=(x[:32], y[:32]))
    for name, values in expected.items():
        assert np.allclose(found[name], values, rtol=1e-5)
    stats = cached.stats
    assert (stats.misses, stats.hits) == (96, 192 + 3 * 32)
    assert (stats.bypasses, stats.errors, stats.chunk) == ({}, {}, 32)
    for one, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        assert np.allclose(one, other, atol=1e-5)
    assert np.allclose(model.evaluate(x, y, verbose=0), plain.evaluate(x, y, verbose=0), rtol=1e-5)
    assert np.allclose(model.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-5)
    assert cached.stats.misses == 96


def test_shuffled_batches_and_a_last_one_that_is_smaller():
    cached, model, plain = pair()
    x, y = batch(90), batch(90, 1, seed=1)
    found, expected = (losses(each, x, y, shuffle=False) for each in (model, plain))
    assert np.allclose(found["loss"], expected["loss"], rtol=1e-5)
    losses(model, x, y, shuffle=True, epochs=2)
    assert (cached.stats.misses, cached.stats.hits) == (90, 360)


def test_eager_calls_and_graphs_share_their_answers():
    cached, model, _ = pair()
    x = batch(64)
    eager = cached(x)
    assert (cached.stats.misses, cached.stats.hits) == (64, 0)
    inner = keras.Model(model.inputs, cached.output)
    assert same(inner.predict(x, batch_size=64, verbose=0), eager)
    assert (cached.stats.misses, cached.stats.hits) == (64, 64)
    other = batch(64, seed=5)
    traced = inner.predict(other, batch_size=64, verbose=0)
    assert same(cached(other), traced)
    assert (cached.stats.misses, cached.stats.hits) == (128, 128)


def changes():
    def assign(cached, model, tmp_path):
        weight = cached.layer.weights[0]
        weight.assign(array(weight.value) + 1)

    def set_weights(cached, model, tmp_path):
        model.set_weights([weight + 0.5 for weight in model.get_weights()])

    def load_weights(cached, model, tmp_path):
        path = str(tmp_path / "model.weights.h5")
        model.save_weights(path)
        set_weights(cached, model, tmp_path)
        model.predict(batch(), verbose=0)
        model.load_weights(path)

    def statistics(cached, model, tmp_path):
        cached.layer.layers[1].moving_variance.assign(np.full(16, 3.0))

    def attribute(cached, model, tmp_path):
        cached.layer.layers[1].epsilon = 1.0
        model.predict_function = None  # Keras has it baked in else, with or without a cache

    return [assign, set_weights, load_weights, statistics, attribute]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_no_stale_row_after_a_change_between_calls(change, tmp_path):
    cached, model, plain = pair()
    x = batch()
    before = model.predict(x, verbose=0)
    for _ in range(2):
        change(cached, model, tmp_path)
        plain.set_weights(model.get_weights())
        plain.predict_function = None
        found = model.predict(x, verbose=0)
        assert np.allclose(found, plain.predict(x, verbose=0), atol=1e-5)
    if change.__name__ != "load_weights":
        assert not np.allclose(found, before)


def test_a_backbone_that_is_trained_in_between():
    cached, model, plain = pair()
    layer = cached.layer
    x, y = batch(), batch(64, 1, seed=1)
    losses(model, x, y)
    layer.trainable = True
    model.compile("sgd", "mse")
    before = array(layer.weights[0].value)
    losses(model, x, y, epochs=1)
    assert not same(layer.weights[0].value, before)
    assert any("layer.trainable = False" in reason for reason in cached.stats.bypasses)
    misses = cached.stats.misses
    plain.set_weights(model.get_weights())
    for _ in range(2):  # trainable, and not training
        found = model.predict(x, verbose=0)
        assert np.allclose(found, plain.predict(x, verbose=0), atol=1e-5)
    assert (cached.stats.misses, misses) == (128, 64)
    layer.trainable = False
    model.compile("sgd", "mse")
    losses(model, x, y, epochs=2)
    assert (cached.stats.misses, cached.stats.hits) == (192, 128 + 64 + 64)


def test_statistics_and_seeds_do_not_move():
    cached, model, _ = pair()
    state = [array(v.value).copy() for v in cached.layer.non_trainable_variables]
    losses(model, batch(), batch(64, 1, seed=1))
    after = [array(v.value) for v in cached.layer.non_trainable_variables]
    assert all(map(same, state, after))


def test_callbacks_that_call_and_change_the_layer_between_steps():
    cached, model, plain = pair()
    x, y = batch(), batch(64, 1, seed=1)
    seen = []

    class Moving(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            layer = cached.layer
            layer.weights[0].assign(array(layer.weights[0].value) * 1.5)
            seen.append(np.allclose(array(cached(x)), array(layer(x)), atol=1e-4))

    class Plain(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weight = self.model.weights[0]
            weight.assign(array(weight.value) * 1.5)

    found = losses(model, x, y, callbacks=[Moving()])
    weight = cached.layer.weights[0]
    weight.assign(array(weight.value) / 1.5**3)
    expected = losses(plain, x, y, callbacks=[Plain()])
    assert np.allclose(found["loss"], expected["loss"], rtol=1e-4)
    assert seen == [True] * 3
    assert cached.stats.misses == 64 * 4


def test_a_step_that_fails_leaves_nothing_to_be_read():
    cached, model, _ = pair()
    x, y = batch(), batch(64, 1, seed=1)

    class Stopping(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with pytest.raises(Exception, match=r".+"):  # fit holds what variables had
                array(cached(x))
            raise KeyError("stop")

    cached(x)
    with pytest.raises(KeyError, match="stop"):
        losses(model, x, y, callbacks=[Stopping()])
    assert cached.stats.misses == 64
    assert same(cached(x), cached(x))


def test_switches_are_asked_whenever_a_compiled_model_runs():
    cached, model, plain = pair()
    x = batch()
    expected = plain.predict(x, verbose=0)
    model.predict(x, verbose=0)
    with disabled():
        assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    cached.bypass = "always"
    assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert (cached.stats.lookups, sum(cached.stats.bypasses.values())) == (64, 4)
    cached.bypass = "never"
    model.predict(x, verbose=0)
    assert cached.stats.hits == 64


def test_a_file_of_a_model_and_another_process_of_it(tmp_path):
    cached, model, _ = pair(disk=tmp_path / "rows")
    x = batch()
    expected = model.predict(x, verbose=0)
    cached.cache.flush()
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, compile=False)
    assert np.allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)
    layer = keras.models.clone_model(cached.layer)
    layer.build((None, 8))
    layer.set_weights(cached.layer.get_weights())
    layer.trainable = False
    twin = cache(layer, disk=tmp_path / "rows")
    again = model_on(twin)
    again.set_weights(model.get_weights())
    assert same(again.predict(x, verbose=0), expected)
    assert (twin.stats.misses, twin.stats.hits) == (0, 64)


# --- Nests, masks, dtypes.


def test_several_inputs_and_outputs():
    words, image = keras.Input((6,), name="words"), keras.Input((4, 4, 1), name="image")
    text = keras.layers.Dense(3)(words)
    pixels = keras.layers.Flatten()(image)
    towers = keras.Model(
        {"words": words, "image": image},
        {"text": text, "both": keras.layers.Concatenate()([text, pixels]), "words": words},
    )
    towers.trainable = False
    cached = cache(towers)
    inputs = {"words": words, "image": image}
    model = keras.Model(inputs, cached(inputs))
    x = {"words": batch(40, 6), "image": batch(40, 4, 4, 1)}
    expected = towers.predict(x, verbose=0)
    for _ in range(2):
        found = model.predict(x, verbose=0)
        assert set(found) == set(expected)
        assert all(np.allclose(found[name], expected[name], atol=1e-6) for name in found)
    assert (cached.stats.misses, cached.stats.hits) == (40, 40)


def test_masks():
    ids = np.array([[1, 2, 0], [3, 0, 0]] * 20)
    embedding = keras.layers.Embedding(10, 4, mask_zero=True, trainable=False)
    recurrent = keras.layers.LSTM(3, trainable=False)
    inputs = keras.Input((3,), dtype="int32")
    plain = keras.Model(inputs, recurrent(embedding(inputs)))
    expected = plain.predict(ids, verbose=0)
    first = cache(embedding)
    one = keras.Model(inputs, recurrent(first(inputs)))
    assert np.allclose(one.predict(ids, verbose=0), expected, atol=1e-6)
    assert first.stats.bypasses == {"its output has a mask, inside a graph": 2}  # 32 rows, and 8
    second = cache(recurrent)
    two = keras.Model(inputs, second(embedding(inputs)))
    assert np.allclose(two.predict(ids, verbose=0), expected, atol=1e-6)
    assert second.stats.bypasses == {"an input with a mask": 2}

    x = batch(40, 3, 4)
    given, mask = keras.Input((3, 4)), keras.Input((3,), dtype="bool")
    masks = ids != 0
    explicit = cache(recurrent)
    three = keras.Model([given, mask], explicit(given, mask=mask))
    expected = array(recurrent(x, mask=jnp.asarray(masks)))
    for _ in range(2):
        assert np.allclose(three.predict([x, masks], verbose=0), expected, atol=1e-6)
    assert (explicit.stats.misses, explicit.stats.hits) == (40, 40)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16"])
def test_policies(policy):
    layer = keras.layers.Dense(8, dtype=policy, trainable=False)
    inputs = keras.Input((8,))
    cached = cache(layer)
    model = keras.Model(inputs, cached(inputs))
    x = batch(40)
    plain = keras.Model(inputs, layer(inputs)).predict(x, verbose=0)
    for _ in range(2):
        found = model.predict(x, verbose=0)
        assert found.dtype == plain.dtype
        assert np.allclose(found.astype("float32"), plain.astype("float32"), atol=0.05)
    assert (cached.stats.misses, cached.stats.hits) == (40, 40)
    assert same(cached(x), found)
    assert cached.stats.misses == 40


# --- What no graph answers.


def test_layers_whose_runs_leave_traces_run_themselves():
    class Counting(keras.layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.count.assign_add(1.0)
            return x

    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator(1)

        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=self.seed)

    class Losing(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x**2))
            return x

    x = batch(32)
    for layer, text in (
        (Counting(), "changes its own state"),
        (Noise(), "changes its own state"),
        (Losing(), "adds losses"),
    ):
        cached = cache(layer)
        model = keras.Sequential([keras.Input((8,)), cached, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        history = losses(model, x, x[:, :1], epochs=2)
        assert {*cached.stats.bypasses} == {*filter(lambda r: text in r, cached.stats.bypasses)}
        assert cached.stats.entries == 0
        if text == "adds losses":
            assert history["loss"][0] > np.mean(x**2)  # the loss of the layer counts


def test_a_layer_whose_rows_depend_on_each_other_is_refused():
    layer = keras.layers.Lambda(lambda x: x - keras.ops.mean(x, axis=0))
    cached = cache(layer)
    model = keras.Sequential([keras.Input((8,)), cached])
    with pytest.raises(Exception, match="cannot be cached one by one"):
        model.predict(batch(), verbose=0)
    assert cached.stats.entries == 1  # what the probe found


def test_a_variable_of_another_layer_is_no_constant():
    shared = keras.layers.Dense(8, trainable=False)
    shared.build((None, 8))

    class Tied(keras.layers.Layer):
        def call(self, x):
            return x @ shared.kernel

    class Hidden(keras.layers.Layer):
        def call(self, x):
            return x @ _held["layer"].kernel

    _held["layer"] = shared
    x = batch(32)
    for layer, count in ((Tied(), 32), (Hidden(), 0)):
        inputs = keras.Input((8,))
        cached = cache(layer)
        model = keras.Model(inputs, cached(shared(inputs)))
        for _ in range(2):
            shared.kernel.assign(batch(8, 8, seed=3))
            found = model.predict(x, verbose=0)
            assert np.allclose(found, array(shared(x)) @ array(shared.kernel.value), atol=1e-4)
        assert cached.stats.hits == count


_held = {}


# --- Transformations of JAX.


def test_gradients_are_the_layers():
    layer = backbone()
    layer.trainable = True
    cached = cache(layer)
    x = jnp.asarray(batch(32))
    cached(x)
    values = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def loss(values, x, run):
        output, _ = run.stateless_call(values, rest, x, training=False)
        return jnp.sum(output**2)

    for transform in (lambda f: f, jax.jit, jax.checkpoint):
        found = transform(jax.grad(lambda v, x: loss(v, x, cached), (0, 1)))(values, x)
        expected = jax.grad(lambda v, x: loss(v, x, layer), (0, 1))(values, x)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert np.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert any("gradient with respect to" in reason for reason in cached.stats.bypasses)


def test_a_head_on_values_that_are_constants_and_on_values_that_are_passed():
    layer = backbone()
    cached = cache(layer)
    x = jnp.asarray(batch(64))
    expected = array(layer(x))
    closed = jax.jit(lambda x: cached(x))
    passed = jax.jit(lambda values, x: cached.stateless_call([], values, x)[0])
    values = [v.value for v in layer.variables]
    for _ in range(2):
        assert np.allclose(closed(x), expected, atol=1e-5)
        assert np.allclose(passed(values, x), expected, atol=1e-5)
    # Constants are computed with when compiled: other bits, so other keys.
    assert (cached.stats.misses, cached.stats.hits) == (128, 128)
    moved = [value + 1 for value in values]
    truth, _ = layer.stateless_call([], moved, x)
    assert np.allclose(passed(moved, x), truth, atol=1e-5)
    assert (cached.stats.misses, cached.stats.bypasses) == (192, {})


def test_vmap_and_scan():
    cached = cache(backbone())
    layer = cached.layer
    x = jnp.asarray(batch(4 * 32).reshape(4, 32, 8))
    expected = array(layer(x.reshape(128, 8))).reshape(4, 32, 4)
    cached(x[0])
    assert np.allclose(jax.vmap(cached)(x), expected, atol=1e-5)
    assert np.allclose(jax.jit(jax.vmap(cached))(x), expected, atol=1e-5)
    _, found = jax.lax.scan(lambda carry, rows: (carry, cached(rows)), 0, x)
    assert np.allclose(found, expected, atol=1e-5)


def test_a_cached_layer_inside_another():
    inner = cache(backbone())
    outer = cache(keras.Sequential([keras.Input((8,)), inner, keras.layers.ReLU()]))
    model = keras.Sequential([keras.Input((8,)), outer])
    x = batch()
    expected = np.maximum(array(inner.layer(x)), 0)
    for _ in range(2):
        assert np.allclose(model.predict(x, verbose=0), expected, atol=1e-5)
    assert (outer.stats.hits, inner.stats.lookups, inner.stats.bypasses) == (64, 0, {})


def test_keys_of_the_callers_own_have_no_place_in_a_graph():
    cached = cache(backbone())
    x = batch()
    cached(x)

    @jax.jit
    def named(x):
        return cached.with_keys([*range(64)])(x)

    assert np.allclose(named(x), array(cached.layer(x)), atol=1e-5)
    assert any("inside a graph" in reason for reason in cached.stats.bypasses)


# --- Bits, and threads.


@pytest.mark.parametrize(
    ("name", "chunk"), [("dense", 32), ("dense", 1), ("conv", 1), ("lstm", 32)]
)
def test_no_bit_differs_from_the_layer_in_jitted_chunks(name, chunk):
    layer, x = {
        "dense": lambda: (backbone(), batch(60)),
        "conv": lambda: (keras.layers.Conv2D(6, 3, trainable=False), batch(60, 7, 7, 3)),
        "lstm": lambda: (keras.layers.LSTM(6, trainable=False), batch(60, 3, 8)),
    }[name]()
    layer(x[:2])
    cached = cache(layer, chunk=chunk)
    run = jax.jit(layer.stateless_call)
    values = [v.value for v in layer.non_trainable_variables]
    truth = np.concatenate(
        [
            run([], values, np.resize(x[at : at + chunk], (chunk, *x.shape[1:])))[0]
            for at in range(0, 60, chunk)
        ]
    )[:60]
    traced = jax.jit(lambda values, x: cached.stateless_call([], values, x)[0])
    source = np.random.default_rng(3)
    cached(x[:1])
    cached.cache_clear()
    for number in range(100):
        if source.random() < 0.1:
            cached.cache_clear()
        rows = source.integers(0, 60, size=source.choice([20, 33]))
        output = traced(values, x[rows]) if number % 2 else cached(x[rows])
        assert same(output, truth[rows]), number
    stats = cached.stats
    assert stats.chunk == chunk
    assert stats.hits > 500
    assert (stats.bypasses, stats.errors) == ({}, {})


def test_two_threads_predict():
    cached, model, plain = pair()
    x = batch(256)
    expected = plain.predict(x, verbose=0)
    step = jax.jit(lambda values, x: model.stateless_call(values[0], values[1], x)[0])
    values = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    failed = []

    def predict(seed):
        source = np.random.default_rng(seed)
        for _ in range(20):
            rows = source.integers(0, 256, size=32)
            if not np.allclose(step(values, x[rows]), expected[rows], atol=1e-4):
                failed.append(rows)

    threads = [threading.Thread(target=predict, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    stats = cached.stats
    assert stats.lookups == 2 * 20 * 32
    assert (stats.bypasses, stats.errors) == ({}, {})
