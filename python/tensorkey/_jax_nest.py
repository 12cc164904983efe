"""Nests of arrays as functions of JAX take them: apart into arrays and the rest, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from tensorkey._backend import Bypass
from tensorkey._encoding import PLAIN
from tensorkey._jax_rows import put
from tensorkey._nests import opened, rebuilt


class _Slot:
    """Stands for an array in a nest."""


class Nest:
    """A nest without its arrays.

    Examples
    --------
    >>> nest, arrays = Nest.of({"x": jax.numpy.ones(2), "scale": 3})
    >>> nest.filled([7])
    {'x': 7, 'scale': 3}
    """

    def __init__(self, template: Any, slots: list[_Slot]) -> None:
        self._template = template
        self._slots = frozenset(map(id, slots))
        self._keep = slots

    @classmethod
    def of(cls, value: Any) -> tuple[Nest, list[Any]]:
        """Take the arrays out of a nest; of one that is there twice, both.

        Raises
        ------
        tensorkey._nests.Unread
            For a nest with more in it.
        """
        arrays = [*_arrays(value)]
        slots = [_Slot() for _ in arrays]
        return cls(rebuilt(value, frozenset(map(id, arrays)), iter(slots)), slots), arrays

    def filled(self, arrays: Sequence[Any]) -> Any:
        """Return the nest with other arrays in their places."""
        return rebuilt(self._template, self._slots, iter(arrays))


def _arrays(value: Any) -> Iterator[Any]:
    if isinstance(value, jax.Array):
        yield value
        return
    level = opened(value, "")
    for child in () if level is None else level.children:
        yield from _arrays(child)


def is_array(value: Any) -> bool:
    """Whether this is an array of JAX or NumPy."""
    return isinstance(value, (jax.Array, np.ndarray))


def in_order(value: Any) -> tuple[Any, list[Any]]:
    """Return the tree and the leaves of a pytree: ``jax.jit`` sorts dicts by their keys.

    Raises
    ------
    tensorkey._backend.Bypass
        For a dict whose keys cannot be sorted.
    """
    try:
        leaves, tree = jax.tree.flatten(value)
    except (ValueError, TypeError) as error:
        raise Bypass(f"arguments that are no pytree of JAX: {error}") from None
    return tree, leaves


def converted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return arguments as ``jax.jit`` would hand them on, arrays of NumPy made arrays of JAX."""
    return (
        tuple(_converted(value) for value in args),
        {name: _converted(value) for name, value in kwargs.items()},
    )


def _converted(value: Any) -> Any:
    if isinstance(value, jax.Array) or type(value) in PLAIN:
        return value
    if type(value) is np.ndarray:
        return _as_jax(value)
    tree, leaves = in_order(value)
    made = [_as_jax(leaf) if type(leaf) is np.ndarray else leaf for leaf in leaves]
    return jax.tree.unflatten(tree, made)


def _as_jax(array: Any) -> Any:
    if array.dtype.kind not in "biufcV" or array.dtype.fields:
        return array  # none of JAX's
    dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
    return put(array.astype(dtype, copy=False))
