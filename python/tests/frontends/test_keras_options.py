"""Cached layers of Keras 3: nests of inputs and outputs, masks, keys of one's own, options."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey._backend import Unsuited  # noqa: E402
from tensorkey._random_state import RandomState  # noqa: E402
from tensorkey.keras import CachedLayer  # noqa: E402

BACKEND = keras.backend.backend()
pytestmark = [
    # Keras's own, with NumPy 2: variables and tensors of PyTorch that require grad.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.skipif(BACKEND not in ("tensorflow", "torch", "jax"), reason="no cached layers"),
]
tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow only")
torch_only = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch only")


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def close(one, other):
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return all(np.allclose(array(a), array(b), atol=1e-5) for a, b in pairs)


def batch(rows=40, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *(shape or (8,)))).astype("float32")


def dense(units=4, width=8, **options):
    layer = keras.layers.Dense(units, trainable=False, **options)
    layer.build((None, width))
    return layer


# --- Nests.


def towers():
    """A model of two inputs and two outputs by name."""
    words, image = keras.Input((6,), name="words"), keras.Input((4, 4, 1), name="image")
    text = keras.layers.Dense(3)(words)
    pixels = keras.layers.Flatten()(image)
    model = keras.Model(
        {"words": words, "image": image},
        {"text": text, "both": keras.layers.Concatenate()([text, pixels])},
    )
    model.trainable = False
    return model


def test_dicts_of_inputs_and_outputs():
    model = towers()
    cached = CachedLayer(model, bypass="never")
    x = {"words": batch(20, 6), "image": batch(20, 4, 4, 1)}
    first, second = cached(x), cached(x)
    assert set(first) == {"text", "both"}
    assert close(first, model(x))
    for name in first:
        assert np.array_equal(array(first[name]), array(second[name]))
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)
    other = {**x, "image": x["image"][::-1]}
    assert close(cached(other), model(other))
    assert cached.stats.misses == 40


def test_a_list_of_inputs_is_one_argument():
    layer = keras.layers.Add()
    parts = [batch(20, seed=seed) for seed in range(3)]
    cached = CachedLayer(layer, bypass="never")
    for _ in range(3):  # the first call builds
        assert np.array_equal(array(cached(parts)), array(layer(parts)))
    assert cached.stats.hits == 20
    swapped = CachedLayer(keras.layers.Subtract(), bypass="never")
    for one, other in [(0, 1), (0, 1), (1, 0)]:
        pair = [parts[one], parts[other]]
        assert np.array_equal(array(swapped(pair)), pair[0] - pair[1])
    assert swapped.stats.hits == 0
    short = CachedLayer(keras.layers.Add(), bypass="never")  # as many inputs as rows
    for _ in range(3):
        assert np.array_equal(array(short([x[:2] for x in parts[:2]])), parts[0][:2] + parts[1][:2])
    assert (short.stats.misses, short.stats.hits) == (2, 2)


def test_several_outputs():
    layer = keras.layers.LSTM(5, return_sequences=True, return_state=True, trainable=False)
    x = batch(20, 7, 3)
    expected = layer(x)
    cached = CachedLayer(layer, bypass="never")
    cached(x)
    output = cached(x)
    assert type(output) is type(expected)
    assert [tuple(part.shape) for part in output] == [(20, 7, 5), (20, 5), (20, 5)]
    assert close(output, expected)
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)


def test_arguments_by_keyword_count():
    layer = keras.layers.MultiHeadAttention(2, 4, trainable=False)
    x, y = batch(20, 5, 8), batch(20, 6, 8, seed=1)
    layer(x, y)
    cached = CachedLayer(layer, bypass="never")
    mask = np.arange(6) < np.arange(20)[:, None, None] % 6 + 1
    mask = np.repeat(mask, 5, 1)
    calls = [
        {"value": y},
        {"value": y, "attention_mask": mask},
        {"value": y, "attention_mask": mask, "use_causal_mask": True},
    ]
    for number, options in enumerate(calls):
        cached(x, **options)
        assert close(cached(x, **options), layer(x, **options))
        assert cached.stats.hits == 20 * (number + 1)
    assert close(cached(query=x, value=y), layer(x, y))
    assert cached.stats.misses == 60
    assert cached.stats.bypasses == {}
    # Keras 3.15 hangs the mask on the scores, which then are the layer's own.
    scored, plain = (run(x, **calls[1], return_attention_scores=True) for run in (cached, layer))
    assert close(scored, plain)
    hung = [getattr(scores, "_keras_mask", None) is not None for _, scores in (scored, plain)]
    assert hung[0] == hung[1]


# --- Masks.


def test_a_mask_by_keyword_is_an_input():
    layer = keras.layers.LSTM(3, trainable=False)
    x = batch(20, 5, 4)
    mask = np.arange(5) < np.arange(20)[:, None] % 5 + 1
    layer(x)
    cached = CachedLayer(layer, bypass="never")
    for _ in range(2):
        assert close(cached(x, mask=mask), layer(x, mask=mask))
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)
    assert close(cached(x), layer(x))
    assert cached.stats.misses == 40
    assert cached.stats.bypasses == {}


def test_a_mask_on_any_input_runs_the_layer_itself():
    embedding = keras.layers.Embedding(10, 4, mask_zero=True)
    ids = np.array([[1, 2, 0], [3, 0, 0]] * 10)
    cached = CachedLayer(keras.layers.Add(), bypass="never")
    parts = [embedding(ids), batch(20, 3, 4)]
    for _ in range(2):
        output = cached(parts)
    assert cached.stats.bypasses == {
        "the first call builds the layer": 1,
        "an input with a mask": 1,
    }
    assert np.allclose(array(output), array(parts[0]) + parts[1])


def test_a_hit_carries_the_mask_that_follows_from_the_input():
    layer = keras.layers.Embedding(10, 4, mask_zero=True, trainable=False)
    ids = np.array([[1, 2, 0], [3, 0, 0]] * 10)
    layer(ids)
    cached = CachedLayer(layer, bypass="never")
    for _ in range(2):
        assert np.array_equal(array(cached(ids)._keras_mask), ids != 0)
    assert cached.stats.hits == 20 + 18


def test_a_mask_that_only_a_run_knows_is_never_lost():
    words = keras.Input((3,), dtype="int32")
    model = keras.Model(words, keras.layers.Embedding(10, 4, mask_zero=True)(words))
    model.trainable = False
    ids = np.array([[1, 2, 0], [3, 0, 0]] * 10, "int32")
    cached = CachedLayer(model, bypass="never")
    for _ in range(2):
        assert np.array_equal(array(cached(ids)._keras_mask), ids != 0)
    assert any("has a mask" in reason for reason in cached.stats.bypasses)


# --- Keys of the caller's own, and what else a cached layer offers.


def test_keys_of_ones_own():
    layer = dense()
    cached = CachedLayer(layer, bypass="never")
    x, names = batch(20), [f"{i}.png" for i in range(20)]
    asked = []

    def load(missing):
        asked.extend(missing)
        return x[missing]

    assert close(cached.with_keys(names)(load), layer(x))
    assert set(asked) == set(range(20))  # some of them for the probe, too
    asked.clear()
    assert close(cached.with_keys(names)(load), layer(x))
    assert close(cached.with_keys([*names[:3], "new"])(load), layer(x[[0, 1, 2, 3]]))
    assert asked == [3]
    assert cached.missing([*names, "newer"]) == [20]
    assert close(cached.to_table(["3.png", "1.png"]), layer(x[[3, 1]]))
    assert close(cached.with_keys(["a", "b"])(x[:2].astype("float64")), layer(x[:2]))
    assert cached.missing(["a", "b"]) == []


def test_a_fill_builds_the_layer_and_stores_every_batch():
    layer = keras.layers.Dense(4, trainable=False)
    cached = CachedLayer(layer, bypass="never")
    x = batch(64)
    done = cached.precompute(np.split(x, 4))
    assert done.misses == 64
    assert close(cached(x), layer(x))
    assert cached.stats.misses == 64
    keyed = CachedLayer(keras.layers.Dense(4, trainable=False), bypass="never")
    assert keyed.precompute([([1, 2], x[:2]), ([3, 4], x[2:4])], keys=True).misses == 4
    assert keyed.missing([1, 2, 3, 4, 5]) == [4]


def test_explain():
    layer = dense()
    cached = CachedLayer(layer, bypass="never")
    x = batch(40)
    cached(x[:20])
    assert [row.hit for row in cached.explain(x)] == [True] * 20 + [False] * 20
    assert {row.reason for row in cached.explain(x[20:])} == {"never seen"}
    layer.kernel.assign(array(layer.kernel) + 1)
    (reason,) = {row.reason for row in cached.explain(x[:20])}
    assert "other weights" in reason
    fresh = CachedLayer(keras.layers.Dense(4))
    (reason,) = {row.reason for row in fresh.explain(x)}
    assert "the first call builds the layer" in reason


def test_check_measures_a_layer():
    x = batch(32)
    for layer in (dense(), CachedLayer(dense(), chunk=32)):
        found = tk.check(layer, x)
        assert found.refused is None
        assert found.rows == 32
        assert found.chunk in (1, 32)  # 1 where a matrix product's bits depend on the place
        assert found.bytes_row > 16
        assert "Dense" in str(found)
    centred = keras.layers.Lambda(lambda x: x - keras.ops.mean(x, axis=0))
    assert "rows depend on each other" in tk.check(centred, x).refused


# --- Options.


@keras.saving.register_keras_serializable(package="tensorkey_tests")
def to_list(output):
    return [output]


@keras.saving.register_keras_serializable(package="tensorkey_tests")
def from_list(parts):
    return parts[0]


@keras.saving.register_keras_serializable(package="tensorkey_tests")
class Counting(keras.layers.Layer):
    """An attribute that no answer depends on; a mask argument."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = 0

    def call(self, x, attention_mask=None):
        if attention_mask is not None:
            x = x * keras.ops.cast(attention_mask, x.dtype)[..., None]
        return x * 2


