"""A cache by content, around relu in a Keras layer: the usual code, why it fails, the right one.

The usual answer to "unhashable type: Tensor" is a tuple of the values. It forgets shape and dtype,
so an input is answered with the output of another one.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

import tensorkey as tk


class ActivationCache(keras.layers.Layer):
    """The usual code."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {}

    def call(self, x):
        """Relu of x, or of whatever had the same numbers in it."""
        key = tuple(np.array(x).flatten().tolist())
        if key not in self.cache:
            self.cache[key] = keras.ops.relu(x)
        return self.cache[key]


class ContentCache(keras.layers.Layer):
    """The right code: a tensor's content is its elements, its shape and its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = tk.TensorKeyDict()
        self.runs = 0

    def call(self, x):
        """Relu of x, computed once for each different x."""
        if x not in self.cache:
            self.runs += 1
            self.cache[x] = keras.ops.relu(x)
        return self.cache[x]


def main() -> None:
    """Show both on the same inputs."""
    square = keras.ops.convert_to_tensor(np.array([[-1, 2], [3, -4]], np.float32))
    flat = keras.ops.reshape(square, (4,))
    whole = keras.ops.cast(flat, "int32")

    usual = ActivationCache()
    usual(square)
    wrong_shape = usual(flat).shape
    wrong_dtype = keras.backend.standardize_dtype(usual(whole).dtype)
    print(f"usual: relu of a tensor of shape (4,) has shape {tuple(wrong_shape)}")
    print(f"usual: relu of int32 has dtype {wrong_dtype}")
    assert tuple(wrong_shape) == (2, 2)
    assert wrong_dtype == "float32"

    right = ContentCache()
    for x in (square, flat, whole):
        answer = right(x)
        assert answer.shape == x.shape
        assert answer.dtype == x.dtype
        np.testing.assert_array_equal(np.array(answer), np.maximum(np.array(x), 0))
    assert right.runs == 3
    again = right(keras.ops.convert_to_tensor(np.array(square)))
    assert right.runs == 3, "an equal tensor is found, whoever made it"
    np.testing.assert_array_equal(np.array(again), np.array(right(square)))
    print("right: three inputs, three answers; an equal tensor is found again")


if __name__ == "__main__":
    main()
