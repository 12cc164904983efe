"""What keys(), values() and items() of a TensorKeyDict return."""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from tensorkey import _core
from tensorkey._keyset import TensorKeySet

if TYPE_CHECKING:
    from tensorkey.mapping import TensorKeyDict

V = TypeVar("V")


class KeysView(abc.KeysView[Any]):
    """The keys as a set; its operations give a TensorKeySet with the mapping's options."""

    _mapping: TensorKeyDict[Any]

    def __init__(self, mapping: TensorKeyDict[Any]) -> None:
        super().__init__(mapping)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping)

    def _from_iterable(self, keys: Iterable[Any]) -> TensorKeySet:  # type: ignore[override]
        return TensorKeySet(keys, by=self._mapping.by, canonical=self._mapping.canonical)

    def __reversed__(self) -> Iterator[Any]:
        return _core.map_iterate(self._mapping, "keys", True)

    def __repr__(self) -> str:
        return f"KeysView({self._mapping!r})"


class ValuesView(abc.ValuesView[V]):
    """The values; no tensor is made of a key."""

    _mapping: TensorKeyDict[V]

    def __init__(self, mapping: TensorKeyDict[V]) -> None:
        super().__init__(mapping)

    def __iter__(self) -> Iterator[V]:
        return _core.map_iterate(self._mapping, "values", False)

    def __contains__(self, value: object) -> bool:
        return any(held is value or held == value for held in self)

    def __reversed__(self) -> Iterator[V]:
        return _core.map_iterate(self._mapping, "values", True)

    def __repr__(self) -> str:
        return f"ValuesView({self._mapping!r})"


class ItemsView(abc.ItemsView[Any, V]):
    """The entries as (key, value)."""

    _mapping: TensorKeyDict[V]

    def __init__(self, mapping: TensorKeyDict[V]) -> None:
        super().__init__(mapping)

    def __iter__(self) -> Iterator[tuple[Any, V]]:
        return _core.map_iterate(self._mapping, "items", False)

    def __reversed__(self) -> Iterator[tuple[Any, V]]:
        return _core.map_iterate(self._mapping, "items", True)

    def __repr__(self) -> str:
        return f"ItemsView({self._mapping!r})"
