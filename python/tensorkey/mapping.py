"""Mappings and sets whose keys are tensors: `TensorKeyDict`, `TensorKeySet`, `unique`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSet
from typing import Any, Literal, TypeVar

from tensorkey import _core
from tensorkey._keyset import (
    TensorKeySet,
    new_mapping,
    reduce_entries,
    restore_entries,
    safe_repr,
)
from tensorkey._unique import unique
from tensorkey._views import ItemsView, KeysView, ValuesView

__all__ = ["TensorKeyDict", "TensorKeySet", "unique"]

V = TypeVar("V")
By = Literal["content", "structure", "identity"]


class TensorKeyDict(_core.TensorKeyDictBase[V]):
    """A dict whose keys are tensors of any framework, found by what they hold.

    Two tensors are the same key if dtype, shape and elements are the same, bit for bit, whatever
    framework, strides or device they have. A key is a snapshot: later writes to the tensor change
    nothing. Values are held by reference. Everything else is as in a dict: the order of insertion
    is kept, the first key stays when a value is replaced, nothing is ever dropped.

    Parameters
    ----------
    items : mapping or iterable of pairs, optional
        What to begin with.
    by : {"content", "structure", "identity"}
        What makes two tensors the same key: their elements; shape, dtype, strides, layout, device
        and the like, whatever the elements; or being the same object, alive and not written to
        since (an entry dies with its tensor).
    canonical : bool
        By content only: -0.0 counts as 0.0 and every NaN as one NaN.

    Notes
    -----
    Iteration makes new, equal tensors of the framework that was put in (on the CPU; a buffer comes
    back as a memoryview), so writing to one changes nothing. By structure it makes tensors of
    zeros, by identity it gives the objects themselves. Each operation by itself is thread-safe.

    What is no tensor cannot be a key: that is `Unsupported`, a TypeError. A key that is missing
    from ``d[x]`` is `MissingKey`, a KeyError. After any error the mapping is as it was.

    Examples
    --------
    >>> import array, tensorkey as tk
    >>> seen = tk.TensorKeyDict()
    >>> seen[array.array("f", [1, 2])] = "cat"
    >>> seen[memoryview(array.array("f", [1, 2]))]
    'cat'
    >>> array.array("d", [1, 2]) in seen
    False
    """

    def __init__(
        self,
        items: TensorKeyDict[V] | Mapping[Any, V] | Iterable[tuple[Any, V]] = (),
        /,
        *,
        by: By = "content",
        canonical: bool = False,
    ) -> None:
        super().__init__(by, canonical)
        self.update(items)

    @classmethod
    def fromkeys(
        cls,
        keys: Iterable[Any],
        value: Any = None,
        /,
        *,
        by: By = "content",
        canonical: bool = False,
    ) -> TensorKeyDict[Any]:
        """Make a mapping in which each of `keys` has the same value.

        Examples
        --------
        >>> import tensorkey as tk
        >>> len(tk.TensorKeyDict.fromkeys([b"ab", b"cd", b"ab"], 0))
        2
        """
        new: TensorKeyDict[Any] = cls(by=by, canonical=canonical)
        for key in keys:
            new[key] = value
        return new

    def update(
        self, items: TensorKeyDict[V] | Mapping[Any, V] | Iterable[tuple[Any, V]] = (), /
    ) -> None:
        """Put in all entries of a mapping or iterable of pairs: all of them or, on error, none.

        Examples
        --------
        >>> import tensorkey as tk
        >>> d = tk.TensorKeyDict()
        >>> d.update([(b"ab", 1), (b"cd", 2)])
        >>> d[b"cd"]
        2
        """
        if isinstance(items, TensorKeyDict) and items.by == self.by:
            _core.map_update(self, items)
            return
        staged = new_mapping(type(self), self.by, self.canonical)
        pairs = items.items() if isinstance(items, TensorKeyDict | Mapping) else items
        for key, value in pairs:
            staged[key] = value
        _core.map_update(self, staged)

    def keys(self) -> KeysView:
        """Return a set-like view of the keys; iterating it makes new tensors."""
        return KeysView(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values."""
        return ValuesView(self)

    def items(self) -> ItemsView[V]:
        """Return a view of the entries as (key, value); iterating it makes new tensors."""
        return ItemsView(self)

    def __reversed__(self) -> Iterator[Any]:
        return _core.map_iterate(self, "keys", True)

    def copy(self) -> TensorKeyDict[V]:
        """Return another mapping with the same snapshots and the same values."""
        new = new_mapping(type(self), self.by, self.canonical)
        _core.map_update(new, self)
        new.__dict__.update(self.__dict__)
        return new

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorKeyDict[V]:
        new = new_mapping(type(self), self.by, self.canonical)
        memo[id(self)] = new
        if self.by == "identity":
            # As a WeakKeyDictionary does: the objects are the keys, so there is nothing to copy.
            for key, value in list(self.items()):
                new[key] = copy.deepcopy(value, memo)
        else:
            _core.map_import(new, copy.deepcopy(_core.map_export(self), memo))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_entries(self, "TensorKeyDict")

    def __setstate__(self, state: tuple[list[Any], dict[str, Any]]) -> None:
        restore_entries(self, state)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorKeyDict):
            return NotImplemented
        if self.by != other.by:
            return False
        pairs = _core.map_value_pairs(self, other)
        return pairs is not None and all(a is b or a == b for a, b in pairs)

    def __or__(self, other: TensorKeyDict[V] | Mapping[Any, V]) -> TensorKeyDict[V]:
        if not isinstance(other, TensorKeyDict | Mapping):
            return NotImplemented
        new = self.copy()
        new.update(other)
        return new

    def __ror__(self, other: Mapping[Any, V]) -> TensorKeyDict[V]:
        if not isinstance(other, Mapping):
            return NotImplemented
        new = new_mapping(type(self), self.by, self.canonical)
        new.update(other)
        new.update(self)
        return new

    def __ior__(
        self, other: TensorKeyDict[V] | Mapping[Any, V] | Iterable[tuple[Any, V]]
    ) -> TensorKeyDict[V]:
        self.update(other)
        return self

    def __repr__(self) -> str:
        return safe_repr(self)


MutableMapping.register(TensorKeyDict)
MutableSet.register(TensorKeySet)
