"""Rows and answers in JAX: what the engine asks, but how a layer is run.

Shared by the JAX frontend and by Keras on JAX. On the CPU rows are copied by NumPy, whose functions
need not be compiled for every batch size, into memory that JAX takes over as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jaxlib.xla_client
import numpy as np
from jax import numpy as jnp

from tensorkey._history import Shape
from tensorkey._jax_environment import NAMES, device_of
from tensorkey._rebuild import numpy_dtype

_ALIGNMENT = 64  # bytes: what JAX on a CPU takes over without a copy
_ARRAY: Any = jaxlib.xla_client.ArrayImpl
_device_put: Any = jaxlib.xla_client.batched_device_put


class Rows:
    """Everything that the engine asks of JAX, but how the layer is run."""

    name = "jax"

    def is_tensor(self, value: Any) -> bool:
        """Whether this is an array, or stands for one while a function is traced."""
        return isinstance(value, jax.Array)

    def rows(self, tensor: Any) -> int | None:
        """Return the first dim; None for rank 0."""
        return tensor.shape[0] if tensor.ndim else None

    def stands_for(self, tensor: Any) -> tuple[type, Any]:
        """Return class and device of an array; of a tracer, of what it stands for."""
        if isinstance(tensor, jax.core.Tracer):
            return _ARRAY, device_of(tensor)
        return type(tensor), tensor.device

    def take(self, tensors: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """Copy rows into fresh memory."""
        return [self.picked(tensor, rows) for tensor in tensors]

    def copy(self, tensors: Sequence[Any]) -> list[Any]:
        """Copy whole tensors: they cannot be written to, so they stay."""
        return list(tensors)

    def lift(self, tensor: Any) -> Any:
        """Return the tensor with one more dim in front, of size 1."""
        return jax.lax.expand_dims(tensor, (0,))

    def finish(self, tensors: Sequence[Any]) -> None:
        """Wait until outputs are computed."""
        for tensor in tensors:
            tensor.block_until_ready()

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return memory on the host: bytes, as NumPy exports no buffer of bfloat16.

        One dim is added, of the bytes of an element.
        """
        return aligned((*shape, numpy_dtype(dtype).itemsize), np.uint8)

    def deliver(
        self, memory: Any, dtype: str, shape: tuple[int, ...], device: str, like: Any
    ) -> Any:
        """Return an array with these bytes on a device: that of `like`, if it is not named."""
        if memory.ndim == len(shape) + 1:
            shape = memory.shape[:-1]  # of gathered parts
        array = memory.view(numpy_dtype(dtype)).reshape(shape)
        committed = like is not None and bool(like.committed)
        if device:
            return put(array, jax.local_devices(backend=device)[0], committed)
        return put(array, None if like is None else like.device, committed)

    def is_home(self, tensors: Sequence[Any]) -> bool:
        """Never: the answer lies in an array of bytes."""
        return False

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, jax.Array) or _on_cpu(tensor):
            return 0
        return int(math.prod(tensor.shape) * tensor.dtype.itemsize)

    # For trim=: on the host, bytes and elements alike, as all dims but the last are the tensor's.

    def ends(self, mask: Any, dim: int) -> list[int] | None:
        """Return for each row one more than the place of its last entry that is not zero.

        0 for a row that begins with zero: it is padded on the left, or empty. None for a mask of
        zeros and large negative numbers.
        """
        array = np.asarray(mask)
        if not array.size:
            return [0] * array.shape[0]
        if jnp.issubdtype(mask.dtype, jnp.floating) and bool((array < 0).any()):
            return None
        there = np.moveaxis(array != 0, dim, 1).reshape(*array.shape[:1], array.shape[dim], -1)
        there = there.any(2)
        places = np.arange(1, there.shape[1] + 1)
        return ((there * places).max(1) * there[:, 0]).tolist()  # type: ignore[no-any-return]

    def picked(self, tensor: Any, rows: Sequence[int]) -> Any:
        """Copy rows, where the tensor is."""
        index = np.array(rows, dtype=np.int32)
        if not _on_cpu(tensor):
            return jnp.take(tensor, index, axis=0, mode="clip")
        array = np.asarray(tensor)
        part = aligned((len(index), *array.shape[1:]), array.dtype)
        np.take(array, index, axis=0, out=part, mode="clip")
        return put(part, tensor.device, bool(tensor.committed))

    def trimmed(
        self, tensor: Any, rows: Sequence[int], lengths: Sequence[int], dim: int, to: int
    ) -> Any:
        """Copy rows, cut or padded to a length, zeros behind each row's own."""
        array = np.asarray(tensor)
        part = aligned((len(rows), *array.shape[1:dim], to, *array.shape[dim + 1 :]), array.dtype)
        part.fill(0)
        self.scatter(part, range(len(rows)), array[list(rows)], dim, lengths)
        return put(part, tensor.device, bool(tensor.committed))

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

    environment_names: tuple[str, ...] = NAMES
    """Of the entries of environment(), for people."""

    files = "flax"
    """Whose tensors safetensors reads and writes."""

    def integers(self, tensor: Any) -> Any:
        """Return integers on the host as an array; None for other tensors."""
        whole = jnp.issubdtype(tensor.dtype, jnp.integer)
        return np.asarray(tensor) if whole and _on_cpu(tensor) else None

    def from_numpy(self, array: Any) -> Any:
        """Return a copy as a tensor on the host; TypeError for a dtype that is not JAX's."""
        native = array.astype(array.dtype.newbyteorder("="), copy=True)
        return put(native, jax.local_devices(backend="cpu")[0])

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Return tensors of one dtype and shape as the rows of one."""
        return put(np.stack([np.asarray(tensor) for tensor in tensors]), tensors[0].device)

    def host_rows(self, tensor: Any) -> list[Any]:
        """Return a copy of each row, on the host."""
        host = jax.local_devices(backend="cpu")[0]
        return [put(row.copy(), host) for row in np.asarray(tensor)]

    def variants(
        self, tensors: Sequence[Any], shapes: Iterable[Shape]
    ) -> Iterator[tuple[list[Any], str]]:
        """Yield the same rows as they would be with dtypes or lengths that were seen, in words."""
        own = tuple((tensor.dtype.name, tuple(tensor.shape[1:])) for tensor in tensors)
        for shape in shapes:
            if shape == own or len(shape) != len(own):
                continue
            pairs = zip(map(np.asarray, tensors), shape, strict=True)
            if [dims for _, dims in shape] == [dims for _, dims in own]:
                names = ", ".join(
                    f"{a[0]} then, {b[0]} now" for a, b in zip(shape, own, strict=True)
                )
                with np.errstate(all="ignore"):
                    cast = [array.astype(numpy_dtype(name)) for array, (name, _) in pairs]
                yield list(map(put, cast)), f"seen with another dtype: {names}"
            elif all(
                name == mine[0] and len(dims) == len(mine[1]) == 1
                for (name, dims), mine in zip(shape, own, strict=True)
            ):
                then, now = shape[0][1][0], own[0][1][0]
                yield (
                    [put(_resized(array, dims[0])) for array, (_, dims) in pairs],
                    f"seen at another length: {then} then, {now} now; trim= would make it a hit",
                )

    # For the probe.

    def random_state(self) -> Any:
        """Return None: JAX has no generators."""
        return None

    def set_random_state(self, state: Any) -> None:
        """Do nothing."""

    def save(self, tensors: Sequence[Any]) -> Any:
        """Return None: arrays cannot be written to."""
        return None

    def restore(self, saved: Any) -> None:
        """Do nothing."""

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that memory ran out."""
        if isinstance(error, MemoryError):
            return True
        return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def unfit_inputs(inputs: Sequence[Any]) -> str | None:
    """Return why rows of these inputs cannot be looked up."""
    for tensor in inputs:
        if isinstance(tensor, jax.core.Tracer):
            return f"an input without a value: {type(tensor).__name__}"
        if tensor.is_deleted():
            return "an input was deleted or donated"
        if jnp.issubdtype(tensor.dtype, jax.dtypes.extended):
            return f"an input of dtype {tensor.dtype}: pass jax.random.key_data(key)"
        if tensor.weak_type:
            return "a weakly typed input: give it a dtype"
        if len(tensor.sharding.device_set) != 1 or not tensor.is_fully_addressable:
            return "an input on several devices"
    return None


def put(array: Any, device: Any = None, committed: bool = False) -> Any:
    """Make an array of NumPy one of JAX, of the same dtype, whatever x64 says.

    REQUIRES that nobody writes to it any more: JAX may take the memory over.
    """
    device = device_of(None) if device is None else device
    aval = jax.core.ShapedArray(array.shape, array.dtype)
    # What jax.device_put comes to, in a hundredth of its time.
    return _device_put(aval, _sharding(device), [array], [device], committed)


@functools.lru_cache(maxsize=64)
def _sharding(device: Any) -> Any:
    return jax.sharding.SingleDeviceSharding(device)


def aligned(shape: tuple[int, ...], dtype: Any) -> Any:
    """Return memory of NumPy that JAX takes over without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % _ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)


def _on_cpu(tensor: Any) -> bool:
    return bool(tensor.device.platform == "cpu")


def _resized(array: Any, length: int) -> Any:
    """Cut rows, or continue them with their last value: as padding does."""
    now = array.shape[1]
    if now >= length:
        return array[:, :length].copy()
    return np.concatenate([array, np.repeat(array[:, -1:], length - now, axis=1)], 1)
