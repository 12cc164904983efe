"""TensorKeySet, and what it shares with TensorKeyDict."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Iterable, Iterator, Set
from typing import Any, Literal, TypeVar

from tensorkey import _core

By = Literal["content", "structure", "identity"]
M = TypeVar("M")

_SHOWN = 3
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 40


def new_mapping(cls: type[M], by: By, canonical: bool) -> M:
    """Make an empty mapping of a class, whatever arguments a subclass's __init__ takes."""
    new = cls.__new__(cls)
    base = _core.TensorKeySetBase if issubclass(cls, TensorKeySet) else _core.TensorKeyDictBase
    base.__init__(new, by, canonical)  # type: ignore[arg-type]
    return new


def _describe_key(by: By, dtype: str, shape: tuple[int, ...], extra: Any) -> str:
    if by == "identity":
        tensor = extra()
        return "dead" if tensor is None else f"{type(tensor).__name__} at {id(tensor):#x}"
    if by == "structure":
        dtype, shape = extra[1], extra[2]
    return f"{dtype}{list(shape)}"


def _describe_value(value: Any) -> str:
    try:
        return " ".join(_shorten.repr(value).split())
    except Exception:  # a broken __repr__ of a value is no reason to break ours
        return f"<{type(value).__name__}>"


@reprlib.recursive_repr("...")
def safe_repr(mapping: Any) -> str:
    """Tell class, size, options and the first few entries, at a bounded length."""
    size = len(mapping)
    is_set = isinstance(mapping, TensorKeySet)
    shown = []
    for dtype, shape, extra, value in _core.map_describe(mapping, _SHOWN):
        key = _describe_key(mapping.by, dtype, shape, extra)
        shown.append(key if is_set else f"{key}: {_describe_value(value)}")
    if size > len(shown):
        shown.append("...")
    canonical = ", canonical" if mapping.canonical else ""
    entries = "; " + ", ".join(shown) if shown else ""
    noun = "entry" if size == 1 else "entries"
    return f"<{type(mapping).__name__} by {mapping.by}{canonical}: {size} {noun}{entries}>"


def reduce_entries(container: Any, name: str) -> tuple[Any, ...]:
    """Return what pickles a mapping or set: how to make an empty one, and its entries."""
    if container.by == "identity":
        raise TypeError(
            f"cannot pickle a {name} with by='identity': its keys are objects of this process; "
            "use by='content'"
        )
    state = (_core.map_export(container), container.__dict__)
    return new_mapping, (type(container), container.by, container.canonical), state


def restore_entries(container: Any, state: tuple[list[Any], dict[str, Any]]) -> None:
    """Fill an empty mapping or set with what reduce_entries() gave."""
    entries, attributes = state
    _core.map_import(container, entries)
    container.__dict__.update(attributes)


