"""``memoize``: remember what a function of tensors and plain values returned.

For whole calls: the unit of a hit is the call with all its arguments. Layers that answer batches
row by row are what ``tensorkey.torch.CachedLayer`` and its like are for.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any, overload

from tensorkey import errors
from tensorkey._cache import ActivationCache
from tensorkey._encoding import plain
from tensorkey._memoized import MemoizedBase, Settings
from tensorkey._memoized_sync import Memoized
from tensorkey._options import Options, check_tiers
from tensorkey._sizes import parse_bytes


@overload
def memoize(function: Callable[..., Any], /) -> Any: ...
@overload
def memoize(
    *,
    cache: ActivationCache | None = None,
    memory: int | str | None = None,
    disk: str | os.PathLike[str] | None = None,
    disk_limit: int | str | None = None,
    ignore: Collection[str] = (),
    version: object = None,
    state: Callable[[Any], Iterable[Any]] | None = None,
) -> Callable[[Callable[..., Any]], Any]: ...
def memoize(
    function: Callable[..., Any] | None = None,
    /,
    *,
    cache: ActivationCache | None = None,
    memory: int | str | None = None,
    disk: str | os.PathLike[str] | None = None,
    disk_limit: int | str | None = None,
    ignore: Collection[str] = (),
    version: object = None,
    state: Callable[[Any], Iterable[Any]] | None = None,
) -> Any:
    """Remember the results of a function by the content of its arguments and by its code.

    A call is found again when every tensor among its arguments, however deeply nested, has the same
    dtype, shape, elements, framework and device, and everything else the same value and type;
    positional and keyword forms of one call are one. What the function is counts too: its code, the
    variables of its closure, global constants, the versions and switches of the frameworks that it
    names. What cannot be read, such as helper functions, is in ``stats.assumptions``.

    Results are nests of tensors and plain values; what a hit returns is made anew, so that nothing
    done to it changes a later hit. Nothing is pickled. A call that cannot be answered safely runs
    the function, and ``stats.bypasses`` says why (docs/frontends/functions.md).

    Parameters
    ----------
    function
        A function, a method in the body of a class, or a coroutine function.
    cache
        A cache to share with others.
    memory
        Bound of a cache of its own, made at the first call; "1 GiB" if neither this nor `cache` is
        given.
    disk
        A directory that keeps results over runs and shares them with other processes.
    disk_limit
        Its bound, all files included.
    ignore
        Names of arguments that results do not depend on, such as "verbose".
    version
        A plain value that stands for what cannot be read: change it to forget what there was.
    state
        Of a method: from an instance to the tensors and plain values that results depend on. By
        default everything that can be read of the instance counts.

    Returns
    -------
    Callable
        With ``stats``, ``cache``, ``cache_clear()``, ``key(*args)`` and ``__wrapped__``.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For an option out of range.
    tensorkey.errors.Unsupported
        For a generator function or a class.

    Examples
    --------
    >>> import array
    >>> import tensorkey as tk
    >>> @tk.memoize(ignore=["verbose"])
    ... def total(x, power=1, verbose=False):
    ...     return sum(value**power for value in x)
    >>> x = array.array("i", [1, 2, 3])
    >>> total(x, 2), total(array.array("i", [1, 2, 3]), power=2, verbose=True)
    (14, 14)
    >>> total.stats.hits, total.stats.misses
    (1, 1)
    """
    tiers = {"memory": memory, "disk": disk, "disk_limit": disk_limit}
    check_tiers("memoize", cache, tiers)
    for size in (memory, disk_limit):
        if size is not None:
            parse_bytes(size)
    if isinstance(ignore, str):
        raise errors.InvalidArgument(f"[memoize] ignore is {ignore!r}; expected a list of names")
    try:
        plain(version)
    except TypeError as error:
        raise errors.InvalidArgument(f"[memoize] version: {error}") from None
    options = Options(cache=cache, memory=memory, disk=disk, disk_limit=disk_limit)
    settings = Settings(options, frozenset(ignore), version, state)
    if function is None:
        return functools.partial(_wrap, settings)
    return _wrap(settings, function)


def _wrap(settings: Settings, function: Callable[..., Any]) -> MemoizedBase:
    if isinstance(function, (staticmethod, classmethod, property)):
        kind = type(function).__name__
        raise errors.InvalidArgument(f"[memoize] a {kind} is given; put @{kind} above @tk.memoize")
    if not callable(function) or isinstance(function, (type, MemoizedBase)):
        raise errors.Unsupported(
            f"[memoize] a {type(function).__name__} is given; expected a function"
        )
    kinds = (function, type(function).__call__)
    if any(map(inspect.isgeneratorfunction, kinds)) or any(map(inspect.isasyncgenfunction, kinds)):
        raise errors.Unsupported(
            f"[memoize] {_name(function)} is a generator function: what it yields is used up once "
            "and cannot be given again; return a list"
        )
    _check_ignored(settings.ignore, function)
    if any(map(inspect.iscoroutinefunction, kinds)):
        from tensorkey._memoized_async import MemoizedAsync  # asyncio takes long to import

        return MemoizedAsync(function, settings)
    return Memoized(function, settings)


def _check_ignored(ignore: frozenset[str], function: Callable[..., Any]) -> None:
    if not ignore:
        return
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    unknown = sorted(ignore - set(parameters))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise errors.InvalidArgument(
            f"[memoize] ignore names {unknown[0]!r}; expected arguments of {_name(function)}: "
            f"{', '.join(parameters)}"
        )


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
