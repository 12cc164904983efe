"""Cached layers in the place of submodules, and back."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from tensorkey import errors
from tensorkey._torch_layer import CachedLayer


def cache_submodule(model: nn.Module, path: str, **options: Any) -> CachedLayer:
    """Put a cached layer in the place of a submodule, and return it.

    The state dict, the names of all modules and the weights stay as they are. A module that the
    model holds under several paths is replaced under this one.

    Parameters
    ----------
    model
        Changed in place.
    path
        As ``model.named_modules()`` says it: "encoder.layers.3".
    **options
        As of :class:`CachedLayer`.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        If there is no such submodule, or it is cached already.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    >>> layer = cache_submodule(model, "0", memory="1 MiB")
    >>> layer is model[0], uncache(model)
    (True, 1)
    """
    if not isinstance(model, nn.Module):
        raise errors.InvalidArgument(
            f"[cache_submodule] model is {type(model).__name__}; expected a torch.nn.Module"
        )
    parent, _, name = path.rpartition(".")
    try:
        registry = model.get_submodule(parent)._modules
        child = registry.get(name)
    except AttributeError:
        child = None
    if child is None or not name:
        raise errors.InvalidArgument(_unknown(model, path))
    if isinstance(child, CachedLayer):
        raise errors.InvalidArgument(f"[cache_submodule] {path!r} is cached already")
    layer = CachedLayer(child, **options)
    registry[name] = layer
    return layer


def _unknown(model: nn.Module, path: str) -> str:
    if not path:
        return "[cache_submodule] path is empty; to cache the whole model, wrap it in CachedLayer"
    paths = [known for known, _ in model.named_modules(remove_duplicate=False) if known]
    near = difflib.get_close_matches(path, paths, 1, cutoff=0)
    return f"[cache_submodule] the model has no submodule {path!r}" + (
        f"; the nearest is {near[0]!r}" if near else ""
    )


def uncache(model: nn.Module) -> int:
    """Put the layers themselves back in the place of all cached submodules.

    Returns their number. A model that is a cached layer itself stays one: its layer is ``.inner``.
    Hooks on a cached layer go with it.
    """
    count = 0
    for module in list(model.modules()):
        for name, child in module._modules.items():
            while isinstance(child, CachedLayer):
                module._modules[name] = child = child.inner
                count += 1
    return count
