"""``cached``: remember what a function of modules returns, row by row."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from torch import nn

from tensorkey import errors
from tensorkey._torch_layer import CachedLayer


class Function(nn.Module):
    """A function of modules as a module that owns them."""

    def __init__(self, function: Callable[..., Any], modules: Iterable[nn.Module]) -> None:
        super().__init__()
        self.function = function
        for number, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                raise errors.InvalidArgument(
                    f"[cached] modules[{number}] is {type(module).__name__}; expected a "
                    "torch.nn.Module"
                )
            self.add_module(str(number), module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise errors.Unsupported(
            "[cached] a cached function cannot be copied or pickled: the copy would call the "
            "modules of the original; call cached() again with the copies of the modules"
        )


def cached(
    function: Callable[..., Any], modules: Iterable[nn.Module], **options: Any
) -> CachedLayer:
    """Return a layer that remembers what a function of modules returns, row by row.

    Parameters
    ----------
    function
        Its arguments and its result are as those of a layer.
    modules
        All modules that it uses: their weights and code are a part of every key, and they are the
        submodules "0", "1" ... of the layer, which trains, moves and saves them.
    **options
        As of :class:`CachedLayer`.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        If it names a module that is not among `modules`, or one of `modules` is none.

    Notes
    -----
    The code of the function and what it encloses are a part of every key. Other functions that it
    calls by name are not: name what may change in ``scope=``. The layer cannot be copied or
    pickled, as its function would call the modules of the original.

    Examples
    --------
    >>> import torch
    >>> encoder = nn.Linear(8, 4).requires_grad_(False)
    >>> features = cached(lambda x: encoder(x).relu(), modules=[encoder])
    >>> x = torch.zeros(20, 8)
    >>> features(x).shape, features.stats.misses
    (torch.Size([20, 4]), 1)
    """
    if not callable(function):
        raise errors.InvalidArgument(
            f"[cached] function is {type(function).__name__}; expected a callable"
        )
    inner = Function(function, modules)
    known = set(map(id, inner.modules()))
    for name, value in _named(function):
        if isinstance(value, nn.Module) and id(value) not in known:
            raise errors.InvalidArgument(
                f"[cached] the function uses the module {name!r}, which is not in modules: its "
                "weights would not count"
            )
    options.setdefault("method", None)
    return CachedLayer(inner, **options)


def _named(function: Any) -> Iterable[tuple[str, Any]]:
    """Yield the globals that the code of a function names, and what it encloses."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    if not isinstance(function, types.FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    codes = [function.__code__]
    for code in codes:
        for name in code.co_names:
            if name in function.__globals__:
                yield name, function.__globals__[name]
        codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