class TensorKeySet(_core.TensorKeySetBase):
    """A set of tensors of any framework; what makes two of them equal is as in `TensorKeyDict`.

    The operations that make a new set give it the options of the left operand. Operators want
    sets, methods take any iterable of tensors; no operation that fails leaves a trace.

    Parameters
    ----------
    tensors : iterable of tensors, optional
        What to begin with. To put in the rows of one tensor, give the tensor itself.
    by : {"content", "structure", "identity"}
        What makes two tensors equal.
    canonical : bool
        By content only: -0.0 counts as 0.0 and every NaN as one NaN.

    Examples
    --------
    >>> import array, tensorkey as tk
    >>> seen = tk.TensorKeySet([array.array("i", [1, 2]), array.array("i", [3])])
    >>> array.array("i", [3]) in seen
    True
    >>> len(seen & tk.TensorKeySet([array.array("i", [3])]))
    1
    """

    def __init__(
        self, tensors: Iterable[Any] = (), /, *, by: By = "content", canonical: bool = False
    ) -> None:
        super().__init__(by, canonical)
        self.update(tensors)

    def _same_kind(self, tensors: Iterable[Any]) -> TensorKeySet:
        """Return `tensors` as a set that the compiled operations can read beside this one."""
        if isinstance(tensors, TensorKeySet) and tensors.by == self.by:
            return tensors
        new = new_mapping(TensorKeySet, self.by, self.canonical)
        for tensor in tensors:
            new.add(tensor)
        return new

    def __reversed__(self) -> Iterator[Any]:
        return _core.map_iterate(self, "keys", True)

    def copy(self) -> TensorKeySet:
        """Return another set with the same snapshots."""
        new = new_mapping(type(self), self.by, self.canonical)
        _core.map_update(new, self)
        new.__dict__.update(self.__dict__)
        return new

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorKeySet:
        new = new_mapping(type(self), self.by, self.canonical)
        memo[id(self)] = new
        _core.map_update(new, self)
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_entries(self, "TensorKeySet")

    def __setstate__(self, state: tuple[list[Any], dict[str, Any]]) -> None:
        restore_entries(self, state)

    def update(self, *others: Iterable[Any]) -> None:
        """Put in all tensors of the others."""
        for other in [self._same_kind(tensors) for tensors in others]:
            _core.map_update(self, other)

    def intersection_update(self, *others: Iterable[Any]) -> None:
        """Keep only what is in all of the others too."""
        for other in [self._same_kind(tensors) for tensors in others]:
            _core.map_drop(self, other, False)

    def difference_update(self, *others: Iterable[Any]) -> None:
        """Take out what is in any of the others."""
        for other in [self._same_kind(tensors) for tensors in others]:
            _core.map_drop(self, other, True)

    def symmetric_difference_update(self, other: Iterable[Any]) -> None:
        """Keep what is in exactly one of both."""
        theirs = self._same_kind(other)
        both = self.intersection(theirs)
        self.update(theirs)
        _core.map_drop(self, both, True)

    def union(self, *others: Iterable[Any]) -> TensorKeySet:
        """Return a new set: what is in any of them."""
        new = self.copy()
        new.update(*others)
        return new

    def intersection(self, *others: Iterable[Any]) -> TensorKeySet:
        """Return a new set: what is in all of them."""
        new = self.copy()
        new.intersection_update(*others)
        return new

    def difference(self, *others: Iterable[Any]) -> TensorKeySet:
        """Return a new set: what is in this one and in none of the others."""
        new = self.copy()
        new.difference_update(*others)
        return new

    def symmetric_difference(self, other: Iterable[Any]) -> TensorKeySet:
        """Return a new set: what is in exactly one of both."""
        new = self.copy()
        new.symmetric_difference_update(other)
        return new

    def issubset(self, other: Iterable[Any]) -> bool:
        """Tell whether the other holds all tensors of this set."""
        return _core.map_contains_all(self._same_kind(other), self)

    def issuperset(self, other: Iterable[Any]) -> bool:
        """Tell whether this set holds all tensors of the other."""
        return _core.map_contains_all(self, self._same_kind(other))

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        """Tell whether no tensor is in both."""
        return _core.map_disjoint(self, self._same_kind(other))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorKeySet):
            return NotImplemented
        return self.by == other.by and len(self) == len(other) and self.issubset(other)

    def __le__(self, other: object) -> bool:
        return self.issubset(other) if isinstance(other, Set) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self.issuperset(other) if isinstance(other, Set) else NotImplemented

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        theirs = self._same_kind(other)
        return len(self) < len(theirs) and self.issubset(theirs)

    def __gt__(self, other: object) -> bool:
        if not isinstance(other, Set):
            return NotImplemented
        theirs = self._same_kind(other)
        return len(self) > len(theirs) and self.issuperset(theirs)

    def __or__(self, other: object) -> TensorKeySet:
        return self.union(other) if isinstance(other, Set) else NotImplemented

    def __and__(self, other: object) -> TensorKeySet:
        return self.intersection(other) if isinstance(other, Set) else NotImplemented

    def __sub__(self, other: object) -> TensorKeySet:
        return self.difference(other) if isinstance(other, Set) else NotImplemented

    def __xor__(self, other: object) -> TensorKeySet:
        return self.symmetric_difference(other) if isinstance(other, Set) else NotImplemented

    __ror__ = __or__
    __rand__ = __and__
    __rxor__ = __xor__

    def __rsub__(self, other: object) -> TensorKeySet:
        if not isinstance(other, Set):
            return NotImplemented
        new = self._same_kind(()).union(other)
        new.difference_update(self)
        return new

    def __ior__(self, other: object) -> TensorKeySet:
        if not isinstance(other, Set):
            return NotImplemented
        self.update(other)
        return self

    def __iand__(self, other: object) -> TensorKeySet:
        if not isinstance(other, Set):
            return NotImplemented
        self.intersection_update(other)
        return self

    def __isub__(self, other: object) -> TensorKeySet:
        if not isinstance(other, Set):
            return NotImplemented
        self.difference_update(other)
        return self

    def __ixor__(self, other: object) -> TensorKeySet:
        if not isinstance(other, Set):
            return NotImplemented
        self.symmetric_difference_update(other)
        return self

    def __repr__(self) -> str:
        return safe_repr(self)
