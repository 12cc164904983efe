"""How a fingerprint reads modules of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._contextlib import _DecoratorContextManager

from tensorkey import _core, _torch_script, errors
from tensorkey._reading import Reading

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_UNREAD = frozenset(vars(nn.Module())) - {"training"} | {"_engine", "_monitor", "_options"}


class TorchModules:
    """How a fingerprint reads modules."""

    roots = frozenset({"torch", "tensorkey"})
    unguarded: str | None = None

    def tensor(self, value: Any) -> torch.Tensor | None:
        """Return a tensor as it is."""
        return value if isinstance(value, torch.Tensor) else None

    def leaf(self, value: Any) -> str | None:
        """Return the name of a dtype, device, layout or memory format."""
        if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
            return str(value)
        if isinstance(value, _DecoratorContextManager):  # no_grad and the like, in a closure
            return str(getattr(value, "mode", ""))
        return None

    def is_module(self, value: Any) -> bool:
        """Whether this is a module."""
        return isinstance(value, nn.Module)

    def attributes(self, module: nn.Module) -> dict[str, Any]:
        """Return what counts: attributes, parameters and buffers by name, submodules in order."""
        own = {key: value for key, value in vars(module).items() if key not in _UNREAD}
        for hooks in _HOOKS:
            if registered := getattr(module, hooks):
                own[hooks] = list(registered.values())  # their numbers mean nothing
        own |= module._parameters
        own |= module._buffers
        return dict(sorted(own.items())) | module._modules

    def containers(self, module: nn.Module) -> Iterator[dict[str, Any]]:
        """Yield the registries and the hooks."""
        for registry in (*_REGISTRIES, *_HOOKS):
            yield getattr(module, registry)

    def foreign(self, module: Any, path: str, reading: Reading) -> bytes | None:
        """Encode a scripted module by its graphs."""
        if isinstance(module, torch.jit.ScriptModule):
            return _torch_script.read(module, path, reading)
        return None

    def guard(self, tensors: Sequence[Any], modules: Sequence[nn.Module]) -> _core.Guard | None:
        """Return a guard; None if a tensor was made in inference mode: it counts no versions.

        Arrays of NumPy among the tensors are left to the strict check.
        """
        plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        try:
            return _core.Guard(
                [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)],
                [getattr(module, hooks) for module in plain for hooks in _HOOKS],
                [getattr(module, registry) for module in plain for registry in _REGISTRIES],
            )
        except errors.Unsupported:
            return None