OPTIONS = {
    "memory": "8 MiB",
    "chunk": 32,
    "fingerprint": "strict",
    "scope": "preprocessing 3",
    "state": [1, 2.5, "three"],
    "ignore": ("calls",),
    "environment": "portable",
    "outputs": (to_list, from_list),
    "trim": ("attention_mask", 1),
    "probe": False,
    "bits": "slot",
    "bypass": "never",
    "on_error": "warn",
    "verify": 0.25,
    "tolerance": 0.5,
    "codec": "lossless",
}


def told(layer):
    return {name: getattr(layer._options, name) for name in OPTIONS}


def test_options_survive_a_config_and_a_file(tmp_path):
    cached = CachedLayer(Counting(), name="enc", **OPTIONS)
    twin = CachedLayer.from_config(cached.get_config())
    bound = {"memory": twin._options.memory, "scope": twin._options.scope}
    assert bound == {"memory": "8 MiB", "scope": b"preprocessing 3"}
    assert told(twin) | bound == OPTIONS | bound
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, cached(inputs))
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path).get_layer("enc")
    assert told(loaded) == told(twin)
    x = batch(4, 4, 3)
    assert np.array_equal(array(loaded(x)), x * 2)
    whole = CachedLayer.from_config(
        CachedLayer(Counting(), rows="batch", by="structure").get_config()
    )
    assert (whole._options.rows, whole._options.by) == ("batch", "structure")


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(errors.Unsupported, match="Keras moves inputs"):
        CachedLayer(keras.layers.ReLU(), index="cpu_input")
    for name in ("method", "compile"):
        with pytest.raises((TypeError, ValueError), match=name):
            CachedLayer(keras.layers.ReLU(), **{name: "x"})


