"""TensorFlow below a cached Keras layer: guards, environment, rows, random state.

Two of the guards ask modules of TensorFlow that are not public; the tests pin what they must
detect.
"""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context, forwardprop_util, record
from tensorflow.python.framework import config as framework_config
from tensorflow.python.ops import stateful_random_ops

from tensorkey import _core
from tensorkey._probe import Gap, Inputs


def transform() -> str | None:
    """Return the transformation of TensorFlow that the call is under, if any."""
    if not tf.executing_eagerly():
        return (
            "a graph is being traced (tf.function, fit, predict): the cache works in eager calls; "
            "compile(run_eagerly=True) makes them"
        )
    return None


def unfit_inputs(inputs: Sequence[Any]) -> str | None:
    """Return why these inputs have no rows to look up."""
    rows = -1
    for tensor in inputs:
        if not isinstance(tensor, tf.Tensor) or not hasattr(tensor, "numpy"):
            return f"an input that is no eager tensor: {type(tensor).__name__}"
        if not tensor.shape.rank:
            return "an input of rank 0 has no rows"
        if rows < 0:
            rows = tensor.shape[0]
        elif rows != tensor.shape[0]:
            return "inputs with different batch sizes"
    return None if rows else "a batch of 0 rows"


def recording() -> bool:
    """Whether a GradientTape or ForwardAccumulator is active."""
    return bool(record.could_possibly_record())


def differentiated(inputs: Sequence[Any]) -> bool:
    """Whether the active tapes or accumulators follow one of these inputs."""
    inputs = list(inputs)
    if record.should_record_backprop(inputs):
        return True
    return bool(forwardprop_util.pack_tangents(inputs).tangents)


@functools.cache
def _machine() -> str:
    flags = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        flags = "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    return f"{platform.machine()} {os.environ.get('TF_ENABLE_ONEDNN_OPTS', '')} {flags}"


def unfit_layer(modules: Sequence[Any]) -> str | None:
    """Return why a layer with these sublayers must run: nothing here."""
    return None


inference = record.stop_recording
"""A context in which no gradients are recorded."""


def environment(tensor: Any) -> tuple[object, ...]:
    """Return what else the bits of an answer depend on, as plain values."""
    return (
        tf.__version__,
        "eager",
        tensor.device,
        _machine(),
        tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count(),
        framework_config.is_op_determinism_enabled(),
        tf.config.experimental.tensor_float_32_execution_enabled(),
    )


class Rows:
    """Everything that the engine asks of TensorFlow, but how the layer is run."""

    name = "keras-tensorflow"

    def rows(self, tensor: Any) -> int | None:
        """Return the batch size; None if this is not one plain tensor of rank 1 or more."""
        if isinstance(tensor, tf.Tensor) and hasattr(tensor, "numpy") and tensor.shape.rank:
            return int(tensor.shape[0])
        return None

    def take(self, inputs: Inputs, rows: Sequence[int]) -> Inputs:
        """Copy rows into fresh memory."""
        index = tf.constant(rows, dtype=tf.int32)
        return type(inputs)([tf.gather(tensor, index) for tensor in inputs])  # type: ignore[call-arg]

    def assemble(self, batch: _core.MemoBatch, place: Any) -> Any:
        """Return the answer in a fresh tensor on the device `place`."""
        example = batch.example
        assert example is not None
        name, shape = example
        dtype = np.dtype(tf.as_dtype(name).as_numpy_dtype)
        size = batch.rows * math.prod(shape) * dtype.itemsize
        output = np.empty(size, dtype=np.uint8)  # NumPy exports no buffer of bfloat16
        batch.assemble(output)
        with tf.device(place):
            return tf.convert_to_tensor(output.view(dtype).reshape((batch.rows, *shape)))

    def place(self, output: Any) -> str:
        """Return the device of an output."""
        return str(output.device)

    def finish(self, output: Any) -> None:
        """Wait until an output is computed: eager TensorFlow has computed it on the CPU."""
        if "CPU" not in output.device:
            tf.test.experimental.sync_devices()

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, tf.Tensor) or "CPU" in tensor.device:
            return 0
        return int(math.prod(tensor.shape) * tensor.dtype.size)

    def gap(self, one: Any, other: Any) -> Gap:
        """Compare outputs row by row, bitwise."""
        left, right = one.numpy(), other.numpy()
        rows = len(left)
        if left.dtype != right.dtype or left.shape != right.shape:
            return Gap(max(rows, len(right)), math.inf)
        if not left.size:
            return Gap()
        bits = (np.ascontiguousarray(a).view(np.uint8).reshape(rows, -1) for a in (left, right))
        first, second = bits
        differing = int((first != second).any(axis=1).sum())
        if not differing:
            return Gap()
        dtype = one.dtype
        if dtype.is_complex:
            dtype = dtype.real_dtype
            left, right = (a.view(dtype.as_numpy_dtype) for a in (left, right))
        if not dtype.is_floating:
            return Gap(differing, math.inf)
        limit = 64.0 if dtype.size >= 4 else 4.0
        bits_of_mantissa = {tf.float64: 52, tf.float32: 23, tf.float16: 10, tf.bfloat16: 7}
        unit = 2.0 ** -bits_of_mantissa.get(dtype, 2)
        left, right = left.astype(np.float64), right.astype(np.float64)
        finite = np.abs(left[np.isfinite(left)])
        unequal = ~((left == right) | (np.isnan(left) & np.isnan(right)))
        if not unequal.any():
            return Gap(differing, 0.0, limit)
        apart = float(np.abs(left[unequal] - right[unequal]).max())
        largest = float(finite.max()) if finite.size else 0.0
        if not math.isfinite(apart) or not largest:
            return Gap(differing, math.inf)
        return Gap(differing, apart / (unit * 2.0 ** math.floor(math.log2(largest))), limit)

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
