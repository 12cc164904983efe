"""Structure keys: remembering what a tensor is apart from its elements, and making such a one.

A recipe is plain data, so that it pickles: (framework, dtype, shape, strides, device, pinned,
requires_grad), with strides and devices in the framework's own terms.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

from tensorkey import _rebuild

Recipe = tuple[str, str, tuple[int, ...], tuple[int, ...], str, bool, bool]


def describe(tensor: Any) -> Recipe:
    """Return the recipe of a tensor that has a structure key."""
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    numpy, jax = sys.modules.get("numpy"), sys.modules.get("jax")
    tf = sys.modules.get("tensorflow")
    if keras is not None and isinstance(tensor, keras.Variable):
        return describe(tensor.value)
    if torch is not None and isinstance(tensor, torch.Tensor):
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        pinned = tensor.is_pinned()
        return ("torch", dtype, shape, strides, str(tensor.device), pinned, tensor.requires_grad)
    if tf is not None and isinstance(tensor, tf.Tensor | tf.Variable):
        shape = tuple(tensor.shape)
        return ("tensorflow", tensor.dtype.name, shape, (), tensor.device, False, False)
    if jax is not None and isinstance(tensor, jax.Array):
        device = next(iter(tensor.devices()))
        where = f"{device.platform}:{device.id}"
        return ("jax", tensor.dtype.name, tuple(tensor.shape), (), where, False, False)
    if numpy is not None and isinstance(tensor, numpy.ndarray | numpy.generic):
        return ("numpy", _dtype_text(tensor.dtype), tensor.shape, tensor.strides, "", False, False)
    return _describe_buffer(tensor)


def _dtype_text(dtype: Any) -> str:
    # What ml_dtypes adds has a name and no letter; all others have a text with the byte order.
    return str(dtype.name) if dtype.kind == "V" else str(dtype.str)


def _describe_buffer(tensor: Any) -> Recipe:
    try:
        view = memoryview(tensor)
    except TypeError:  # an exporter of __dlpack__ alone
        import numpy as np

        return describe(np.from_dlpack(tensor))
    shape, strides = view.shape or (), view.strides or ()
    return ("buffer", view.format, shape, strides, "", False, False)


def build(recipe: Recipe) -> Any:
    """Make a tensor of zeros with the same structure key."""
    framework, dtype, shape, strides, device, pinned, requires_grad = recipe
    if framework == "torch":
        import torch

        kind = getattr(torch, dtype)
        new = torch.empty_strided(shape, strides, dtype=kind, device=device, pin_memory=pinned)
        storage: Any = new.untyped_storage()  # elements may overlap, where zero_ refuses
        storage.fill_(0)
        return new.requires_grad_(requires_grad)
    if framework == "tensorflow":
        import tensorflow as tf

        with tf.init_scope(), tf.device(device):
            return tf.constant(_zeros(_rebuild.numpy_dtype(dtype), shape, ()))
    if framework == "jax":
        import jax

        platform, number = device.split(":")
        place = next(d for d in jax.local_devices(backend=platform) if d.id == int(number))
        with jax.enable_x64(True):
            return jax.device_put(_zeros(_rebuild.numpy_dtype(dtype), shape, ()), place)
    if framework == "buffer" and shape and 0 not in shape:
        return _zero_buffer(dtype, shape, strides)
    return _zeros(_numpy_kind(framework, dtype), shape, strides)


def _numpy_kind(framework: str, text: str) -> Any:
    import numpy as np

    if framework == "buffer":
        return np.dtype(text)
    return np.dtype(text) if text[0] in "<>|=" else _rebuild.numpy_dtype(text)


def _zero_buffer(text: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Make a memoryview; where it cannot say the format or the strides, a NumPy array."""
    if len(text) == 1:
        size = struct.calcsize(text) * math.prod(shape)
        view = memoryview(bytearray(size)).cast(text, shape)  # type: ignore[call-overload]
        if view.strides == strides:
            return view
    return _zeros(_numpy_kind("buffer", text), shape, strides)


def _zeros(dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Make an array of zeros with any strides, negative and overlapping ones too."""
    import numpy as np

    if not strides or 0 in shape:
        array = np.zeros(shape, dtype)
        return np.lib.stride_tricks.as_strided(array, shape, strides) if strides else array
    reach = [(dim - 1) * stride for dim, stride in zip(shape, strides, strict=True)]
    low, high = sum(min(0, r) for r in reach), sum(max(0, r) for r in reach)
    memory = np.zeros(high - low + dtype.itemsize, np.uint8)
    return np.ndarray(shape, dtype, memory, -low, strides)