@tensorflow_only
def test_a_guard_is_refused_where_variables_count_no_versions():
    with pytest.raises(errors.Unsupported, match="count no versions"):
        CachedLayer(dense(), fingerprint="guard")
    assert CachedLayer(dense()).stats.strict_interval == 1


@torch_only
@pytest.mark.parametrize("mode", ["auto", "guard"])
def test_a_guard_sees_variables_attributes_and_sublayers(mode):
    layer = keras.Sequential([keras.Input((8,)), dense(), keras.layers.LeakyReLU()])
    layer.trainable = False
    cached = CachedLayer(layer, fingerprint=mode, bypass="never")
    x = batch(40)
    cached(x)
    for _ in range(30):
        cached(x)
    assert cached.stats.hits == 1200
    for change in (
        lambda: layer.layers[0].kernel.assign(array(layer.layers[0].kernel) + 1),
        lambda: setattr(layer.layers[1], "negative_slope", 0.9),
        lambda: setattr(layer.layers[0], "activation", keras.activations.tanh),
    ):
        change()
        assert close(cached(x), layer(x))
        assert cached.stats.hits == 1200


def test_a_manual_fingerprint_trusts_the_scope():
    layer = dense()
    x = batch(20)
    cached = CachedLayer(layer, fingerprint="manual", scope="v1", bypass="never")
    before = cached(x)
    layer.kernel.assign(array(layer.kernel) + 1)
    assert np.array_equal(array(cached(x)), array(before))
    assert any("manual" in text for text in cached.stats.assumptions)


