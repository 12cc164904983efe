"""A cache by identity, around x * 2 in a Keras layer: the usual code, why it fails, the right one.

A key made of the address is quick, and wrong as soon as a tensor dies: the next one gets the same
address. Identity must end when the object does.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import gc

import keras
import numpy as np

import tensorkey as tk


class AddressCacheLayer(keras.layers.Layer):
    """The usual code: TensorFlow's hash(tensor.ref()) is the address, as is id(tensor)."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = {}

    def call(self, x):
        """Twice x, or twice what lay at this address before."""
        key = hash(x.ref()) if hasattr(x, "ref") else id(x)
        if key not in self.cache:
            self.cache[key] = np.array(x * 2)
        return self.cache[key]


class IdentityCache(keras.layers.Layer):
    """The right code: an entry belongs to one live object and dies with it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = tk.TensorKeyDict(by="identity")
        self.runs = 0

    def call(self, x):
        """Twice x, computed once for each object."""
        if x not in self.cache:
            self.runs += 1
            self.cache[x] = x * 2
        return self.cache[x]


def fresh(i: int):
    """A new tensor that holds i."""
    return keras.ops.convert_to_tensor(np.full(4, i, np.float32))


def main() -> None:
    """Count wrong answers of both over tensors that live for one call."""
    count = 500
    usual, right = AddressCacheLayer(), IdentityCache()
    wrong = sum(not np.array_equal(usual.call(fresh(i)), np.full(4, 2 * i)) for i in range(count))
    print(f"usual: {wrong} of {count} answers are wrong")
    assert wrong > count // 2

    for i in range(count):
        np.testing.assert_array_equal(np.array(right.call(fresh(i))), np.full(4, 2 * i))
    gc.collect()
    assert right.runs == count
    assert len(right.cache) == 0, "nothing is left of tensors that died"

    kept = fresh(7)
    assert right.call(kept) is right.call(kept)
    assert right.runs == count + 1
    print(f"right: {count} answers right, nothing left behind; a kept tensor is found again")


if __name__ == "__main__":
    main()
