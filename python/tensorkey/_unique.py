"""Exact de-duplication of the rows of a tensor."""

from __future__ import annotations

from typing import Any

from tensorkey import _core


def unique(
    rows: Any,
    *,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
) -> Any:
    """Return the distinct rows of a tensor, in the order of their first appearance.

    Rows are items along the first dimension; two are the same iff their bytes are (-0.0 and 0.0
    differ, NaN equals its own bits). Names are those of `numpy.unique` and `torch.unique`; unlike
    those nothing is sorted, so the time grows with the number of rows alone.

    Parameters
    ----------
    rows
        A tensor of at least one dimension.
    return_index : bool
        Also return where each distinct row first appears.
    return_inverse : bool
        Also return which distinct row each row is: ``values[inverse]`` is `rows`.
    return_counts : bool
        Also return how often each distinct row appears.

    Returns
    -------
    values, or a tuple of values, index, inverse, counts as asked for
        In the framework of `rows`: values as its indexing gives them, numbers as int64 (in JAX
        without x64 its int32). For a buffer, NumPy arrays.

    Examples
    --------
    >>> import numpy as np, tensorkey as tk
    >>> values, counts = tk.unique(np.array([[3, 3], [1, 2], [3, 3]]), return_counts=True)
    >>> values.tolist(), counts.tolist()
    ([[3, 3], [1, 2]], [2, 1])
    """
    framework, first, inverse, counts = _core.unique_rows(rows)
    take, numbers = _TOOLS[framework]
    results = [take(rows, first)]
    wanted = ((return_index, first), (return_inverse, inverse), (return_counts, counts))
    results += [numbers(data, rows) for asked, data in wanted if asked]
    return tuple(results) if len(results) > 1 else results[0]


def _numpy_numbers(data: bytearray, _like: Any = None) -> Any:
    import numpy as np

    return np.frombuffer(data, np.int64).copy()


def _numpy_take(rows: Any, first: bytearray) -> Any:
    import numpy as np

    return np.asarray(rows)[_numpy_numbers(first)]


def _torch_numbers(data: bytearray, like: Any) -> Any:
    import torch

    flat = torch.frombuffer(data, dtype=torch.int64) if data else torch.empty(0, dtype=torch.int64)
    return flat.clone().to(_torch_tensor(like).device)


def _torch_tensor(rows: Any) -> Any:
    return getattr(rows, "value", rows)  # keras.Variable


def _torch_take(rows: Any, first: bytearray) -> Any:
    return _torch_tensor(rows)[_torch_numbers(first, rows)]


def _jax_numbers(data: bytearray, _like: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(_numpy_numbers(data))


def _jax_take(rows: Any, first: bytearray) -> Any:
    return getattr(rows, "value", rows)[_numpy_numbers(first)]


def _tensorflow_numbers(data: bytearray, _like: Any) -> Any:
    import tensorflow as tf

    return tf.constant(_numpy_numbers(data))


def _tensorflow_take(rows: Any, first: bytearray) -> Any:
    import tensorflow as tf

    return tf.gather(tf.convert_to_tensor(rows), _numpy_numbers(first))


_TOOLS: dict[str, tuple[Any, Any]] = {
    "buffer": (_numpy_take, _numpy_numbers),
    "numpy": (_numpy_take, _numpy_numbers),
    "torch": (_torch_take, _torch_numbers),
    "jax": (_jax_take, _jax_numbers),
    "tensorflow": (_tensorflow_take, _tensorflow_numbers),
}