def test_state_and_ignored_attributes():
    counting = Counting()
    x = batch(20)
    counting(x)
    seen = {"version": 1}
    cached = CachedLayer(counting, ignore=("calls",), state=lambda: seen, bypass="never")
    cached(x)
    counting.calls += 1
    cached(x)
    assert cached.stats.hits == 20
    seen["version"] = 2
    cached(x)
    assert cached.stats.hits == 20


def test_the_whole_batch_as_one_row():
    centred = keras.layers.Lambda(lambda x: x - keras.ops.mean(x, axis=0))
    x = batch(20)
    expected = centred(x)
    cached = CachedLayer(centred, rows="batch", bypass="never")
    for _ in range(2):
        assert np.array_equal(array(cached(x)), array(expected))
    assert (cached.stats.misses, cached.stats.hits) == (1, 1)
    cached(x[:10])
    assert cached.stats.misses == 2


def test_answers_by_structure():
    class Positions(keras.layers.Layer):
        def call(self, x):
            return keras.ops.ones_like(x) * 3

    layer = Positions()
    layer(batch(4))
    cached = CachedLayer(layer, by="structure", bypass="never")
    for seed in range(3):
        assert np.array_equal(array(cached(batch(4, seed=seed))), np.full((4, 8), 3.0))
    assert cached.stats.misses == 1


def test_adapters_of_outputs():
    class Boxed:
        def __init__(self, value):
            self.value = value

    class Boxing(keras.layers.Layer):
        def call(self, x):
            return Boxed(x * 2)

    layer = Boxing()
    layer.built = True
    cached = CachedLayer(layer, outputs=(lambda box: box.value, Boxed), bypass="never")
    x = batch(20)
    for _ in range(2):
        assert np.array_equal(array(cached(x).value), x * 2)
    assert cached.stats.hits == 20


@pytest.mark.parametrize("codec", ["lossless", "fp16", "bf16"])
def test_codecs(codec):
    layer = dense()
    x = batch(40)
    cached = CachedLayer(layer, codec=codec, bypass="never")
    first = cached(x)
    assert np.array_equal(array(cached(x)), array(first))
    assert np.allclose(array(first), array(layer(x)), atol=1e-5 if codec == "lossless" else 0.05)
    assert cached.stats.hits == 40


