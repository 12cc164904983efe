"""Rows, answers and random states in TensorFlow: what the engine asks, but how a layer is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops

from tensorkey._history import Shape


class Rows:
    """Everything that the engine asks of TensorFlow, but how the layer is run."""

    name = "keras-tensorflow"

    def is_tensor(self, value: Any) -> bool:
        """Whether this is a tensor."""
        return isinstance(value, tf.Tensor)

    def rows(self, tensor: Any) -> int | None:
        """Return the first dim; -1 if a graph does not know it yet, None for rank 0."""
        if not tensor.shape.rank:
            return None
        rows = tensor.shape[0]
        return -1 if rows is None else int(rows)

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
        """Return memory on the host: bytes, as NumPy exports no buffer of bfloat16.

        One dim is added, of the bytes of an element.
        """
        return np.empty((*shape, _numpy_dtype(dtype).itemsize), dtype=np.uint8)

    def deliver(
        self, memory: Any, dtype: str, shape: tuple[int, ...], device: str, like: Any
    ) -> Any:
        """Return a tensor with these bytes on a device: that of `like`, if it is not named."""
        device = device or ("" if like is None else like.device)
        if memory.ndim == len(shape) + 1:
            shape = memory.shape[:-1]  # of gathered parts
        with tf.device(device):
            return tf.convert_to_tensor(memory.view(_numpy_dtype(dtype)).reshape(shape))

    def is_home(self, tensors: Sequence[Any]) -> bool:
        """Never: the answer lies in an array of bytes."""
        return False

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, tf.Tensor) or "CPU" in tensor.device:
            return 0
        return int(math.prod(tensor.shape) * tensor.dtype.size)

    # For trim=: on the host, bytes and elements alike, as all dims but the last are the tensor's.

    def ends(self, mask: Any, dim: int) -> list[int] | None:
        """Return for each row one more than the place of its last entry that is not zero.

        0 for a row that begins with zero: it is padded on the left, or empty. None for a mask of
        zeros and large negative numbers.
        """
        array = mask.numpy()
        if not array.size:
            return [0] * array.shape[0]
        if mask.dtype.is_floating and (array < 0).any():
            return None
        there = np.moveaxis(array != 0, dim, 1).reshape(*array.shape[:1], array.shape[dim], -1)
        there = there.any(2)
        places = np.arange(1, there.shape[1] + 1)
        return ((there * places).max(1) * there[:, 0]).tolist()  # type: ignore[no-any-return]

    def picked(self, tensor: Any, rows: Sequence[int]) -> Any:
        """Copy rows, where the tensor is."""
        [part] = self.take([tensor], rows)
        return part

    def trimmed(
        self, tensor: Any, rows: Sequence[int], lengths: Sequence[int], dim: int, to: int
    ) -> Any:
        """Copy rows, cut or padded to a length, zeros behind each row's own."""
        array = tensor.numpy()
        part = np.zeros((len(rows), *array.shape[1:dim], to, *array.shape[dim + 1 :]), array.dtype)
        self.scatter(part, range(len(rows)), array[rows], dim, lengths)
        with tf.device(tensor.device):
            return tf.convert_to_tensor(part)

    def scatter(
        self, into: Any, rows: Sequence[int], part: Any, dim: int, lengths: Sequence[int] | None
    ) -> None:
        """Write rows of a part; with lengths, zeros behind each row's own."""
        if lengths is None:
            into[rows] = part
            return
        width = min(into.shape[dim], part.shape[dim])
        for row, values, length in zip(rows, part, lengths, strict=True):
            own = (slice(None),) * (dim - 1) + (slice(min(width, length)),)
            into[row][own] = values[own]

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return memory on the host as allocate() does, all zero."""
        memory = self.allocate(dtype, shape)
        memory.fill(0)
        return memory

    # For files, hints and explanations.

    environment_names = (
        *("TensorFlow", "mode", "device", "machine", "CPU model", "CPU capability"),
        *("TF_ENABLE_ONEDNN_OPTS", "threads", "deterministic ops", "TensorFloat-32"),
    )
    """Of the entries of environment(), for people."""

    files = "tensorflow"
    """Whose tensors safetensors reads and writes."""

    def integers(self, tensor: Any) -> Any:
        """Return integers on the host as an array; None for other tensors."""
        return tensor.numpy() if tensor.dtype.is_integer and not self.device_bytes(tensor) else None

    def to_numpy(self, tensor: Any) -> Any:
        """Return the elements as an array; bfloat16 and the like are not NumPy's."""
        return tensor.numpy()

    def from_numpy(self, array: Any) -> Any:
        """Return a copy as a tensor on the host; TypeError for a dtype that is not TensorFlow's."""
        with tf.device("CPU:0"):
            return tf.constant(array.astype(array.dtype.newbyteorder("="), copy=True))

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Return tensors of one dtype and shape as the rows of one."""
        return tf.stack([*tensors])

    def host_rows(self, tensor: Any) -> list[Any]:
        """Return a copy of each row, on the host."""
        with tf.device("CPU:0"):
            return list(tf.unstack(tensor))

    def variants(
        self, tensors: Sequence[Any], shapes: Iterable[Shape]
    ) -> Iterator[tuple[list[Any], str]]:
        """Yield the same rows as they would be with dtypes or lengths that were seen, in words."""
        own = tuple((tensor.dtype.name, tuple(tensor.shape[1:])) for tensor in tensors)
        for shape in shapes:
            if shape == own or len(shape) != len(own):
                continue
            pairs = zip(tensors, shape, strict=True)
            if [dims for _, dims in shape] == [dims for _, dims in own]:
                names = ", ".join(
                    f"{a[0]} then, {b[0]} now" for a, b in zip(shape, own, strict=True)
                )
                yield (
                    [tf.cast(tensor, name) for tensor, (name, _) in pairs],
                    f"seen with another dtype: {names}",
                )
            elif all(
                name == mine[0] and len(dims) == len(mine[1]) == 1
                for (name, dims), mine in zip(shape, own, strict=True)
            ):
                then, now = shape[0][1][0], own[0][1][0]
                yield (
                    [_resized(tensor, dims[0]) for tensor, (_, dims) in pairs],
                    f"seen at another length: {then} then, {now} now; trim= would make it a hit",
                )

    # For the probe.

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


def _numpy_dtype(name: str) -> Any:
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def _resized(tensor: Any, length: int) -> Any:
    """Cut rows, or continue them with their last value: as padding does."""
    now = tensor.shape[1]
    if now >= length:
        return tensor[:, :length]
    return tf.concat([tensor, tf.repeat(tensor[:, -1:], length - now, axis=1)], 1)
