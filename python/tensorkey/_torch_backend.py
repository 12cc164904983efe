"""PyTorch below a cached layer: what a call and a layer must be like to be answered from a cache.

Shared by the PyTorch frontend and by Keras on PyTorch. Some of the guards ask functions of PyTorch
that have no public name; the tests pin what each must detect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace
from torch.nn import Parameter
from torch.utils._device import DeviceContext

from tensorkey._backend import Bypass
from tensorkey._fingerprint import Fingerprint
from tensorkey._torch_environment import environment
from tensorkey._torch_rows import Rows

__all__ = [
    "Rows",
    "answers_stateless",
    "any_global_hook",
    "differentiated",
    "environment",
    "inference",
    "recording",
    "runner",
    "supports_jit",
    "traced",
    "traced_call",
    "trainable",
    "transform",
    "unfit_inputs",
    "unfit_layer",
]

_C: Any = torch._C
_functorch: Any = _C._functorch
any_global_hook: Any = nn.modules.module._has_any_global_hook
_TENSOR_TYPES = (torch.Tensor, Parameter)

# The guard is asked before every call: no attribute of a module is looked up twice.
_is_exporting = torch.compiler.is_exporting
_is_compiling = torch.compiler.is_compiling
_tracing_state: Any = _C._get_tracing_state
_transform_stack: Any = _functorch.peek_interpreter_stack
_dispatch_modes: Any = _C._len_torch_dispatch_stack
_function_modes: Any = _C._len_torch_function_stack
_is_grad_enabled = torch.is_grad_enabled


def transform() -> str | None:
    """Return the transformation of PyTorch that the call is under, if any; in about 0.5 us."""
    if _is_exporting():
        return "torch.export"
    if _is_compiling():
        return "torch.compile"
    if _tracing_state() is not None:
        return "torch.jit.trace"
    if _transform_stack() is not None:
        return "a torch.func transform"
    if _dispatch_modes():
        return "a dispatch mode"
    if _function_modes() and not _only_device_contexts():
        return "a function mode"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if _symbolic_trace._is_fx_tracing_flag:
        return "torch.fx.symbolic_trace"
    return None


def _only_device_contexts() -> bool:
    count = _function_modes()
    return all(isinstance(_C._get_function_stack_at(i), DeviceContext) for i in range(count))


def unfit_inputs(inputs: Sequence[Any]) -> str | None:
    """Return why rows of these inputs cannot be looked up."""
    recording = _is_grad_enabled()
    for tensor in inputs:
        if type(tensor) not in _TENSOR_TYPES:
            if isinstance(tensor, torch.Tensor):
                return f"a tensor subclass: {type(tensor).__name__}"
            return f"an input that is no tensor: {type(tensor).__name__}"
        if not (tensor.is_cpu or tensor.is_cuda):
            return f"a tensor on the device {tensor.device.type}"
        if recording and tensor.requires_grad:
            return "an input requires grad: wrap the call in torch.no_grad() or detach the input"
    return None


def recording() -> bool:
    """Whether gradients are recorded."""
    return _is_grad_enabled()


def differentiated(inputs: Sequence[torch.Tensor]) -> bool:
    """Whether gradients of these inputs are recorded: unfit_inputs() has said so."""
    return False


def unfit_layer(fingerprint: Fingerprint) -> str | None:
    """Return why a layer must run: forward hooks; REQUIRES that it was just checked."""
    guard = fingerprint.guard
    if guard is None:
        hooked = any(map(_has_hooks, fingerprint.reading().modules))
    else:
        hooked = guard.hooked()
    if hooked:
        return "forward hooks inside the layer, which do not run on a hit: remove them"
    if any_global_hook():
        return "global module hooks"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def trainable(fingerprint: Fingerprint) -> bool:
    """Whether a weight of the layer requires grad; REQUIRES that it was just checked."""
    guard = fingerprint.guard
    if guard is not None:
        return guard.trainable()
    return any(getattr(tensor, "requires_grad", False) for tensor in fingerprint.reading().tensors)


inference = torch.no_grad
"""A context in which no gradients are recorded."""

# For Keras, see _keras_below.py.

supports_jit = True
answers_stateless = False


def traced(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is traced: never, as transform() has a reason for each way of doing so."""
    return False


def traced_call(wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Raise: no call is traced."""
    raise Bypass("a traced call")


def runner(wrapper: Any) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """Return what runs the layer on a chunk."""

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with inference():
            return wrapper._run_inner(args, kwargs)

    return run