def test_hits_are_verified():
    layer = dense()
    x = batch(40)
    cached = CachedLayer(
        layer, fingerprint="manual", scope="v1", verify=1.0, on_error="raise", bypass="never"
    )
    cached(x)
    cached(x)
    layer.kernel.assign(array(layer.kernel) + 1)
    with pytest.raises(errors.CorruptEntry, match="differ from what the layer computes"):
        cached(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trim_makes_padding_no_part_of_a_row(dtype):
    @keras.saving.register_keras_serializable(package="tensorkey_tests")
    class Tokens(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.embedding = keras.layers.Embedding(50, 6, dtype=dtype)

        def build(self, shape):
            self.embedding.build(shape)

        def call(self, ids, attention_mask=None):
            x = self.embedding(ids)
            mask = keras.ops.cast(attention_mask, x.dtype)[..., None]
            return {"tokens": x, "sum": keras.ops.sum(x * mask, axis=1)}

    layer = Tokens(trainable=False, dtype=dtype)
    lengths = np.arange(20) % 9 + 1

    def padded(width):
        ids = np.random.default_rng(0).integers(1, 50, (20, 64))[:, :width]
        mask = (np.arange(width) < lengths[:, None]).astype("int32")
        return (ids * mask).astype("int32"), mask

    short, long = padded(12), padded(40)
    layer(*short)
    cached = CachedLayer(layer, trim=("attention_mask", 1), bypass="never")
    one, two = cached(*short), cached(*long)
    assert (cached.stats.misses, cached.stats.hits) == (20, 20)
    assert tuple(one["tokens"].shape) == (20, 12, 6)
    assert tuple(two["tokens"].shape) == (20, 40, 6)

    def wide(tensor):
        return array(keras.ops.cast(tensor, "float32"))

    expected = layer(*short)
    assert np.array_equal(wide(one["sum"]), wide(two["sum"]))
    assert np.allclose(
        wide(one["sum"]), wide(expected["sum"]), atol=1e-5 if dtype == "float32" else 0.1
    )
    assert np.array_equal(wide(one["tokens"]), wide(expected["tokens"]) * short[1][..., None])
    assert np.array_equal(wide(one["tokens"])[:, :9], wide(two["tokens"])[:, :9])


def test_answers_that_were_computed_elsewhere(tmp_path):
    rows = {f"{i}": row for i, row in enumerate(batch(3, 4))}
    np.savez(tmp_path / "rows.npz", **rows)
    cached = CachedLayer(dense(), bypass="never")
    assert cached.import_entries(tmp_path / "rows.npz") == 3
    table = cached.to_table(["2", "0"])
    assert np.array_equal(array(table), np.stack([rows["2"], rows["0"]]))
    safetensors = pytest.importorskip("safetensors.numpy")
    assert cached.to_safetensors(tmp_path / "rows.safetensors", ["1", "2"]) == 2
    found = safetensors.load_file(tmp_path / "rows.safetensors")
    assert np.array_equal(found["2"], rows["2"])


# --- The probe, and dtypes.


def test_the_probe_leaves_random_states_as_they_were():
    class Drawing(keras.layers.Layer):
        def call(self, x):
            return x + 0 * keras.random.normal(keras.ops.shape(x))

    layer = Drawing()
    x = batch(20)
    layer(x)
    cached = CachedLayer(layer, bypass="never")
    before = RandomState(cached._engine.backend).encoded
    if BACKEND == "jax":  # which cannot trace it
        with pytest.raises(Unsuited):
            cached._engine.backend.run(keras.ops.convert_to_tensor(x))
    else:
        with pytest.raises(errors.Unsupported):
            cached(x)
    assert RandomState(cached._engine.backend).encoded == before
    layer(x)
    assert RandomState(cached._engine.backend).encoded != before


def test_a_model_gets_the_inputs_that_it_would_get_alone():
    """Models cast none of their inputs, whatever their policy: layers inside do."""
    inputs = keras.Input((8,), dtype="float32")
    x = keras.layers.Rescaling(1000.0, dtype="float32")(inputs)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Model(inputs, keras.layers.ReLU(dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy(policy)
    x = batch(20)
    cached = CachedLayer(model, bypass="never")
    assert np.array_equal(array(cached(x)), array(model(x)))
    assert cached.stats.misses == 20


def test_a_cached_layer_inside_another():
    inner = CachedLayer(dense(), chunk=1, bypass="never")
    model = keras.Sequential([keras.Input((8,)), inner, keras.layers.ReLU()])
    cached = CachedLayer(model, bypass="never")
    x = batch(20)
    first = cached(x)
    assert np.array_equal(array(cached(x)), array(first))
    assert close(first, model(x))
    assert cached.stats.hits == 20
    assert cached.stats.assumptions == []


def test_layers_that_differ_in_their_seeds_alone_share_answers():
    def encoder():
        inputs = keras.Input((8,), name="inputs")  # names of layers in a model count
        drop = keras.layers.Dropout(0.5, name="drop")
        layer = keras.Sequential([inputs, dense(name="dense"), drop])
        layer.trainable = False
        return layer

    one, other = encoder(), encoder()
    other.set_weights(one.get_weights())
    seeds = [array(layer.layers[-1].seed_generator.state.value) for layer in (one, other)]
    assert not np.array_equal(*seeds)
    cache = tk.ActivationCache("1 MiB")
    x = batch(20)
    first = CachedLayer(one, cache=cache, bypass="never")(x)
    second = CachedLayer(other, cache=cache, bypass="never")
    assert np.array_equal(array(second(x)), array(first))
    assert (second.stats.misses, second.stats.hits) == (0, 20)
