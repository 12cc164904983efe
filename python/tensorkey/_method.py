"""``cached_method``: remember what a method of your own layer returned for these tensors.

For whole calls of small methods, such as positional encodings, masks and embeddings of prompts. A
module that answers batches row by row is what ``tensorkey.torch.CachedLayer`` and
``tensorkey.keras.CachedLayer`` are for.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, overload

from tensorkey import _core, errors
from tensorkey._calls import Encoder, NoKey, gradient_mode, records_gradients, transform
from tensorkey._fork import renew_after_fork
from tensorkey._readers import is_torch_module
from tensorkey._result_tensors import NoResult
from tensorkey._results import Packed


class CacheInfo(NamedTuple):
    """Counters of one instance."""

    hits: int
    misses: int
    bypasses: int
    """Calls that ran the method only: gradients were recorded, an argument has no key, or caches
    are switched off."""
    maxsize: int | None
    currsize: int


class _Calls:
    """The calls of one instance that are remembered, the least recent first."""

    def __init__(self) -> None:
        self.results: OrderedDict[bytes, Packed] = OrderedDict()
        self.hits = self.misses = self.bypasses = 0
        self.lock = threading.Lock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self.lock = threading.Lock()


@overload
def cached_method(method: Callable[..., Any], /) -> Callable[..., Any]: ...
@overload
def cached_method(
    *, maxsize: int | None = 128, state: Callable[[Any], Iterable[Any]] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...
def cached_method(
    method: Callable[..., Any] | None = None,
    /,
    *,
    maxsize: int | None = 128,
    state: Callable[[Any], Iterable[Any]] | None = None,
) -> Any:
    """Remember the results of a method by the content of its arguments, for each instance.

    Like :func:`functools.lru_cache`, for tensors: a call is found again when every tensor among
    the arguments has the same dtype, shape and elements and every other argument is the same plain
    value of the same type (None, bool, int, float, complex, str, bytes and lists, tuples, sets and
    dicts of these). Tensors go in and come out as copies: neither changing an argument nor changing
    a result changes a later hit.

    Results depend on the arguments alone, unless `state` names what else they depend on: changing
    a weight does not change a remembered result that was not told of it.

    The method runs without the cache while gradients of an argument, of `state` or of a parameter
    of the instance are recorded, while a tensor has no value (tracing, compiling), for arguments
    without a key, and while caches are switched off (:func:`tensorkey.disabled`).

    Instances are held weakly, so they need a weak reference; a copy or a pickle of one carries no
    results.

    Parameters
    ----------
    method
        The method, when used without parentheses.
    maxsize
        How many results an instance keeps, the least recently used leave first; None: all of them.
    state
        From an instance to the tensors and plain values that the result depends on, such as
        ``lambda self: [self.weight]``; read on every call.

    Returns
    -------
    Callable
        The method, with ``cache_clear(instance)`` and ``cache_info(instance)``.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        If maxsize is not None or at least 1.

    Examples
    --------
    >>> import array
    >>> class Scale:
    ...     @cached_method(state=lambda self: [self.factor])
    ...     def __call__(self, x):
    ...         return [self.factor * value for value in x]
    >>> scale = Scale()
    >>> scale.factor = 2
    >>> scale(array.array("i", [1, 2])), scale(array.array("i", [1, 2]))
    ([2, 4], [2, 4])
    >>> type(scale).__call__.cache_info(scale).hits
    1
    """
    if maxsize is not None and (type(maxsize) is not int or maxsize < 1):
        raise errors.InvalidArgument(
            f"[cached_method] maxsize is {maxsize!r}; expected None or at least 1"
        )
    if method is None:
        return functools.partial(_decorate, maxsize=maxsize, state=state)
    return _decorate(method, maxsize=maxsize, state=state)


def _decorate(
    method: Callable[..., Any],
    *,
    maxsize: int | None,
    state: Callable[[Any], Iterable[Any]] | None,
) -> Callable[..., Any]:
    # By id: instances need not be hashable. An entry leaves with its instance.
    stores: dict[int, tuple[weakref.ref[Any], _Calls]] = {}

    def calls_of(instance: Any) -> _Calls:
        known = stores.get(id(instance))
        if known is not None and known[0]() is instance:
            return known[1]
        address = id(instance)
        reference = weakref.ref(instance, lambda gone: _forget(stores, address, gone))
        stores[address] = (reference, _Calls())
        return stores[address][1]

    @functools.wraps(method)
    def wrapper(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        calls = calls_of(self)
        if _core.is_disabled() or transform() is not None:
            calls.bypasses += 1
            return method(self, *args, **kwargs)
        try:
            parts = (args, kwargs, list(state(self)) if state else None, _gradient_mode(self))
            key = _core.blake3(Encoder().encode(parts, "call"))
        except NoKey:
            calls.bypasses += 1
            return method(self, *args, **kwargs)
        with calls.lock:
            if key in calls.results:
                calls.hits += 1
                calls.results.move_to_end(key)
                return calls.results[key].copy()
        result = method(self, *args, **kwargs)
        try:
            kept = Packed(result).copied()
        except NoResult:
            calls.bypasses += 1
            return result
        with calls.lock:
            calls.misses += 1
            calls.results[key] = kept
            if maxsize is not None and len(calls.results) > maxsize:
                calls.results.popitem(last=False)
        return result

    def cache_clear(instance: Any) -> None:
        """Drop the results and counters of an instance."""
        stores.pop(id(instance), None)

    def cache_info(instance: Any) -> CacheInfo:
        """Return the counters of an instance."""
        calls = calls_of(instance)
        return CacheInfo(calls.hits, calls.misses, calls.bypasses, maxsize, len(calls.results))

    wrapper.cache_clear = cache_clear  # type: ignore[attr-defined]
    wrapper.cache_info = cache_info  # type: ignore[attr-defined]
    return wrapper


def _forget(
    stores: dict[int, tuple[weakref.ref[Any], _Calls]], address: int, gone: weakref.ref[Any]
) -> None:
    known = stores.get(address)
    if known is not None and known[0] is gone:
        del stores[address]


def _gradient_mode(instance: Any) -> bool:
    """Whether gradients may be recorded: a result made without them must not answer then."""
    if is_torch_module(instance) and any(map(records_gradients, instance.parameters())):
        raise NoKey("gradients of the instance are recorded")
    return gradient_mode()
