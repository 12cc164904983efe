"""TensorFlow and Keras tensors as keys: eager, variables, symbolic."""

import pytest

import tensorkey as tk
from tensorkey.errors import Unsupported

pytestmark = pytest.mark.filterwarnings("ignore")

tf = pytest.importorskip("tensorflow")
np = pytest.importorskip("numpy")

TRACED = "has no value while the model is being traced; wrap the layer in CachedLayer"


def test_tensors_equal_their_numpy_copies() -> None:
    x = tf.reshape(tf.range(24.0), (2, 3, 4))
    for tensor in (x, tf.transpose(x), x[:, 1:], x[1:1], x[0, 0, 0]):
        assert tk.key(tensor) == tk.key(tensor.numpy())
    half = tf.cast(x, tf.bfloat16)
    assert tk.key(half) == tk.key(half.numpy())
    assert tk.key(half[0, 0, 0]) == tk.key(half[0, 0, 0].numpy())


def test_variables() -> None:
    x = np.arange(6, dtype="float32").reshape(2, 3)
    variable = tf.Variable(x)
    assert tk.key(variable) == tk.key(x)
    assert tk.structure_key(variable) == tk.structure_key(x)
    variable.assign_add(tf.ones_like(variable))
    assert tk.key(variable) == tk.key(x + 1)
    assert tk.describe(tf.Variable(True)).dtype == "bool"


def test_keras_variables() -> None:
    keras = pytest.importorskip("keras")
    x = np.arange(3, dtype="float32")
    assert tk.key(keras.Variable(x)) == tk.key(x)
    with pytest.raises(Unsupported, match=TRACED):
        tk.key(keras.KerasTensor((2, 3)))
    with pytest.raises(Unsupported, match=TRACED):
        tk.key(keras.Input((3,)))


def test_quantised_tensors_are_not_integers() -> None:
    x = tf.constant([1, 0], tf.int8)
    tk.key(x)
    with pytest.raises(Unsupported, match="quantised TensorFlow tensor"):
        tk.key(tf.bitcast(x, tf.qint8))


def test_refused_by_name() -> None:
    cases = [
        (tf.ragged.constant([[1], [1, 2]]), "nested_row_splits"),
        (tf.sparse.from_dense([[1, 0]]), r"tf\.sparse\.to_dense"),
        (tf.IndexedSlices(tf.ones(1), tf.constant([0])), r"tf\.convert_to_tensor"),
        (tf.TensorArray(tf.float32, 2), r"x\.stack\(\)"),
        (tf.constant("text"), "dtype string"),
    ]
    for x, text in cases:
        for function in (tk.key, tk.structure_key):
            with pytest.raises(Unsupported, match=text):
                function(x)


def test_graph_tensors() -> None:
    variable = tf.Variable(1.0)

    @tf.function  # type: ignore[untyped-decorator]
    def refused(x: object) -> object:
        for tensor in (x, variable):
            with pytest.raises(Unsupported, match=TRACED):
                tk.key(tensor)
        return x

    refused(tf.ones(3))
    with tf.Graph().as_default(), pytest.raises(Unsupported, match=TRACED):
        tk.key(tf.constant(1.0))


def test_structure() -> None:
    x = tf.ones((4, 6))
    assert tk.structure_key(x) == tk.structure_key(np.zeros((4, 6), "float32"))
    assert tk.structure_key(tf.cast(x, tf.bfloat16)) != tk.structure_key(x)
