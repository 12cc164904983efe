"""Rows, answers and random states in TensorFlow: what the engine asks, but how a layer is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops


class Rows:
    """Everything that the engine asks of TensorFlow, but how the layer is run."""

    name = "keras-tensorflow"

    def is_tensor(self, value: Any) -> bool:
        """Whether this is a tensor."""
        return isinstance(value, tf.Tensor)

    def rows(self, tensor: Any) -> int | None:
        """Return the first dim; None for rank 0."""
        return int(tensor.shape[0]) if tensor.shape.rank else None

    def take(self, tensors: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """Copy rows into fresh memory."""
        index = tf.constant(rows, dtype=tf.int32)
        return [tf.gather(tensor, index) for tensor in tensors]

    def copy(self, tensors: Sequence[Any]) -> list[Any]:
        """Copy whole tensors: they cannot be written to, so they stay."""
        return list(tensors)

    def lift(self, tensor: Any) -> Any:
        """Return the tensor with one more dim in front, of size 1."""
        return tf.expand_dims(tensor, 0)

    def finish(self, tensors: Sequence[Any]) -> None:
        """Wait until outputs are computed: eager TensorFlow has computed them on the CPU."""
        if any("CPU" not in tensor.device for tensor in tensors):
            tf.test.experimental.sync_devices()

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return memory on the host: bytes, as NumPy exports no buffer of bfloat16."""
        size = math.prod(shape) * np.dtype(tf.as_dtype(dtype).as_numpy_dtype).itemsize
        return np.empty(size, dtype=np.uint8)

    def deliver(
        self, memory: Any, dtype: str, shape: tuple[int, ...], device: str, like: Any
    ) -> Any:
        """Return a tensor with these bytes on a device: that of `like`, if it is not named."""
        device = device or ("" if like is None else like.device)
        kind = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
        with tf.device(device):
            return tf.convert_to_tensor(memory.view(kind).reshape(shape))

    def is_home(self, tensors: Sequence[Any]) -> bool:
        """Never: the answer lies in an array of bytes."""
        return False

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, tf.Tensor) or "CPU" in tensor.device:
            return 0
        return int(math.prod(tensor.shape) * tensor.dtype.size)

    def random_state(self) -> Any:
        """Return the state of the generators that can be read.

        The seed stream of the eager context (once a global seed is set) and the global Generator.
        """
        stream = getattr(context.context(), "_rng", None)
        generator = stateful_random_ops.global_generator
        return (
            stream.getstate() if stream else None,
            generator.state.numpy().tobytes() if generator else None,
        )

    def set_random_state(self, state: Any) -> None:
        """Put the states back."""
        stream, generator = state
        if stream is not None:
            context.context()._rng.setstate(stream)
        if generator is not None:
            value = stateful_random_ops.global_generator.state
            value.assign(np.frombuffer(generator, dtype=np.int64))

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that memory ran out."""
        return isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError))
