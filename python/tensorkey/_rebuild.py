"""Tensors out of snapshots: what iterating over a mapping gives. No framework is imported early."""

from __future__ import annotations

import math
from typing import Any

# Formats that memoryview.cast takes, by dtype.
_FORMATS = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}


def tensor(framework: str, dtype: str, params: str, shape: tuple[int, ...], data: bytearray) -> Any:
    """Make a new, writable tensor that owns its memory: on the CPU, C-contiguous."""
    if framework == "torch":
        return _torch(dtype, shape, data)
    if framework == "buffer":
        return _buffer(dtype, params, shape, data)
    array = _numpy(dtype, params, shape, data)
    if framework == "jax":
        return _jax(array)
    if framework == "tensorflow":
        return _tensorflow(array)
    return array


def numpy_dtype(dtype: str, params: str = "") -> Any:
    """Return NumPy's dtype of that name, or the one that ml_dtypes adds to it."""
    import numpy as np

    try:
        return np.dtype(f"{dtype}[{params}]" if params else dtype)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, dtype))


def _numpy(dtype: str, params: str, shape: tuple[int, ...], data: bytearray) -> Any:
    import numpy as np

    array = np.empty(shape, numpy_dtype(dtype, params))
    array.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    return array


def _torch(dtype: str, shape: tuple[int, ...], data: bytearray) -> Any:
    import torch

    kind = getattr(torch, dtype)
    if not data:
        return torch.empty(shape, dtype=kind, device="cpu")
    # A clone lies where PyTorch allocates, aligned as its kernels like it.
    return torch.frombuffer(data, dtype=torch.uint8).clone().view(kind).reshape(shape)


def _jax(array: Any) -> Any:
    import jax

    with jax.enable_x64(True):
        return jax.device_put(array, jax.local_devices(backend="cpu")[0])


def _tensorflow(array: Any) -> Any:
    import tensorflow as tf

    with tf.init_scope(), tf.device("CPU:0"):
        return tf.constant(array)


def _buffer(dtype: str, params: str, shape: tuple[int, ...], data: bytearray) -> Any:
    """Make a memoryview; where it cannot say the dtype or the shape, a NumPy array."""
    sayable = dtype in _FORMATS and (math.prod(shape) > 0 or shape == (0,))
    if not sayable:
        return _numpy(dtype, params, shape, data)
    flat = memoryview(data).cast(_FORMATS[dtype])  # type: ignore[call-overload]
    return flat if shape == (0,) else flat.cast("B").cast(_FORMATS[dtype], shape)
