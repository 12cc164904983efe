"""Cached layers of Keras 3 on JAX, called eagerly: chunks run jitted all the same."""

import os
import subprocess
import sys

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
keras = pytest.importorskip("keras")
np = pytest.importorskip("numpy")

from tensorkey.keras import CachedLayer  # noqa: E402

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX only")
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


def batch(rows=40, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, *(shape or (8,)))).astype("float32")


def dense(units=4, width=8, **options):
    layer = keras.layers.Dense(units, trainable=False, **options)
    layer.build((None, width))
    return layer


def cache(layer, **options):
    return CachedLayer(layer, **{"bypass": "never", **options})


def programs(cached):
    """Return the programs that were compiled for chunks."""
    return cached._engine.backend.run_layer._programs


def compilations(cached):
    return sum(program.run._cache_size() for program in programs(cached).values())


class Scaled(keras.layers.Layer):
    """Depends on an attribute, on an array, on a sublayer and on what `outside` holds."""

    outside = {"scale": 1.0}

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(4)
        self.scale = 1.0
        self.table = np.ones(4, "float32")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(x) * self.scale * self.outside["scale"]
        return y + keras.ops.convert_to_tensor(self.table)


# --- What is compiled is what the layer is.


def test_contents_of_variables_are_no_reason_to_compile_anew():
    layer = dense()
    cached = cache(layer)
    x = batch()
    cached(x)
    count = compilations(cached)
    for step in range(4):
        layer.kernel.assign(array(layer.kernel) * 1.5)
        assert np.allclose(array(cached(x)), array(layer(x)), atol=1e-5)
        assert cached.stats.misses == 40 * (step + 2)
    assert compilations(cached) == count


def test_everything_else_is():
    layer = Scaled(trainable=False)
    x = batch()
    layer(x)
    cached = cache(layer, state=lambda: layer.outside, ignore=("outside",))
    cached(x)

    def replaced():
        other = keras.layers.Dense(4, trainable=False)  # the same but for its weights
        other.build((None, 8))
        layer._tracker.unlock()
        layer.dense = other

    def changed(name, value):
        return lambda: setattr(layer, name, value)

    changes = [
        changed("scale", 2.0),
        lambda: layer.table.__setitem__(slice(None), 5),
        lambda: layer.outside.update(scale=3.0),
        replaced,
        changed("table", jnp.full(4, 7.0)),
        changed("activity", "new"),
    ]
    for change in changes:
        change()
        for rows in (x, x[:3]):
            assert np.allclose(array(cached(rows)), array(layer(rows)), atol=1e-4)
    assert cached.stats.bypasses == {}
    Scaled.outside["scale"] = 1.0


def test_an_equal_sublayer_with_variables_of_its_own_is_used_for_other_shapes_too():
    layer = Scaled(trainable=False)
    layer(batch(40, 5, 8))
    cached = cache(layer)
    cached(batch(40, 5, 8))
    other = keras.layers.Dense(4, trainable=False)
    other.build((None, 5, 8))
    layer._tracker.unlock()
    layer.dense = other
    x = batch(40, 6, 8)  # compiled now
    assert np.allclose(array(cached(x)), array(layer(x)), atol=1e-5)
    other.kernel.assign(array(other.kernel) + 1)
    assert np.allclose(array(cached(x)), array(layer(x)), atol=1e-5)


def test_a_variable_of_a_closure_counts():
    scale = keras.Variable(np.float32(2.0))
    layer = keras.layers.Lambda(lambda x: x * scale)
    x = batch()
    cached = cache(layer)
    assert same(cached(x), x * 2)
    scale.assign(np.float32(4.0))
    assert same(cached(x), x * 4)
    assert cached.stats.hits == 0


def test_what_nothing_sees_is_read_again_after_clearing():
    seen = {"scale": 2.0}
    globals()["_hidden"] = seen
    layer = Hidden()
    x = batch()
    layer(x)
    cached = cache(layer)
    assert same(cached(x), x * 2)
    seen["scale"] = 4.0
    cached.cache_clear()
    assert same(cached(x), x * 4)


class Hidden(keras.layers.Layer):
    def call(self, x):
        return x * _hidden["scale"]  # noqa: F821


def test_arguments_that_are_no_arrays_are_part_of_a_program():
    class Powers(keras.layers.Layer):
        def call(self, x, power=1, names=("a",), other=None):
            y = x**power * len(names)
            return y if other is None else y + other["bias"]

    layer = Powers()
    layer(batch())
    cached = cache(layer)
    x = batch()
    bias = {"bias": jnp.float32(3.0)}
    for options in (
        {},
        {"power": 2},
        {"power": 3},
        {"power": 2, "names": ("a", "b")},
        {"other": bias},
        {"other": {"bias": jnp.float32(4.0)}},
    ):
        for _ in range(2):
            assert np.allclose(array(cached(x, **options)), array(layer(x, **options)), atol=1e-5)
    assert (cached.stats.misses, cached.stats.hits) == (240, 240)


# --- Layers that are no functions for jax.jit.


