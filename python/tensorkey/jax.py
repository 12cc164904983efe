"""Cached functions of JAX.

Examples
--------
>>> import jax
>>> from tensorkey.jax import cached
>>> weights = jax.random.normal(jax.random.key(0), (16, 32))
>>> encoder = cached(lambda x: jax.nn.relu(x @ weights), memory="64 MiB")
>>> batch = jax.random.normal(jax.random.key(1), (64, 16))
>>> bool((encoder(batch) == encoder(batch)).all())
True
>>> encoder.stats.hits, encoder.stats.misses
(64, 64)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from tensorkey import _core, errors
from tensorkey._jax_fingerprint import JaxFingerprint
from tensorkey._jax_function import CachedFunction
from tensorkey._jax_nest import in_order
from tensorkey._jax_rows import put
from tensorkey._options import Options, parsed
from tensorkey._rebuild import numpy_dtype

__all__ = ["CachedFunction", "cached", "fingerprint", "tensor"]


def cached(
    function: Callable[..., Any],
    *,
    params_argnums: int | Sequence[int] = (),
    **options: Any,
) -> CachedFunction:
    """Return a function that remembers what it returned, row by row.

    Eager calls and calls under ``jax.jit`` share their answers. Under every other transformation
    the result is that of the function itself.

    Parameters
    ----------
    function
        A pure function of JAX: whatever ``jax.jit`` takes, a module of Equinox, a bound method. Its
        arguments are nests of arrays and plain values; arrays with the batch dimension (the first
        dim of the first one) make the rows, everything else is a part of every key.
    params_argnums
        Positions of arguments that are parameters: pytrees whose contents count like those of
        weights that the function holds.
    **options
        Those of a cached layer (docs/layers.md).

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For an option out of range.

    Examples
    --------
    >>> import jax
    >>> apply = cached(lambda params, x: x @ params["w"], params_argnums=0)
    >>> x = jax.numpy.ones((20, 4))
    >>> apply({"w": jax.numpy.ones((4, 2))}, x).shape, apply.stats.misses
    ((20, 2), 1)
    >>> _ = apply({"w": jax.numpy.zeros((4, 2))}, x)
    >>> apply.stats.misses
    2
    """
    if not callable(function):
        raise errors.InvalidArgument(
            f"[cached] function is {type(function).__name__}; expected a callable"
        )
    if isinstance(function, CachedFunction):
        raise errors.InvalidArgument("[cached] function is cached already")
    numbers = (params_argnums,) if isinstance(params_argnums, int) else tuple(params_argnums)
    return CachedFunction(function, numbers, parsed(options))


def fingerprint(params: Any) -> bytes:
    """Return 32 bytes that stand for parameters: the same in every process.

    For ``cached(f, params_argnums=0, fingerprint="manual", scope=fingerprint(params))``, which
    takes your word that these, and no others, are passed: no call reads them again.

    Parameters
    ----------
    params
        A pytree, a module or a function: what ``cached`` would read of it.

    Raises
    ------
    tensorkey.errors.Unsupported
        For what cannot be read to the end, and for arrays without a value.

    Examples
    --------
    >>> import jax
    >>> fingerprint({"w": jax.numpy.ones(3)}) == fingerprint({"w": jax.numpy.ones(3)})
    True
    """
    tree, leaves = in_order(params)
    read = JaxFingerprint(jax.tree.unflatten(tree, leaves), Options())
    state = read.check()
    if read.assumptions():
        raise errors.Unsupported(f"[fingerprint] cannot be read: {read.assumptions()[0]}")
    return state.digest


def tensor(stored: _core.EntryTensor) -> Any:
    """Return a copy of a tensor of an entry.

    Examples
    --------
    >>> import jax, tensorkey as tk
    >>> cache = tk.ActivationCache()
    >>> x = jax.numpy.ones(2, "bfloat16")
    >>> tensor(cache.get_or_compute(tk.key(x), lambda: x * 3)[0])
    Array([3, 3], dtype=bfloat16)
    """
    import numpy as np

    flat = np.frombuffer(bytearray(stored), np.uint8)  # type: ignore[call-overload]
    return put(flat.view(numpy_dtype(stored.dtype)).reshape(stored.shape))
