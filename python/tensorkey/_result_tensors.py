"""Tensors of results: what is to be noted of one beside its elements, and making it again.

A note is a tuple of plain values:

    ("torch", device, order)             ("numpy", dtype, order, is a scalar)
    ("tensorflow", device)               ("jax", platform, number of the device, committed)

``order`` names the dims from the slowest to the fastest where the elements are dense but not in
C order, else it is empty. A dtype of NumPy is a text with the byte order, or a name. An empty text
as the device (the platform of jax) stands for the device of a layer's input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tensorkey import _rebuild

Note = tuple[Any, ...]


class NoResult(Exception):
    """A result cannot be kept; the text is the reason."""


def note(value: Any, rows: int | None = None) -> tuple[Note, Any] | None:
    """Return what to note of a tensor, and the tensor to store; None for what is no tensor.

    Parameters
    ----------
    value
        Anything.
    rows
        The batch size of the run that made it, if its first dim is to count as one that may vary.

    Raises
    ------
    NoResult
        For a tensor that could not be made again as it is.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    tf, jax = sys.modules.get("tensorflow"), sys.modules.get("jax")
    kind = type(value)
    if torch is not None and isinstance(value, torch.Tensor):
        return _note_torch(torch, value, rows)
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _note_numpy(numpy, value, rows)
    if tf is not None and isinstance(value, (tf.Tensor, tf.Variable)):
        if kind.__name__ != "EagerTensor":
            raise NoResult(f"a {kind.__qualname__} in the result: return its value")
        if value.dtype in (tf.string, tf.variant, tf.resource):
            raise NoResult(f"a tensor of {value.dtype.name} in the result")
        return ("tensorflow", value.device), value
    if jax is not None and isinstance(value, jax.Array):
        return _note_jax(jax, value)
    return None


def device_of(value: Any) -> tuple[Any, ...]:
    """Return how the notes of tensors on the device of this one begin."""
    kind = type(value)
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and isinstance(value, torch.Tensor):
        return ("torch", str(value.device))
    if jax is not None and isinstance(value, jax.Array):
        device = next(iter(value.devices()))
        return ("jax", device.platform, device.id)
    if kind.__module__.startswith("tensorflow"):
        return ("tensorflow", value.device)
    return ()


def at_home(noted: Note, home: tuple[Any, ...]) -> Note:
    """Leave the device out of a note that begins with `home`."""
    if not home or noted[: len(home)] != home:
        return noted
    return (noted[0], "", *((0,) if noted[0] == "jax" else ()), *noted[len(home) :])


def _note_torch(torch: Any, value: Any, rows: int | None) -> tuple[Note, Any]:
    if type(value) is not torch.Tensor:
        raise NoResult(f"a {type(value).__qualname__} in the result: return a torch.Tensor")
    if value.requires_grad:
        raise NoResult("gradients of the result are recorded: run the call under torch.no_grad()")
    if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
        raise NoResult("a sparse, quantised or meta tensor in the result")
    return ("torch", str(value.device), _order(value.shape, value.stride(), rows)), value


def _note_numpy(numpy: Any, value: Any, rows: int | None) -> tuple[Note, Any]:
    scalar = isinstance(value, numpy.generic)
    if not scalar and type(value) is not numpy.ndarray:
        raise NoResult(f"a {type(value).__qualname__} in the result: return a numpy.ndarray")
    dtype = value.dtype
    if dtype.hasobject or dtype.fields or dtype.kind in "SUT":
        raise NoResult(f"an array of {dtype} in the result")
    text = dtype.name if dtype.kind == "V" else dtype.str  # ml_dtypes have a name only
    array = numpy.asarray(value)
    if dtype.kind in "mM":  # entries have no dates
        array = array.astype(dtype.newbyteorder("=")).view(numpy.int64)
    strides = tuple(stride // max(1, dtype.itemsize) for stride in array.strides)
    return ("numpy", text, _order(array.shape, strides, rows), scalar), array


def _note_jax(jax: Any, value: Any) -> tuple[Note, Any]:
    if isinstance(value, jax.core.Tracer):
        raise NoResult("a tensor without a value in the result: a function of JAX is being traced")
    if value.weak_type:
        raise NoResult("a weakly typed array of JAX in the result: give it a dtype")
    devices = list(value.devices())
    if len(devices) != 1:
        raise NoResult("an array of JAX on several devices in the result")
    return ("jax", devices[0].platform, devices[0].id, bool(value.committed)), value


def make(noted: Note, dtype: str, shape: tuple[int, ...], elements: Any) -> Any:
    """Make a tensor anew from its note, and from the elements as a buffer in C order."""
    framework = noted[0]
    data = bytearray(elements)
    if framework == "torch":
        tensor = _rebuild.tensor("torch", dtype, "", shape, data)
        _, device, order = noted
        if order:
            tensor = reordered(tensor, order)
        return tensor if device == "cpu" else tensor.to(device)
    if framework == "numpy":
        return _make_numpy(noted, dtype, shape, data)
    if framework == "tensorflow":
        import tensorflow as tf

        array = _rebuild.tensor("numpy", dtype, "", shape, data)
        with tf.init_scope(), tf.device(noted[1]):
            return tf.constant(array)
    if framework == "jax":
        import jax

        _, platform, number, committed = noted
        array = _rebuild.tensor("numpy", dtype, "", shape, data)
        place = next(d for d in jax.local_devices(backend=platform) if d.id == number)
        with jax.enable_x64(True):
            return jax.device_put(array, place if committed else None)
    raise ValueError(f"no framework {framework!r}")


def _make_numpy(noted: Note, dtype: str, shape: tuple[int, ...], data: bytearray) -> Any:
    import numpy as np

    _, text, order, scalar = noted
    array = _rebuild.tensor("numpy", dtype, "", shape, data)
    wanted = np.dtype(text) if text[0] in "<>|=" else _rebuild.numpy_dtype(text)
    if wanted.kind in "mM":
        array = array.view(wanted.newbyteorder("="))
    array = array.astype(wanted, copy=False)
    if order:
        array = reordered(array, order)
    return array[()] if scalar else array


def _order(
    shape: Sequence[int], strides: Sequence[int], rows: int | None = None
) -> tuple[int, ...]:
    """Return the dims of a dense tensor from slow to fast; nothing if that is C order.

    The place of a dim of 1 says nothing, but for the rows of a layer that was run on one of them.
    """
    rank = len(shape)
    order = sorted(range(rank), key=lambda dim: (-strides[dim], shape[dim] == 1, dim))
    step = 1
    for dim in reversed(order):
        if shape[dim] != 1:
            if strides[dim] != step:
                return ()  # gaps, overlaps or steps backwards: their copy is in C order
            step *= shape[dim]
    one_row = rank > 0 and rows == shape[0] == 1 and strides[0] > 0
    moving = [dim for dim in order if shape[dim] != 1 or (one_row and not dim)]
    return () if moving == sorted(moving) else tuple(order)


def reordered(tensor: Any, order: Sequence[int]) -> Any:
    """Copy a tensor of PyTorch or NumPy so that its dims lie in this order, from slow to fast."""
    back = sorted(range(len(order)), key=order.__getitem__)
    if hasattr(tensor, "permute"):
        return tensor.permute(order).contiguous().permute(back)
    return tensor.transpose(order).copy(order="C").transpose(back)


def own_copy(value: Any) -> Any:
    """Copy a tensor that has a note, on its device; what cannot be written to stays itself."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.clone()
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.copy(order="K")
    return value