def test_a_layer_that_jax_cannot_trace_runs_itself():
    class Branching(keras.layers.Layer):
        def call(self, x):
            return x * 2 if float(keras.ops.sum(x)) > 0 else x * 3

    class Host(keras.layers.Layer):
        def call(self, x):
            return keras.ops.convert_to_tensor(np.sort(np.asarray(x), axis=1))

    x = np.abs(batch())
    for layer, expected in ((Branching(), x * 2), (Host(), np.sort(x, axis=1))):
        layer(x)
        cached = cache(layer)
        for _ in range(2):
            assert same(cached(x), expected)
        (reason,) = cached.stats.bypasses
        assert "cannot trace" in reason
        assert cached.stats.entries == 0


def test_an_exception_of_the_layer_passes_through():
    class Failing(keras.layers.Layer):
        def call(self, x):
            if x.shape[1] == 8:
                raise KeyError("of my own")
            return x

    layer = Failing()
    layer(batch(4, 3))
    cached = cache(layer)
    with pytest.raises(KeyError, match="of my own"):
        cached(batch())
    assert same(cached(batch(40, 3)), batch(40, 3))
    assert cached.stats.misses == 40


def test_seeds_are_neither_drawn_from_nor_baked():
    shared = keras.random.SeedGenerator(3)

    class Outside(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=_held["seed"])

    class Unseeded(keras.layers.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x))

    _held["seed"] = shared
    x = batch()
    for layer, text in ((Outside(), "a variable that neither"), (Unseeded(), "cannot trace")):
        layer(x)
        cached = cache(layer)
        assert not same(cached(x), cached(x))
        (reason,) = cached.stats.bypasses
        assert text in reason


_held = {}


def test_a_counter_that_moves_is_refused_and_put_back():
    class Counting(keras.layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x):
            self.count.assign_add(1.0)
            return x + self.count

    layer = Counting()
    layer(batch())
    cached = cache(layer)
    with pytest.raises(Exception, match="its own state"):
        cached(batch())
    assert float(layer.count.value) == 1.0


# --- Scopes of Keras and transformations of JAX with nothing traced.


def test_values_of_a_stateless_scope_are_the_weights():
    layer = dense()
    cached = cache(layer)
    x = batch()
    kept = [v.value for v in layer.variables]
    other = [v.value + 1 for v in layer.variables]
    expected = [layer.stateless_call([], values, x)[0] for values in (kept, other)]
    cached(x)
    for _ in range(2):
        for values, truth in zip((kept, other), expected, strict=True):
            output, after = cached.stateless_call([], values, x)
            assert np.allclose(array(output), array(truth), atol=1e-5)
            assert all(v is w for v, w in zip(values, after, strict=True))
    assert np.allclose(array(cached(x)), array(expected[0]), atol=1e-5)
    assert (cached.stats.misses, cached.stats.hits) == (80, 160)
    assert cached.stats.bypasses == {}


def test_a_layer_of_another_policy_keeps_its_weights_as_they_are():
    wide = keras.layers.Dense(4, dtype="float32")

    class Mixed(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16", trainable=False)
            self.narrow, self.wide = keras.layers.Dense(8, dtype="mixed_bfloat16"), wide

        def call(self, x):
            return self.wide(keras.ops.cast(self.narrow(x), "float32"))

    layer = Mixed()
    x = batch()
    expected = layer(x)
    cached = cache(layer)
    cached(x)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, cached(inputs))
    for found in (cached(x), model.predict(x, batch_size=40, verbose=0)):
        assert found.dtype == "float32"
        assert np.allclose(array(found), array(expected), atol=1e-5)
    assert cached.stats.misses == 40


def test_gradients_of_a_head_while_nothing_is_jitted():
    layer = dense()
    cached = cache(layer)
    x = batch()
    head = jnp.ones((4, 1))

    def loss(head, run):
        return jnp.sum((run(x) @ head) ** 2)

    expected = jax.grad(loss)(head, layer)
    for _ in range(2):
        assert np.allclose(jax.grad(loss)(head, cached), expected, rtol=1e-5)
    assert (cached.stats.misses, cached.stats.hits) == (40, 40)


def test_deleted_buffers_are_never_read():
    layer = dense()
    cached = cache(layer)
    x = batch()
    cached(x)
    layer.kernel._value.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        cached(x)
    assert any("deleted" in reason for reason in cached.stats.bypasses)
    deleted = jnp.asarray(x)
    deleted.delete()
    layer.kernel.assign(np.ones((8, 4)))
    with pytest.raises(RuntimeError, match="deleted"):
        cached(deleted)
    assert cached.stats.lookups == 40


def test_tensorflow_is_not_loaded():
    program = """
import sys, keras, numpy as np
from tensorkey.keras import CachedLayer
layer = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
layer.trainable = False
cached = CachedLayer(layer)
cached(np.ones((20, 3), "float32"))
assert cached.stats.lookups == 20 and "tensorflow" not in sys.modules
assert keras.src.utils.module_utils.tensorflow._available is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
