"""Parameters that are arguments of a cached function: they count as its weights, call by call."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import jax

from tensorkey import _core
from tensorkey._backend import Bypass
from tensorkey._fingerprint import content_of, weights_digest
from tensorkey._fork import renew_after_fork
from tensorkey._jax_functions import JaxFunctions
from tensorkey._jax_nest import in_order, is_array
from tensorkey._jax_tracing import is_tracer
from tensorkey._reading import Reading

Place = tuple[int, str]
"""Of a parameter: its position, and its name."""

_MOST_READ = 4
_MOST_KNOWN = 16


class Parameters:
    """Those of one call.

    Parameters
    ----------
    tree, leaves
        What was passed, as JAX takes it apart.
    places
        Where: a position, or a name.
    reading
        Of the values.
    """

    def __init__(
        self, tree: Any, leaves: list[Any], places: list[int | str], reading: Reading
    ) -> None:
        self.places = places
        self.names = reading.names
        """Of the tensors that were read."""
        self.tensors = reading.tensors
        self.unread = reading.unread
        self._tree = tree
        self._at = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
        self._others = [None if is_array(leaf) else leaf for leaf in leaves]
        self.arrays = [leaves[i] for i in self._at]
        self.structure = _core.blake3(reading.structure)
        self.device = next((x.device for x in self.arrays if _is_committed(x)), None)
        """That they have a program run on, if they do."""

    def bare(self) -> Parameters:
        """Return the same without arrays: what put_back() asks."""
        other = copy.copy(self)
        other.tensors, other.arrays = [], []
        return other

    def put_back(
        self, arrays: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the function, its parameters among them, made of these arrays."""
        leaves = list(self._others)
        for at, array in zip(self._at, arrays, strict=True):
            leaves[at] = array
        values = jax.tree.unflatten(self._tree, leaves)
        positional, named = list(args), dict(kwargs)
        for place, value in zip(self.places, values, strict=True):
            if isinstance(place, int):
                positional.insert(place, value)
            else:
                named[place] = value
        return tuple(positional), named


class Reader:
    """Takes the parameters out of arguments, and reads them. Thread-safe.

    Parameters
    ----------
    places
        Of the parameters in the signature of the function.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = sorted(places)
        self._read: OrderedDict[int | None, _Read] = OrderedDict()
        self._lock = threading.Lock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.Lock()

    def split(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Any], list[int | str], tuple[Any, ...], dict[str, Any]]:
        """Return the parameters, their places, and the other arguments.

        Raises
        ------
        Bypass
            If one is missing: the function itself says so.
        """
        values: list[Any] = []
        places: list[int | str] = []
        rest, named = list(args), dict(kwargs)
        for position, key in reversed(self.places):
            if position < len(args):
                values.insert(0, rest.pop(position))
                places.insert(0, position)
            elif key in named:
                values.insert(0, named.pop(key))
                places.insert(0, key)
            else:
                raise Bypass(f"the parameters {key!r} are not among the arguments")
        return values, places, tuple(rest), named

    def read(self, values: list[Any], places: list[int | str], keep: bool) -> Parameters:
        """Read parameters; the same arrays in the same tree once, if they are to be kept."""
        tree, leaves = in_order(values)
        try:
            key = hash((tree, *map(id, leaves))) if keep else None
        except TypeError:  # something in the tree has no hash
            key = None
        with self._lock:
            known = self._read.get(key)
        if known is None or not known.is_of(tree, leaves):
            ordered = jax.tree.unflatten(tree, leaves)
            named = {name: value for (_, name), value in zip(self.places, ordered, strict=True)}
            known = _Read(tree, leaves, Reading(JaxFunctions(named), named, "parameters"))
            if key is not None:
                with self._lock:
                    self._read[key] = known
                    if len(self._read) > _MOST_READ:
                        self._read.popitem(last=False)
        return Parameters(tree, leaves, places, known.reading)


class _Read(NamedTuple):
    """Parameters that were read: their ids are theirs as long as this is here."""

    tree: Any
    leaves: list[Any]
    reading: Reading

    def is_of(self, tree: Any, leaves: list[Any]) -> bool:
        """Whether these are the same, and as they were."""
        return (
            len(leaves) == len(self.leaves)
            and all(map(is_, leaves, self.leaves))
            and bool(tree == self.tree)
            and self.reading.watch.unchanged()
        )


class Digests:
    """Digests of weights by their names and contents. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, tuple[str, ...]], bytes] = OrderedDict()
        self._lock = threading.Lock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.Lock()

    def digest(self, names: Sequence[str], arrays: Sequence[Any]) -> bytes:
        """Return the digest; every byte is read.

        Raises
        ------
        tensorkey.errors.Unsupported
            For an array that has no key, such as one that was deleted.
        """
        key = (_core.change_digest(list(arrays)), tuple(names))
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = weights_digest(zip(names, map(content_of, arrays), strict=True))
            with self._lock:
                self._known[key] = known
                if len(self._known) > _MOST_KNOWN:
                    self._known.popitem(last=False)
        return known


def joined(one: bytes, other: bytes) -> bytes:
    """Return the digest of two."""
    return _core.blake3(one + other)


def _is_committed(array: Any) -> bool:
    concrete = isinstance(array, jax.Array) and not is_tracer(array)
    return concrete and bool(array.committed) and not array.is_deleted()
