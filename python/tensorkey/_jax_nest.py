"""Nests of arrays as functions of JAX take them: apart into arrays and the rest, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

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


class Tree:
    """A pytree without its arrays, of JAX or of NumPy: parameters, as JAX takes them apart.

    Examples
    --------
    >>> tree, arrays = Tree.of({"w": np.ones(2), "act": "relu"})
    >>> tree.filled([7])
    {'act': 'relu', 'w': 7}
    """

    def __init__(self, leaves: list[Any], structure: Any) -> None:
        self._leaves = [None if is_array(leaf) else leaf for leaf in leaves]
        self._places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
        self.structure = structure
        """Of JAX: equal for trees that differ in their leaves alone."""

    @classmethod
    def of(cls, value: Any) -> tuple[Tree, list[Any]]:
        """Take the arrays out of a tree."""
        leaves, structure = jax.tree.flatten(value)
        return cls(leaves, structure), [leaf for leaf in leaves if is_array(leaf)]

    def filled(self, arrays: Sequence[Any]) -> Any:
        """Return the tree with other arrays in their places."""
        leaves = list(self._leaves)
        for place, array in zip(self._places, arrays, strict=True):
            leaves[place] = array
        return jax.tree.unflatten(self.structure, leaves)


def is_array(value: Any) -> bool:
    """Whether this is an array of JAX or NumPy."""
    return isinstance(value, (jax.Array, np.ndarray))


def converted(value: Any) -> Any:
    """Return arguments with arrays of NumPy made arrays of JAX, as ``jax.jit`` would take them."""
    found = [leaf for leaf in jax.tree.leaves(value) if type(leaf) is np.ndarray]
    if not found:
        return value
    return rebuilt(value, frozenset(map(id, found)), map(_as_jax, found))


def _as_jax(array: Any) -> Any:
    if array.dtype.kind not in "biufcV" or array.dtype.fields:
        return array  # none of JAX's
    dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
    return put(array.astype(dtype, copy=False))
